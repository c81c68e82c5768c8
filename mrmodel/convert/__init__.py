"""Published checkpoints and features, converted to ours."""
