"""Frames and sentences into vectors, by networks whose weights come from installed packages."""
