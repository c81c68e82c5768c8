"""The report a person reads after a run: one HTML file with everything inside."""
