"""What importing and running pulls in; each checked in a process of its own."""

import ast
import importlib
import os
import pkgutil
import re
import subprocess
import sys
import tomllib
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


# Packages whose distribution has another name than the module that is imported.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "absl": "absl-py",
    "haiku": "dm-haiku",
    "orbax": "orbax-checkpoint",
    "sklearn": "scikit-learn",
}
# Imported by `genreg_jax` only for a user who already has them: an adapter, a notebook.
OPTIONAL = {"dm-haiku", "equinox", "grain", "ipython"}


def imported(folder):
    """Distribution of every package outside this repository that a folder imports -> one file."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module]
            else:
                continue
            for name in {module.split(".")[0] for module in modules}:
                own = (ROOT / name).is_dir() or path.with_name(f"{name}.py").exists()
                if name not in sys.stdlib_module_names and not own:
                    distribution = DISTRIBUTIONS.get(name, name.replace("_", "-")).lower()
                    found[distribution] = str(path)
    return found


def declared():
    """Names of the distributions that running needs, and of those that any extra adds."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def names(requirements):
        found = (re.match(r"[\w.-]+", requirement) for requirement in requirements)
        return {re.sub(r"[-_.]+", "-", match[0]).lower() for match in found}

    return names(project["dependencies"]), names(sum(project["optional-dependencies"].values(), []))


@pytest.mark.parametrize("folder", ["genreg_jax", "configs", "experiments", "benchmarks", "tests"])
def test_every_imported_package_is_declared(folder):
    runtime, extras = declared()
    allowed = runtime | (OPTIONAL if folder == "genreg_jax" else extras)
    found = imported(ROOT / folder)
    missing = {name: path for name, path in found.items() if name not in allowed}
    assert not missing, f"imported and not declared in pyproject.toml: {missing}"


def test_an_import_is_seen_wherever_it_stands(tmp_path):
    code = """
import os, scipy.stats, genreg_jax.data
def lazily():
    from sklearn.svm import SVC
    from configs import common
    from . import sibling
"""
    (tmp_path / "a.py").write_text(code)
    assert set(imported(tmp_path)) == {"scipy", "scikit-learn"}
    runtime, extras = declared()
    assert {"jax", "tensorboardx", "array-record"} <= runtime and {"scipy", "pytest"} <= extras
