"""The shipped configs."""
