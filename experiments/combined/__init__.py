"""base, each method and each combination of methods."""
