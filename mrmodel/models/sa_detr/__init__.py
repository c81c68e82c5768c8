"""SA-DETR."""
