"""Measurements beside the bare loop, side by side in one run."""
