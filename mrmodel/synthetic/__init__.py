"""The rendered sample corpus."""
