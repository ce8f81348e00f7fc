"""SELF-GRPO inside other people's trainers."""
