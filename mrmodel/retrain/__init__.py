"""Ingests new data for retraining: deliveries in a store are validated and added to the DVC data.

The entry point is `ingest.ingest`; it produces a run branch that holds the new data.
"""
