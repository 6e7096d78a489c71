"""The examples of the documentation run, and what it says of names and figures is so."""

import json
import re
import statistics
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import genreg_jax as gr

ROOT = Path(__file__).parents[1]
TEXTS = {
    path.name: path.read_text() for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))
}
# Pages whose sections stand alone; the blocks of each other page are one program.
SECTIONS = ("devices.md", "hypergradients.md", "losses.md")
EXAMPLES = {
    f"{page}: {title}": block
    for page in SECTIONS
    for title, block in re.findall(
        r"^## ([^\n]*)\n(?:(?!^## ).)*?^```python\n(.*?)^```", TEXTS[page], re.M | re.S
    )
}
PAGES = {
    page: "".join(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S))
    for page, text in TEXTS.items()
    if page not in SECTIONS and "```python\n" in text
}
# What takes long, and what it is here.
FEWER = {
    "levels=1, steps=4, width=48": "levels=1, steps=1, width=4",
    "steps=300": "steps=2",
    "steps=600": "steps=2",
    "(32, 64, 64)": "(4,)",
    "(16, 32, 64)": "(4,)",
    '"epochs": 12, "steps_per_epoch": 50': '"epochs": 1, "steps_per_epoch": 2, "progress": False',
    '"epochs": 20, "least_steps": 25': '"epochs": 1, "least_steps": 2, "progress": False',
}


def run(name, code):
    """Executes an example or the program of a page, with the small numbers of `FEWER`."""
    for long, short in FEWER.items():
        code = code.replace(long, short)
    space = {"__name__": "example"}
    with jax.numpy_rank_promotion("allow"):  # distrax broadcasts
        exec(compile(code, name, "exec"), space)
    return space


def test_the_frameworks_are_all_there():
    titles = " ".join(EXAMPLES)
    assert all(name in titles for name in ("NNX", "Linen", "Equinox", "Haiku", "Bare JAX"))
    blocks = sum(TEXTS[page].count("```python\n") for page in SECTIONS)
    assert len(EXAMPLES) == blocks, "one example a section"
    code = " ".join([*EXAMPLES.values(), *PAGES.values()])
    assert all(long in code for long in FEWER)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_and_its_loss_falls(name):
    for module in ("equinox", "haiku"):
        if module in EXAMPLES[name]:
            pytest.importorskip(module)
    losses = run(name, EXAMPLES[name])["losses"]
    assert callable(losses) or losses[-1] < losses[0]


@pytest.mark.parametrize("page", PAGES)
def test_the_program_of_a_page_runs(page, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for name, low in (("cat", 0), ("dog", 120)):
        (tmp_path / "PICTURES" / name).mkdir(parents=True)
        for i in range(25):
            pixels = rng.integers(low, low + 130, (20 + i, 30, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "PICTURES" / name / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENREG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("genreg_jax.workdir.write_report", lambda *args, **kwargs: None)
    space = run(page, PAGES[page])
    if page == "own_images.md":  # the exported classifier is the run's
        expected = space["run"].predict(space["images"])
        np.testing.assert_allclose(space["probabilities"], expected.probabilities, atol=1e-6)
        np.testing.assert_allclose(space["embedding"], expected.embedding, atol=1e-5)


def test_commands_name_configs_and_settings_that_there_are():
    defaults = gr.default_config()
    configs = {path.stem for path in ROOT.glob("configs/*_*.py")}
    for page, text in TEXTS.items():
        for name in re.findall(r"--config=(?:configs/)?([\w.]+)", text):
            assert name.removesuffix(".py") in configs, (page, name)
        for group, name in re.findall(r"--config\.(?!group)(\w+)\.(\w+)", text):
            assert name in defaults[group], (page, group, name)


def test_every_public_name_is_in_the_reference():
    listed = re.findall(r"^::: genreg_jax\.(?:\w+\.)?(\w+)$", TEXTS["reference.md"], re.M)
    assert not set(gr.__all__) - set(listed) and len(set(listed)) == len(listed)


def test_validation_figures_of_the_tuning_page_are_those_of_the_results():
    row = r"^\| (\S+) \| ([^|]+) \| (\w+\.\w+) \| (\S*) ?\| (\d) \| (.*) \|$"
    lines = re.findall(row, TEXTS["tuning.md"], re.M)
    assert len(lines) > 20
    for folder, name, setting, fixed, n, figures in lines:
        path = ROOT / "experiments" / folder / "tuning-0.jsonl"
        runs = [json.loads(line) for line in path.read_text().splitlines()]
        for value, figure in re.findall(r"(\S+): (\d+\.\d+)", figures):
            found = [
                100 * run["validation_accuracy"]
                for run in runs
                if run["row"] == name
                and str(run["changes"].get(setting)) == value
                and (not fixed or fixed in [f"{k}={v}" for k, v in run["changes"].items()])
            ]
            assert len(found) == int(n) and f"{statistics.mean(found):.2f}" == figure, (name, value)
