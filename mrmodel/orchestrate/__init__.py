"""The DVC graph spread over workers: what must run, where, and how its results come together."""
