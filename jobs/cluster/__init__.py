"""Batch transform jobs on a Ray cluster: the driver, and what the workers of the cluster run."""
