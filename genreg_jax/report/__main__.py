"""`python -m genreg_jax.report --workdir=DIR` writes the report of a run again."""

import sys

from genreg_jax.report.page import main

if __name__ == "__main__":
    sys.exit(main())
