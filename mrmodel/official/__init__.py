"""Published checkpoints as model folders (``mrmodel weights import``)."""
