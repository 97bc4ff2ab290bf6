"""Runs of batches: what engines return for them, and what devices need beyond a call: a pipeline, and to be kept warm."""
