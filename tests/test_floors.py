"""The house has floors: an import never climbs, and nothing in the library imports a command."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "genreg_jax"
# From the ground up, as in CONTRIBUTING.md; a folder stands for all that is in it.
FLOORS = [
    "errors interrupt compiled door hypergradient implicit_hypergradient contract state checks "
    "pickles tensors strengths conv_layout bounds arcs",
    "models regularizers settings learned augment logs flows devices chunks",
    "objective config optimizers data batches fingerprints records orbax_threads checkpoint feed",
    "build evaluate epoch memorisation samples",
    "workdir restore costs report",
    "perturb predict export compare flow_run own results",
    "train",
    "__init__",
]
COMMANDS = {
    "main", "predict", "export", "compare", "doctor", "augment.__main__", "flows.evaluate",
    "report.__main__", "data.prepare",
}  # fmt: skip
# Commands that are modules of the library too.
BOTH = {"predict", "export", "compare", "data.prepare"}
# What the package fetches when it is asked for: `from genreg_jax import load` climbs there.
LAZY = {"train_and_evaluate": "train", "load": "predict"}
FLOOR = {name: floor for floor, names in enumerate(FLOORS, start=1) for name in names.split()}


def name_of(path):
    """The module's name within the package: `flows.layers`, `__init__`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def floor_of(module):
    if module in COMMANDS - BOTH:
        return 9
    return FLOOR[module.partition(".")[0]]


def imports_of(path, modules):
    """The modules of the package that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} has a relative import; name the package"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.partition(".")[0] != "genreg_jax":
                continue
            name = name.partition(".")[2]
            name = LAZY.get(name, name)
            while name and name not in modules:
                name = name.rpartition(".")[0]
            found.add(name or "__init__")
    return found


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@pytest.mark.parametrize("module", MODULES)
def test_no_import_climbs(module):
    for other in imports_of(MODULES[module], MODULES):
        if other == "__init__":
            continue  # `import genreg_jax` in an example or a command
        assert floor_of(other) <= floor_of(module), f"{module} imports {other}, a floor above"


def test_nothing_in_the_library_imports_a_command():
    for module, path in MODULES.items():
        if module not in COMMANDS:
            allowed = {"predict"} if module == "__init__" else set()
            allowed |= {"data.prepare"} if module.startswith("data") else set()
            assert not imports_of(path, MODULES) & COMMANDS - allowed, module


def test_a_climbing_import_would_be_seen(tmp_path):
    path = tmp_path / "low.py"
    path.write_text(
        "def f():\n    from genreg_jax import train\n    import genreg_jax.flows.flow\n"
    )
    assert imports_of(path, MODULES) == {"train", "flows.flow"}
    path.write_text("def f():\n    from genreg_jax import load, train_and_evaluate\n")
    assert imports_of(path, MODULES) == {"predict", "train"}
    path.write_text("from .train import train_and_evaluate\n")
    with pytest.raises(AssertionError, match="relative import"):
        imports_of(path, MODULES)
    assert floor_of("train") > floor_of("flows.flow") > floor_of("errors")


def test_the_floors_are_those_that_the_notes_show():
    notes = (ROOT / "CONTRIBUTING.md").read_text()
    for names in FLOORS[:-1]:
        for name in names.split():
            assert f"`{name}" in notes, f"CONTRIBUTING.md does not place {name}"


# A good part of these is the docstrings of their papers' functions.
LONG = {"phantom": 650, "synthetic": 520}
LONG = {f"regularizers.{name}": lines for name, lines in LONG.items()}


@pytest.mark.parametrize("module", MODULES)
def test_no_file_is_too_long_to_read(module):
    lines = len(MODULES[module].read_text().splitlines())
    assert lines <= LONG.get(module, 450)
