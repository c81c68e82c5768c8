"""The public data sets: one file each, which reads what was published; `convert` writes splits."""
