"""The programs of the shipped methods are made for GPUs and TPUs, shown without one.

Each lowers for both platforms, has no call back to the host, and no custom call but JAX's own.
Compiling the result needs the platform, and is not done here.
"""

import importlib
import os
import re
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest

from genreg_jax import build, models
from genreg_jax.config import from_config
from genreg_jax.contract import to_float
from genreg_jax.epoch import loop_on_device

ROOT = Path(__file__).parents[1]
METHODS = sorted(path.stem.removesuffix("_digits") for path in ROOT.glob("configs/*_digits.py"))
PLATFORMS = ("cuda", "tpu")
# JAX's own: a batch's layout, and random bits on GPUs.
CUSTOM_CALLS = {"Sharding", "cu_threefry2x32_ffi"}


@pytest.fixture
def accelerator(monkeypatch):
    """What decides by backend goes the way of accelerators."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


equations = runpy.run_path(str(ROOT / "benchmarks" / "timing.py"))["equations"]
parts_of = importlib.import_module("experiments.parts").parts_of
SHAPES = {"digits": (8, 8, 1), "fashion_mnist": (28, 28, 1), "cifar10": (32, 32, 3)}


def check(program, *args):
    """Returns the number of equations of the program."""
    traced = jax.jit(program).trace(*args)
    text = traced.lower(lowering_platforms=PLATFORMS).as_text()
    assert "callback" not in text
    calls = set(re.findall(r"custom_call @(\w+)", text))
    assert calls <= CUSTOM_CALLS, calls - CUSTOM_CALLS
    assert "stablehlo.while" in text or "convolution" in text or "dot_general" in text
    return equations(traced.jaxpr.jaxpr)


def epoch_of(method, data="digits", **changes):
    """A method's epoch as accelerators run it, with a flow as it is made, and its arguments."""
    module = importlib.import_module(f"configs.{method}_{data}")
    config = module.get_config("folder,small") if data == "photographs" else module.get_config()
    config.model.pretrained = ""
    config.update_from_flattened_dict(changes)
    parts, indices = few(config)
    args = (parts.state, parts.train_data, indices, parts.frozen, jnp.int32(2))
    return loop_on_device(parts.step, steps=2), *args


def few(config):
    """The parts of a run on 30 random images and the indices of an epoch of two updates."""
    config.train.batch_size = config.synthetic.batch_size = 20
    config.train.steps_per_epoch, config.train.epochs = 2, 1
    side = config.data.image_size
    shape = SHAPES.get(config.data.name, (side, side, 3))
    return parts_of(from_config(config), shape, images=40, validation_fraction=0.25)


# Of an epoch with one body for the steps of a level and for those of an attack: the time to
# compile a program goes with it. Whoever changes one by much sees it here.
EQUATIONS = {
    "base": 946, "phantom": 1102, "gda": 1537, "pcr": 1881, "mgr": 5331, "pgd": 1498,
    "latent_random": 1225, "latent_away": 1210, "latent_adversarial": 1777, "combined": 6318,
}  # fmt: skip
PAIRS = {"phantom_latent", "phantom_mgr", "latent_mgr"}  # parts of `combined`, none of their own


@pytest.mark.parametrize("method", EQUATIONS)
def test_an_epoch_of_every_method_lowers(method, accelerator):
    assert check(*epoch_of(method)) == pytest.approx(EQUATIONS[method], rel=0.15)


def test_every_method_is_among_them():
    assert {*EQUATIONS, *PAIRS, "glow", "realnvp"} == set(METHODS)


OTHERS = [
    (method, data)
    for data in ("fashion_mnist", "cifar10", "photographs")
    for method in [*EQUATIONS, *sorted(PAIRS)]
    if (ROOT / "configs" / f"{method}_{data}.py").exists()
]


@pytest.mark.parametrize(("method", "data"), OTHERS)
def test_an_epoch_of_every_shipped_config_lowers(method, data, accelerator):
    if method != "combined" and not os.environ.get("GENREG_LOWER_ALL"):
        pytest.skip("its parts are those of combined; GENREG_LOWER_ALL=1 lowers every config")
    check(*epoch_of(method, data))


def test_neither_the_depth_of_a_flow_nor_the_steps_of_an_attack_make_a_program_larger(accelerator):
    counts = []
    for depth, attack in ((2, 2), (5, 6)):
        changes = {"flow.steps": depth, "latent.num_steps": attack}
        program, *args = epoch_of("latent_adversarial", **changes)
        counts.append(equations(jax.jit(program).trace(*args).jaxpr.jaxpr))
    assert counts[0] == counts[1]


def test_an_epoch_with_learned_strengths_lowers(accelerator):
    names = "phantom.weight,synthetic.weight,latent.epsilon,optimizer.weight_decay"
    check(*epoch_of("combined", **{"tune.learn": names}))


@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_a_gradient_of_every_classifier_lowers(name, accelerator):
    """At the size of fine-tuning, float32 and bfloat16."""
    x = jax.ShapeDtypeStruct((4, 64, 64, 3), jnp.float32)
    init = models.make(name, num_classes=10).init
    params, model_state = jax.eval_shape(init, jax.random.key(0), x)
    for dtype in ("float32", "bfloat16"):
        model = models.make(name, num_classes=10, dtype=dtype)

        def gradient(params, model_state, x):
            def loss(params):
                outputs, new = model.apply(params, model_state, x, rng=None, train=True)  # noqa: B023
                return -jnp.mean(jax.nn.log_softmax(outputs.logits)[:, 0]), new

            return jax.grad(loss, has_aux=True)(params)

        check(gradient, params, model_state, x)


def test_predictions_lower(accelerator):
    config = importlib.import_module("configs.base_digits").get_config()
    parts, _ = few(config)
    predict = lambda params, model_state, x: parts.model.apply(
        params, model_state, to_float(x), rng=None, train=False
    )[0]
    check(predict, parts.state.params, parts.state.model_state, parts.train_data.images)


@pytest.mark.parametrize("method", ["glow", "realnvp"])
@pytest.mark.parametrize("data", ["digits", "cifar10"])
def test_an_update_and_samples_of_every_flow_lower(method, data, accelerator):
    settings = from_config(importlib.import_module(f"configs.{method}_{data}").get_config())
    shape = {"digits": (8, 8, 1), "cifar10": (32, 32, 3)}[data]
    flow = build.flow_of(settings.flow, shape, 10)
    x = jax.ShapeDtypeStruct((4, *shape), jnp.float32)
    y = jax.ShapeDtypeStruct((4,), jnp.int32) if flow.num_classes else None
    params = jax.eval_shape(flow.init, jax.random.key(0), x, y)
    tx = optax.adam(1e-3)

    def update(params, x, y):
        loss = lambda params: -jnp.mean(flow.log_prob(params, x, y))
        updates, _ = tx.update(jax.grad(loss)(params), tx.init(params))
        return optax.apply_updates(params, updates)

    check(update, params, x, y)
    check(lambda params, z, y: flow.freeze(params).decode(z, y), params, x, y)
