"""Generation backends, one a file. Each returns `Sample`s for prompts of token ids or messages."""
