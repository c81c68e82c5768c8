"""Feature stores: clips and texts become vectors once, and are read by key ever after."""
