"""Annotations and batches: from the records of a file to tensors with targets."""
