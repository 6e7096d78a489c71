"""`python -m genreg_jax.report --workdir=DIR` writes the report of a run again."""

from genreg_jax.door import leave
from genreg_jax.report.page import main

if __name__ == "__main__":
    leave(main())
