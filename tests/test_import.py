"""What importing and running pulls in; each checked in a process of its own."""

import importlib
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import genreg_jax

ROOT = Path(__file__).parents[1]


def run(code, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


LOADED = "import sys; print(*{name.split('.')[0] for name in sys.modules})"


def test_importing_the_package_is_light():
    loaded = run(f"import genreg_jax; {LOADED}")
    heavy = {
        "distrax", "matplotlib", "ml_collections", "orbax", "sklearn", "tensorboardX",
        "tensorflow", "tensorflow_datasets", "tensorflow_probability",
    }  # fmt: skip
    assert "jax" in loaded and not heavy & set(loaded)


def test_a_training_run_imports_neither_tensorflow_nor_tfds(tmp_path):
    # None in sys.modules makes any import of a module fail, installed or not.
    code = f"""
import sys
for name in ("tensorflow", "tensorflow_datasets", "distrax"):
    sys.modules[name] = None
import genreg_jax as gr
config = {{
    "data": {{"name": "digits", "per_class": 4}},
    "model": {{"widths": [4]}},
    "train": {{"epochs": 1, "steps_per_epoch": 1, "batch_size": 8, "progress": False}},
}}
summary = gr.train_and_evaluate(config, sys.argv[1])
assert summary["steps"] == 1, summary
{LOADED}
"""
    loaded = run(code, tmp_path / "run")
    assert {"orbax", "tensorboardX"} <= set(loaded)
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize(
    "name", [m.name for m in pkgutil.walk_packages(genreg_jax.__path__, "genreg_jax.")]
)
def test_every_module_can_be_imported(name):
    assert importlib.import_module(name).__name__ == name
