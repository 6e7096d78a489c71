"""The shipped configs: all of them load and say what they are, and one of them runs, shrunk."""

import ast
import importlib.util
import json
import re
from pathlib import Path

import pytest

import genreg_jax as gr
from genreg_jax import augment
from genreg_jax.settings import config_hash, from_config

CONFIGS = Path(__file__).parents[1] / "configs"
# The `config_hash` of every config by file and option, "" for none. What was measured with a config
# was measured with these values: a change of a hash here is a decision.
HASHES = json.loads((Path(__file__).parent / "config_hashes.json").read_text())
FILES = sorted(path for path in CONFIGS.glob("*_*.py") if not path.name.startswith("_"))
IMAGE_SHAPES = {"digits": (8, 8, 1), "fashion_mnist": (28, 28, 1), "cifar10": (32, 32, 3)}

every_config = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def load(path, option=None, monkeypatch=None):
    """The config as the command line gets it: from the repository root, which is on the path."""
    if monkeypatch is not None:
        monkeypatch.syspath_prepend(str(CONFIGS.parent))
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config() if option is None else module.get_config(option)


# method: synthetic.loss, meta.enabled, phantom.loss, latent.kind
METHODS = {
    "base": ("none", False, "none", "none"),
    "gda": ("cross_entropy", False, "none", "none"),
    "pcr": ("pcr", False, "none", "none"),
    "mgr": ("pcr", True, "none", "none"),
    "phantom": ("none", False, "attraction", "none"),
    "latent_random": ("none", False, "none", "random"),
    "latent_away": ("none", False, "none", "away"),
    "latent_adversarial": ("none", False, "none", "adversarial"),
    "pgd": ("none", False, "none", "pgd"),
    "phantom_mgr": ("pcr", True, "attraction", "none"),
    "phantom_latent": ("none", False, "attraction", "adversarial"),
    "latent_mgr": ("pcr", True, "none", "adversarial"),
    "combined": ("pcr", True, "attraction", "adversarial"),
}
FLOWS = {"glow": METHODS["base"], "realnvp": METHODS["base"]}


def method_and_dataset(path):
    dataset = next(name for name in IMAGE_SHAPES if path.stem.endswith(f"_{name}"))
    return path.stem.removesuffix(f"_{dataset}"), dataset


def test_every_method_is_shipped_for_three_data_sets():
    assert {f"{m}_{d}" for m in METHODS for d in IMAGE_SHAPES} <= {path.stem for path in FILES}


def test_two_flows_are_shipped_for_three_data_sets(monkeypatch):
    for kind in ("glow", "realnvp"):
        for dataset in IMAGE_SHAPES:
            path = CONFIGS / f"{kind}_{dataset}.py"
            settings = from_config(load(path, monkeypatch=monkeypatch))
            assert settings.flow_only and settings.flow.kind == kind
            assert settings.data.per_class == 0 and settings.data.fraction == 1
    paper = from_config(load(CONFIGS / "glow_cifar10.py", monkeypatch=monkeypatch)).flow
    assert (paper.levels, paper.steps, paper.width) == (3, 32, 512)
    assert (paper.optimizer, paper.learning_rate) == ("adamax", 5e-4)
    middle = from_config(load(CONFIGS / "glow_cifar10.py", "middle", monkeypatch)).flow
    assert middle.steps * middle.width < 400 and middle.updates < 20_000


@every_config
def test_the_header_gives_the_command_that_runs_it(path):
    header = ast.get_docstring(ast.parse(path.read_text()))
    assert header, f"{path.name} has no header"
    # The command may be broken over lines with a backslash.
    commands = re.sub(r"\\\n\s*", "", header)
    assert f"python -m genreg_jax.main --config=configs/{path.name}" in commands


