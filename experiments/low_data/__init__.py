"""What to turn on with few labels, and what it costs."""
