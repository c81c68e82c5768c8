"""Video moment retrieval and highlight detection as one reproducible pipeline."""

__version__ = "0.1.0"
