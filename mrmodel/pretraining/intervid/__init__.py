"""InterVid-MR: queries for pre-training, made from captioned video segments."""
