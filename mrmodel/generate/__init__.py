"""InterVid-MR: pre-training queries, windows and grades from loosely timed captions."""
