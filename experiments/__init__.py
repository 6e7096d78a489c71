"""Studies, with their results."""

import sys

from genreg_jax.door import answer_interrupts

if sys.argv[:1] == ["-m"]:  # `python -m experiments.STUDY.COMMAND`, which is being found
    answer_interrupts()
