"""Extraction of features: jobs, processes, GPU batches, shards."""
