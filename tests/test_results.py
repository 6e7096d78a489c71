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


def test_the_headers_of_the_configs_are_those_of_the_results():
    found = 0
    for path in ROOT.glob("configs/*.py"):
        if match := HEADER.search(path.read_text()):
            accuracy, seeds, experiment = match.groups()
            assert any(f"| {seeds} | {accuracy} |" in row for row in TABLES[experiment]), path.name
            found += 1
    assert found > 10
