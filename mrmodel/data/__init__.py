"""Annotations and batches: from rows of a file to tensors with targets."""
