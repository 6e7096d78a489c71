"""The shipped configs: all of them load and say what they are, and one of them runs, shrunk."""

import ast
import dataclasses
import importlib.util
import json
import math
import re
from pathlib import Path

import pytest

import genreg_jax as gr
from genreg_jax import augment
from genreg_jax.config import config_hash, from_config

CONFIGS = Path(__file__).parents[1] / "configs"
# The `config_hash` of every config by file and option, "" for none. What was measured with a config
# was measured with these values: a change of a hash here is a decision.
HASHES = json.loads((Path(__file__).parent / "config_hashes.json").read_text())
FILES = sorted(path for path in CONFIGS.glob("*_*.py") if not path.name.startswith("_"))
COSTS = CONFIGS.parent / "benchmarks" / "results" / "config_costs.json"
IMAGE_SHAPES = {"digits": (8, 8, 1), "fashion_mnist": (28, 28, 1), "cifar10": (32, 32, 3)}
# Of one's own pictures, for which the main methods are shipped.
FOLDER_SHAPE = (32, 32, 3)
FOLDER = ("base", "gda", "phantom", "latent_adversarial", "mgr", "combined")
# Of photographs, with ImageNet's weights; the data set is an option.
PHOTOGRAPHS = ("base", "gda", "pcr", "phantom", "latent_adversarial", "mgr", "combined", "glow")
SETS = ("cars", "aircraft", "cub", "dtd", "flowers", "pets")

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
    names = (*IMAGE_SHAPES, "folder", "photographs")
    dataset = next(name for name in names if path.stem.endswith(f"_{name}"))
    return path.stem.removesuffix(f"_{dataset}"), dataset


def test_every_method_is_shipped_for_three_data_sets():
    stems = {path.stem for path in FILES}
    assert {f"{m}_{d}" for m in METHODS for d in IMAGE_SHAPES} <= stems
    assert {f"{m}_folder" for m in FOLDER} == {s for s in stems if s.endswith("_folder")}
    assert {f"{m}_photographs" for m in PHOTOGRAPHS} == {
        s for s in stems if s.endswith("_photographs")
    }


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
    named = "pets" if dataset == "photographs" else dataset
    assert settings.name == method and settings.data.name == named
    turned_on = (
        settings.synthetic.loss, settings.meta.enabled, settings.phantom.loss, settings.latent.kind
    )  # fmt: skip
    assert turned_on == {**METHODS, **FLOWS}[method]
    specs = (
        settings.augment.train, settings.synthetic.weak, settings.synthetic.strong,
        settings.flow.augment,
    )  # fmt: skip
    for spec in specs:
        augment.make(spec, image_shape=IMAGE_SHAPES.get(dataset, FOLDER_SHAPE))
    side = settings.flow.image_size or IMAGE_SHAPES.get(dataset, FOLDER_SHAPE)[0]
    assert side % 2**settings.flow.levels == 0
    with pytest.raises(AttributeError):
        config.train.epoch = 3


@pytest.mark.parametrize("method", PHOTOGRAPHS)
def test_photographs_are_named_and_sized_by_options(method, monkeypatch):
    path = CONFIGS / f"{method}_photographs.py"
    whole = from_config(load(path, monkeypatch=monkeypatch))
    base = from_config(load(CONFIGS / "base_photographs.py", monkeypatch=monkeypatch))
    if method != "glow":
        assert whole.model == base.model and whole.model.pretrained == "efficientnet_lite0"
    for group in ("data", "augment", "optimizer", "train", "flow"):
        assert getattr(whole, group) == getattr(base, group)
    assert whole.data.image_size == 224 and whole.flow.image_size == 64
    for name in (*SETS, "folder", "cifar10"):
        found = from_config(load(path, f"{name},fraction=10", monkeypatch))
        assert found.data == dataclasses.replace(whole.data, name=name, fraction=0.1)
        assert dataclasses.replace(found, data=whole.data) == whole
    small = from_config(load(path, "small,folder", monkeypatch))
    assert small.data.name == "folder" and small.data.image_size == 64
    assert small.flow.image_size == 32 and small.model == whole.model
    for spec in (small.augment.train, small.synthetic.strong):
        augment.make(spec, image_shape=(64, 64, 3))
    augment.make(small.flow.augment, image_shape=(32, 32, 3))


