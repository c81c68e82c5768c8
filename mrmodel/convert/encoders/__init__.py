"""Conversion of published encoder weights to weight sets."""
