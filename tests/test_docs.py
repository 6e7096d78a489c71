"""The examples of the documentation run as they stand and learn something."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
EXAMPLES = {
    f"{path.stem}: {title}": block
    for path in sorted(DOCS.glob("*.md"))
    for title, block in re.findall(
        r"^## ([^\n]*)\n(?:(?!^## ).)*?^```python\n(.*?)^```", path.read_text(), re.M | re.S
    )
}


def test_the_frameworks_are_all_there():
    titles = " ".join(EXAMPLES)
    assert all(name in titles for name in ("NNX", "Equinox", "Haiku", "Bare JAX"))
    blocks = sum(path.read_text().count("```python\n") for path in DOCS.glob("*.md"))
    assert len(EXAMPLES) == blocks, "one example a section"


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_and_its_loss_falls(name):
    for module in ("equinox", "haiku"):
        if module in EXAMPLES[name]:
            pytest.importorskip(module)
    space = {"__name__": "example"}
    exec(compile(EXAMPLES[name], name, "exec"), space)
    losses = space["losses"]
    assert callable(losses) or losses[-1] < losses[0]
