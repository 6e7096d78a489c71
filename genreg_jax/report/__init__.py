"""What a run leaves behind for people: one page, and the pictures in it."""

from genreg_jax.report.page import regenerate, write_report

__all__ = ["regenerate", "write_report"]
