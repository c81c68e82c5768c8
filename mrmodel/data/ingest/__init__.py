"""Ingests users' own videos and annotations into the corpus."""
