"""The notebooks run, in a few updates, and are committed as nobody has run them."""

import json
import os
from importlib import metadata
from pathlib import Path

import pytest

NOTEBOOKS = sorted(Path(__file__).parents[1].glob("notebooks/*.ipynb"))
BOOKS = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in NOTEBOOKS}


def cells(name, *, install=False):
    """The code cells of a notebook: the one that installs, or all others."""
    found = [cell for cell in BOOKS[name]["cells"] if cell["cell_type"] == "code"]
    return [cell for cell in found if ("install" in cell["metadata"].get("tags", [])) == install]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of its own, in the mode of a few updates."""
    monkeypatch.chdir(tmp_path)
    for name in ("GENREG_CACHE", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("GENREG_TINY", "1")
    return tmp_path


def test_no_output_is_committed_and_each_begins_with_badge_and_installation(folder):
    assert list(BOOKS) == ["losses_in_your_loop", "own_images", "quickstart"]
    installations = set()
    for name, book in BOOKS.items():
        code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
        assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code), name
        assert "colab-badge" in book["cells"][0]["source"][0], name
        assert code[0] in cells(name, install=True) and len(cells(name, install=True)) == 1
        installations.add("".join(code[0]["source"]))
    (installation,) = installations
    # What comes before pip is called: what is installed of jax is what pip is to keep.
    program, found, pip = installation.partition("if importlib.util.find_spec")
    assert found and pip.endswith("%pip install -q -c {constraints} {SOURCE}")
    space = {}
    exec(program, space)
    kept = space["constraints"].read_text().splitlines()
    assert {f"{name}=={metadata.version(name)}" for name in ("jax", "jaxlib", "numpy")} <= set(kept)
    assert not [line for line in kept if line.startswith(("flax", "optax"))]


def test_the_quickstart_runs_in_a_kernel(folder):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    text = json.dumps(BOOKS["quickstart"] | {"cells": cells("quickstart")})
    book = nbformat.reads(text, as_version=4)
    client = nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": folder}})
    client.execute()
    outputs = [output for cell in book.cells for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "test accuracy" in printed and "of 500 test images are taken" in printed
    shown = [output.data for output in outputs if "data" in output]
    assert sum("image/png" in data for data in shown) == 2
    assert any("<iframe" in data.get("text/html", "") for data in shown)


@pytest.mark.parametrize("name", [name for name in BOOKS if name != "quickstart"])
def test_the_cells_of_the_others_run(name, folder, monkeypatch):
    pytest.importorskip("IPython")
    monkeypatch.setenv("MPLBACKEND", "agg")
    space = {"__name__": "notebook"}
    for i, cell in enumerate(cells(name)):
        exec(compile("".join(cell["source"]), f"{name}, code cell {i}", "exec"), space)
    if name == "own_images":
        assert len(space["dataset"].class_names) == 3 and len(space["labels"]) == 8
        assert os.path.exists("runs/own_images/report.html")
    else:
        assert (
            len(space["plain"]) == len(space["both"]) == 3 and space["both"][-1] < space["both"][0]
        )
