"""Runs: the run folder and its store, algorithm 1 with resume, and jobs that work in folders of their own."""
