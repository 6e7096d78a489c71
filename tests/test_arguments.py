"""A part of the calls of `benchmarks/arguments.py`, each with one wrong argument."""

import importlib.util
from pathlib import Path

import jax

PATH = Path(__file__).parents[1] / "benchmarks" / "arguments.py"


def test_an_error_names_the_argument_that_is_wrong():
    spec = importlib.util.spec_from_file_location("arguments", PATH)
    arguments = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(arguments)
    with jax.numpy_rank_promotion("allow"):
        counts, failures = arguments.run(every=13)
    assert not failures, "\n".join(failures)
    assert counts["error names it"] > 200
