"""Import of published feature archives into feature stores."""
