"""Comparison of the predictions of every way to serve a model: ``fastmaker verify``."""
