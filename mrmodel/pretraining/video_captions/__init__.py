"""Pre-training rows from captioned frames of a corpus's own videos (VideoLights, Algorithm 1)."""
