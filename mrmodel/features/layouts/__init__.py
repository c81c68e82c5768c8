"""Layouts of published feature archives: one file each, and a line in `components.LAYOUTS`."""
