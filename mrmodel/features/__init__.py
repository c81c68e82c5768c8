"""Feature stores: clips and texts are encoded once, then read by key."""
