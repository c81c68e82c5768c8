"""Training: the loop, the schedule, and what a trained model is on disk."""
