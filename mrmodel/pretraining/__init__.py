"""Data for pre-training."""
