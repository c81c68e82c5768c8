"""Inference: windows and clip scores for a query about a video."""
