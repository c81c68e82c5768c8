"""New data for retraining: deliveries in a store are checked and brought into the DVC data.

`intake.ingest` is the whole of it; it ends with a run branch that holds the new data.
"""
