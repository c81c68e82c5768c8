"""Search for better values: `search` has the three phases, `study` what all of them share."""
