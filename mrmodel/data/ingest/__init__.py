"""Brings people's own videos and annotations into the corpus."""
