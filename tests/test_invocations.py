"""A few of the generated wrong invocations of `benchmarks/invocations.py`."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_generated_invocations_end_in_a_paragraph_or_run():
    # In a process of its own: threads of this one would not survive the forks.
    result = subprocess.run(
        [sys.executable, "benchmarks/invocations.py", "--trials=8"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    assert int(re.search(r"(\d+) invocations: ", result.stdout).group(1)) >= 8
