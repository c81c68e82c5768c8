"""Metrics of moment retrieval and highlight detection; NumPy only, nothing here loads torch."""
