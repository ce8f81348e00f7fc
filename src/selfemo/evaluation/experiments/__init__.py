"""Experiments over seeds: the ablation of table 2 (`selfemo ablate`), and runs of one configuration."""
