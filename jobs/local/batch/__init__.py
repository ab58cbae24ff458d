"""Batch transform jobs of the engine."""
