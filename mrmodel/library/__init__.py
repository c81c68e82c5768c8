"""A library: many videos in one folder on disk, searched together."""

# Videos that the model answers about for a query, unless told otherwise.
DEPTH = 64
