"""InterVid-MR: pre-training queries from captioned video segments."""
