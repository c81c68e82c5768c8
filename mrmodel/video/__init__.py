"""Video files into frames on a clip grid, whatever the file looks like."""
