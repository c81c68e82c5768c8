"""Published encoder weights, converted to ours."""
