"""Public data sets: one module each reads the published files; `convert` writes the splits."""