@every_config
def test_no_shipped_finder_is_without_a_bound(path, monkeypatch):
    few = [] if "cifar10" not in path.stem or path.stem.split("_")[0] in FLOWS else ["few"]
    for option in (None, "runlocal", *few):
        meta = from_config(load(path, option, monkeypatch)).meta
        assert not meta.enabled or 0 < meta.radius <= 0.3  # the spread is above 0.8 at 0.3


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


@pytest.mark.parametrize(
    ("file", "option", "message"),
    [
        ("base_cifar10", "runlocl", "'runlocl'; base on cifar10 has runlocal, middle, few"),
        ("mgr_digits", "few", "mgr on digits has runlocal. The recipe of digits has few labels"),
        ("pcr_fashion_mnist", "few", "pcr on fashion_mnist has runlocal.*50 per class"),
        ("glow_cifar10", "few", "glow on cifar10 has runlocal, middle.*trained on all images"),
        ("glow_digits", "middle", "glow on digits has runlocal"),
        ("mgr_photographs", "dogs", "mgr on pets has runlocal, small, fraction, cars, aircraft"),
    ],
)
def test_an_unknown_option_is_refused_with_those_there_are(file, option, message, monkeypatch):
    with pytest.raises(ValueError, match=f"unknown config option.*{message}"):
        load(CONFIGS / f"{file}.py", option, monkeypatch)


@pytest.mark.parametrize("option", ["fraction", "fraction=ten", "small=3", "pets=1"])
def test_options_with_and_without_a_value(option, monkeypatch):
    with pytest.raises(ValueError, match=f"config option.*{option}|unknown"):
        load(CONFIGS / "base_photographs.py", option, monkeypatch)


@pytest.mark.parametrize("option", [None, "few"])
def test_one_flow_serves_the_methods_that_draw_from_it(option, monkeypatch):
    """The flow's settings and its training images are what `config.flow.workdir` is checked for."""
    for methods in (
        ("gda", "pcr", "mgr", "phantom_mgr"),
        ("latent_random", "latent_away", "latent_adversarial", "phantom_latent", "latent_mgr",
         "combined"),
    ):  # fmt: skip
        settings = [
            from_config(load(CONFIGS / f"{method}_cifar10.py", option, monkeypatch))
            for method in methods
        ]
        assert all(s.uses_flow for s in settings)
        assert len({(s.flow, s.data, s.seed) for s in settings}) == 1


@pytest.mark.parametrize("method", METHODS)
def test_few_is_the_recipe_for_few_labels(method, monkeypatch):
    path = CONFIGS / f"{method}_cifar10.py"
    whole = from_config(load(path, monkeypatch=monkeypatch))
    few = from_config(load(path, "few", monkeypatch))
    assert few.data.per_class == 100 and few.data.fraction == 1
    synthetic = dataclasses.replace(whole.synthetic, source="interpolated")
    assert few.synthetic == synthetic and few.phantom == whole.phantom
    assert few.latent == whole.latent and few.meta.enabled == whole.meta.enabled
    # The same recipe for every method, of fewer updates and stronger regularisation.
    base = from_config(load(CONFIGS / "base_cifar10.py", "few", monkeypatch))
    for group in ("data", "model", "augment", "optimizer", "train", "flow"):
        assert getattr(few, group) == getattr(base, group)
    updates = lambda s: s.train.epochs * s.train.steps_per_epoch
    assert updates(few) < updates(whole) and few.flow.updates < whole.flow.updates
    assert few.optimizer.weight_decay > whole.optimizer.weight_decay
    assert few.train.batch_size < whole.train.batch_size <= 10 * few.data.per_class
    assert few.train.balanced and few.train.batch_size % 10 == 0
    assert few.flow.width < whole.flow.width and few.flow.dropout > 0
    assert 50 < few.flow.updates * few.flow.batch_size / 1000 < 200  # passes
    augment.make(few.augment.train, image_shape=IMAGE_SHAPES["cifar10"])
    augment.make(few.flow.augment, image_shape=IMAGE_SHAPES["cifar10"])
    local = from_config(load(path, "few,runlocal", monkeypatch))
    assert updates(local) <= 100 and local.flow.updates <= 100


