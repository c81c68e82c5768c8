"""Servers as local processes, for `make services` and for the tests."""
