"""Evaluation: predictions, scores with intervals, judges, analyses, and experiments over many runs."""