@every_config
@pytest.mark.parametrize("option", [None, "runlocal"])
def test_the_settings_of_a_config_are_right(path, option, monkeypatch):
    config = load(path, option, monkeypatch)
    settings = from_config(config)
    method, dataset = method_and_dataset(path)
    assert settings.name == method and settings.data.name == dataset
    turned_on = (
        settings.synthetic.loss, settings.meta.enabled, settings.phantom.loss, settings.latent.kind
    )  # fmt: skip
    assert turned_on == {**METHODS, **FLOWS}[method]
    specs = (
        settings.augment.train, settings.synthetic.weak, settings.synthetic.strong,
        settings.flow.augment,
    )  # fmt: skip
    for spec in specs:
        augment.make(spec, image_shape=IMAGE_SHAPES[dataset])
    side = IMAGE_SHAPES[dataset][0]
    assert side % 2**settings.flow.levels == 0
    with pytest.raises(AttributeError):
        config.train.epoch = 3


@pytest.mark.parametrize("file", [path.stem for path in FILES])
def test_the_values_of_a_config_are_those_published(file, monkeypatch):
    found = {
        option: config_hash(from_config(load(CONFIGS / f"{file}.py", option, monkeypatch)))
        for option in HASHES[file]
    }
    assert found == HASHES[file]


@every_config
def test_runlocal_shrinks_everything(path, monkeypatch):
    whole = from_config(load(path, monkeypatch=monkeypatch))
    local = from_config(load(path, "runlocal", monkeypatch))
    assert local.train.epochs * local.train.steps_per_epoch <= 100
    assert local.flow.updates <= 100
    assert local.model.name == ("none" if whole.flow_only else "convnet")
    assert local.synthetic == whole.synthetic and local.meta == whole.meta
    assert local.phantom == whole.phantom
    assert local.latent == whole.latent


def test_the_methods_of_a_data_set_differ_in_the_method_alone(monkeypatch):
    for dataset in IMAGE_SHAPES:
        recipes = []
        for method in METHODS:
            config = load(CONFIGS / f"{method}_{dataset}.py", monkeypatch=monkeypatch).to_dict()
            recipes.append(
                {k: config[k] for k in ("data", "model", "augment", "optimizer", "train")}
            )
        assert all(recipe == recipes[0] for recipe in recipes[1:])


def test_an_unknown_option_is_refused_with_those_there_are(monkeypatch):
    with pytest.raises(ValueError, match="unknown config option 'runlocl'.*runlocal"):
        load(FILES[0], "runlocl", monkeypatch)


def test_mgr_on_digits_runs_end_to_end_and_leaves_everything(tmp_path, monkeypatch):
    config = load(CONFIGS / "mgr_digits.py", "runlocal", monkeypatch)
    config.data.per_class = 9
    config.model.widths = (4, 8)
    config.flow.levels, config.flow.steps, config.flow.width = 1, 1, 4
    config.flow.updates, config.flow.eval_every = 4, 2
    config.train.epochs, config.train.steps_per_epoch, config.train.batch_size = 2, 3, 16
    config.meta.hidden, config.meta.outer_fraction = (8,), 0.1
    config.train.progress = False
    summary = gr.train_and_evaluate(config, tmp_path, command="python -m genreg_jax.main ...")
    for key in (
        "test_accuracy", "validation_accuracy", "train_examples", "steps", "seconds",
        "images_per_second", "seed", "device", "versions", "config_hash",
    ):  # fmt: skip
        assert summary[key] is not None
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    held_out = 10 if config.meta.outer == "holdout" else 0  # a tenth, one image a class
    assert summary["train_examples"] == 90 - held_out and summary["steps"] == 6
    assert 0 < summary["flow"]["bits_per_dim"] < 20
    for name in (
        "config.json", "metrics.jsonl", "metrics.csv", "report.html", "tensorboard", "checkpoints",
        "flow", "samples/1_real.png", "samples/2_generated.png", "samples/3_found.png",
        "samples/4_views.png",
    ):  # fmt: skip
        assert (tmp_path / name).exists(), name
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert any("flow/validation_bits_per_dim" in line for line in lines)
    last = lines[-1]
    assert last["step"] == 6 and last["train/hypergradient_norm"] > 0
    report = (tmp_path / "report.html").read_text()
    assert report.count("data:image/png;base64,") >= 4 and "<svg" in report
