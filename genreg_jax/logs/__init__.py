"""What a run leaves behind while it runs: metrics, a progress display, and where it came from."""

from genreg_jax.logs.files import (
    check_new_folder,
    read_bytes,
    read_json,
    remove_unfinished,
    to_json,
    unfinished,
    write_atomically,
    write_json,
)
from genreg_jax.logs.metrics import PHASES, MetricWriter, read_metrics, write_result
from genreg_jax.logs.progress import Clock, Progress, Stages, format_seconds
from genreg_jax.logs.provenance import PACKAGES, changes, provenance
from genreg_jax.logs.summary import Summary, checksum, read_summary

__all__ = [
    "PACKAGES",
    "PHASES",
    "Clock",
    "MetricWriter",
    "Progress",
    "Stages",
    "Summary",
    "changes",
    "check_new_folder",
    "checksum",
    "format_seconds",
    "provenance",
    "read_bytes",
    "read_json",
    "read_metrics",
    "read_summary",
    "remove_unfinished",
    "to_json",
    "unfinished",
    "write_atomically",
    "write_json",
    "write_result",
]
