"""Matching and losses; a model puts them together in its `criterion`."""
