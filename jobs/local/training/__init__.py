"""Training jobs of the engine."""
