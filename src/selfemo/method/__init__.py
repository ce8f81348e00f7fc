"""The method of the paper as pure functions: objects, prompts, parsing, rewards, SELF-GRPO, loss."""
