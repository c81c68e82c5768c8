"""Runs the DVC graph on distributed workers: what must run, where, and merging of results."""
