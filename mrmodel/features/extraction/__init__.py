"""Feature extraction: jobs, worker processes, GPU batches, shards."""
