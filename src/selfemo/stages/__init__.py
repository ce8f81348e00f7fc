"""The stages of algorithm 1, each readable beside SPEC.md: personas, cold start, self-play, RL, flywheel."""
