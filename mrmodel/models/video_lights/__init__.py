"""VideoLights."""
