"""Hyperparameter search: `search` has the three phases, `study` what all of them share."""
