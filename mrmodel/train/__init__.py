"""Training: the loop, the schedule, and model folders."""
