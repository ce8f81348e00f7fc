"""SELF-GRPO inside other trainers, one a file."""
