"""Metrics of moment retrieval and highlight detection; NumPy only, without torch."""
