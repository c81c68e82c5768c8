"""Conversion of published checkpoints and encoder weights to our formats."""
