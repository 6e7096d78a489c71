"""Studies, with their results."""
