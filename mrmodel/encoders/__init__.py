"""Encoders of clips and sentences, with weights from installed packages or from the user."""
