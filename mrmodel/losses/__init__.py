"""Matching and losses; each model combines them in its `criterion`."""
