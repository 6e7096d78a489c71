"""What the READMEs and the configs' headers say was measured is what the results files say."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TABLES = {
    experiment.parent.name: {
        line for path in experiment.rglob("*.md") for line in path.read_text().splitlines()
    }
    for experiment in ROOT.glob("experiments/*/results")
}
# | labels per class | row | n | test accuracy, % | ...
ROW = re.compile(r"\| \d+ \| [^|]+ \| \d+ \| \d+\.\d\d ± \d+\.\d\d \|.*")
HEADER = re.compile(
    r"Measured: (\S+ ± \S+) % test accuracy.*n = (\d+)\sseeds\).*in experiments/(\w+)", re.S
)


@pytest.mark.parametrize(
    "readme",
    [
        *(ROOT / name for name in ("README.md", "docs/tuning.md")),
        *sorted(ROOT.glob("experiments/**/README.md")),
    ],
    ids=lambda p: p.parent.name,
)
def test_the_tables_of_a_readme_are_those_of_the_results(readme):
    of_a_study = readme.parent.parent.name == "experiments"
    tables = [TABLES.get(readme.parent.name, set())] if of_a_study else TABLES.values()
    known = set().union(*tables)
    quoted = [match[0] for line in readme.read_text().splitlines() if (match := ROW.search(line))]
    assert not [row for row in quoted if row not in known]
    elsewhere = ("flows", "low_data")  # the latter's are in the docs
    assert quoted or readme.parent.name in elsewhere or not (readme.parent / "results").exists()


FIGURE = re.compile(r"-?\d+\.\d\d ± \d+\.\d\d")
PAGE = (ROOT / "docs" / "low_data.md").read_text()


@pytest.mark.parametrize(
    "file",
    ["README.md", "docs/own_images.md", "docs/losses.md", "experiments/low_data/README.md"],
)
def test_a_figure_with_an_error_stands_in_a_table(file):
    known = set(FIGURE.findall(PAGE)).union(*(FIGURE.findall(" ".join(t)) for t in TABLES.values()))
    quoted = FIGURE.findall((ROOT / file).read_text())
    assert len(quoted) > 1 and not set(quoted) - known


# Labels of the README's first table.
ROWS = {
    "tuned base, 1,000 to 1,200 updates of 16 images": "base",
    "+ MGR": "mgr",
    "+ latent adversarial": "latent adversarial",
    "+ MGR, latent adversarial and phantom embeddings": "all three",
    "tuned base, 4 times the updates": "base, 4 times the updates",
    "+ RandAugment, 4 times the updates": "randaugment, 4 times the updates",
    "+ latent adversarial, 4 times the updates": "latent adversarial, 4 times the updates",
}


def test_the_first_table_of_the_readme_is_of_the_low_data_study():
    cells = [row.strip("| ").split(" | ") for row in (ROOT / "README.md").read_text().splitlines()]
    table = {row[0]: row[1:] for row in cells if row[0] in ROWS}
    assert table.keys() == ROWS.keys()
    studies = (("fashion_mnist", 50), ("cifar10", 50), ("digits", 10))
    for label, row in ROWS.items():
        for (study, size), cell in zip(studies, table[label]):
            part = PAGE.split(f"\n## {study}\n")[1].split("\n## ")[0]
            assert not cell.strip() or re.search(
                rf"\n\| {size} \| {re.escape(row)} \| \d+ \| {cell} \|", part
            ), (label, study)


def test_the_headers_of_the_configs_are_those_of_the_results():
    found = 0
    for path in ROOT.glob("configs/*.py"):
        if match := HEADER.search(path.read_text()):
            accuracy, seeds, experiment = match.groups()
            assert any(f"| {seeds} | {accuracy} |" in row for row in TABLES[experiment]), path.name
            found += 1
    assert found > 10