@pytest.fixture
def config_costs(monkeypatch):
    """`benchmarks/config_costs.py`."""
    path = CONFIGS.parent / "benchmarks" / "config_costs.py"
    spec = importlib.util.spec_from_file_location("config_costs", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.syspath_prepend(str(CONFIGS.parent))
    spec.loader.exec_module(module)
    return module


def test_the_costs_in_the_headers_are_those_of_the_results(config_costs, monkeypatch):
    rows = json.loads(COSTS.read_text())["configs"]
    assert set(rows) == {path.stem for path in FILES if path.stem.endswith("_cifar10")}
    for name, row in rows.items():
        path = CONFIGS / f"{name}.py"
        header = " ".join(ast.get_docstring(ast.parse(path.read_text())).split())
        assert f"Cost: {config_costs.sentence(row)}." in header, name
        settings = from_config(load(path, monkeypatch=monkeypatch))
        train, flow = settings.train, settings.flow
        if not settings.flow_only:
            assert row["classifier"]["updates"] == train.epochs * train.steps_per_epoch
        if settings.uses_flow or settings.flow_only:
            assert row["flow"]["updates"] == flow.updates
            assert row["flow"]["batch_size"] == flow.batch_size
    # The generator's training costs about what the classifier's does.
    row = rows["mgr_cifar10"]
    assert 1 / 3 < row["flow"]["training"] / row["classifier"]["training"] < 3
    assert row["flow"]["passes"] > 100


def test_the_costs_of_mgr_are_those_of_its_results_and_of_its_convolutions(
    config_costs, monkeypatch
):
    settings = from_config(load(CONFIGS / "mgr_cifar10.py", monkeypatch=monkeypatch))
    row = config_costs.costs(settings)
    stored = json.loads(COSTS.read_text())["configs"]["mgr_cifar10"]
    for part in ("classifier", "flow"):
        assert row[part]["parameters"] == stored[part]["parameters"]
        assert row[part]["training"] == pytest.approx(stored[part]["training"], rel=0.05)
    flow = settings.flow
    macs = 0
    for level in range(flow.levels):
        side, channels = 32 // 2 ** (level + 1), 12 * 2**level
        thin = 9 * (channels // 2 * flow.width + flow.width * channels)
        macs += flow.steps * side**2 * (thin + flow.width**2 + channels**2)
    assert row["flow"]["decode"] == pytest.approx(2 * macs, rel=0.05)
    assert row["flow"]["update"] == pytest.approx(3 * flow.batch_size * 2 * macs, rel=0.05)
    # ResNet-18 with the CIFAR stem. XLA leaves out the products with padding.
    inside = {32: (94 / 96) ** 2, 16: (46 / 48) ** 2, 8: (22 / 24) ** 2, 4: (10 / 12) ** 2}
    convolutions = [(32, 3, 64, 9)] + [(32, 64, 64, 9)] * 4
    for side, width in ((16, 128), (8, 256), (4, 512)):
        convolutions += [(side, width // 2, width, 9), (side, width // 2, width, 1)]
        convolutions += [(side, width, width, 9)] * 3
    macs = sum(
        side**2 * a * b * k * (inside[side] if k == 9 else 1) for side, a, b, k in convolutions
    )
    assert row["classifier"]["update"] == pytest.approx(3 * 128 * 2 * macs, rel=0.05)
    assert math.isclose(row["classifier"]["updates"] * 128 / 45_000, 200, rel_tol=0.01)


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
