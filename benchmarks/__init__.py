"""Speed measurements: what is fast, and how we know."""
