"""Prefect wiring: which worker runs what, and when. What is done there is in `mrmodel`."""
