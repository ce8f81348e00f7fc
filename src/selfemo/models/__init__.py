"""Models: references to them, loading, prefix trees, and the `Sampler` protocol with its backends."""
