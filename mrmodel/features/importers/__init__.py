"""Published feature archives become feature stores."""
