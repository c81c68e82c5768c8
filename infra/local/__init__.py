"""Servers as processes of this machine, for `make services` and for the tests."""
