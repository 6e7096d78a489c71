"""Learned strengths: their hypergradients against differences, their range, and a run with them."""

import dataclasses
import functools
import json
import math
import shlex
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import genreg_jax as gr
from genreg_jax import augment, build
from genreg_jax.batches import BatchPlan
from genreg_jax.config import config_hash, default_config, from_config
from genreg_jax.contract import Batch, to_float
from genreg_jax.errors import ConfigError, UserError
from genreg_jax.learned import LEARNABLE, as_overrides, learned, learned_in_words
from genreg_jax.optimizers import make_optimizer
from genreg_jax.report.charts import panel_of
from genreg_jax.settings import OptimizerSettings, Settings
from genreg_jax.strengths import calibrated_cross_entropy

CLASSES, SHAPE = 3, (8, 8, 1)
# Of each strength the settings that turn it on, at a value where it moves the outer loss.
PARTS = {
    "phantom.weight": {"phantom": {"loss": "attraction", "weight": 0.7}},
    "synthetic.weight": {
        "synthetic": {"loss": "pcr", "weight": 0.8, "strong": "crop(2)", "batch_size": 10}
    },
    "latent.epsilon": {"latent": {"kind": "random", "epsilon": 2.0}},
    "augment.magnitude": {"augment": {"train": "randaugment(2,9)"}},
    "augment.label_smoothing": {"augment": {"label_smoothing": 0.2}},
    "optimizer.weight_decay": {"optimizer": {"weight_decay": 0.05}},
}
COMMON = {
    "model": {"widths": [4]},
    "optimizer": {"name": "sgd", "learning_rate": 0.3, "weight_decay": 0.01},
    "flow": {"levels": 1, "steps": 1, "width": 4},
    "train": {"batch_size": 12, "epochs": 2, "steps_per_epoch": 3, "progress": False},
}


def merged(*configs):
    found = {}
    for config in configs:
        for group, values in config.items():
            found[group] = {**found.get(group, {}), **values}
    return found


def images(count, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    pixels = rng.integers(0, 120, (count, *SHAPE)) + 40 * labels[:, None, None, None]
    return pixels.astype(np.uint8), labels.astype(np.int32)


@pytest.fixture(scope="module")
def dataset():
    return gr.data.from_arrays(*images(60, 0), *images(20, 1), validation_fraction=0.3)


@pytest.fixture(scope="module")
def frozen(dataset):
    flow = gr.flows.glow(SHAPE, levels=1, steps=1, width=4, num_classes=CLASSES)
    x = to_float(jnp.asarray(dataset.train.images[:8]))
    return flow, flow.init(jax.random.key(5), x, jnp.asarray(dataset.train.labels[:8]))


class Made(NamedTuple):
    """The parts of a run, the arguments of their step, and an outer batch."""

    parts: build.Parts
    given: dict
    outer: Batch

    def update(self, state, **changes):
        """The first update of the batches; `changes` are of the step's arguments."""
        given = {**self.given, **changes}
        real = jax.tree.map(lambda x: x[:12], self.parts.train_data)
        outer = self.outer if given["tune"] or given["meta"] else None
        return gr.make_train_step(**given)(state, real, outer, *self.parts.frozen)

    def outer_loss(self, params, loss):
        """As anyone would compute it."""
        outputs, _ = self.parts.model.apply(
            params, self.parts.state.model_state, to_float(self.outer.images), rng=None, train=True
        )
        return loss(outputs.logits, self.outer.labels)


@pytest.fixture(scope="module")
def make(dataset, frozen):
    flow, params = frozen

    def make(config, model=None):
        given, settings = {}, from_config(config)

        def record(model, tx, **options):
            given.update(options, model=model, tx=tx)
            return gr.make_train_step(model, tx, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(build, "make_train_step", record)
            parts = build.parts(
                settings,
                dataset,
                plan=BatchPlan(settings, dataset.train.labels, dataset.validation.labels),
                views=build.views_of(settings, SHAPE),
                model=model,
                generator=gr.flows.as_generator(flow, params),
                flow=flow.freeze(params),
            )
        outer = Batch(*map(jnp.asarray, (dataset.validation.images, dataset.validation.labels)))
        return Made(parts, given, outer)

    return make


def learning(*names, config=None, **tune):
    tune = {"learn": ",".join(names), "outer_loss": "cross_entropy", **tune}
    config = config or merged(COMMON, *(PARTS[name.partition("[")[0]] for name in names))
    return merged(config, {"tune": tune})


def with_value(config, name, value):
    if name == "augment.magnitude":
        return merged(config, {"augment": {"train": f"randaugment(2,{value})"}})
    group, key = name.split(".")
    return merged(config, {group: {key: value}})


def least_cross_entropy(logits, labels):
    """Over a fine grid of temperatures, as the definition says."""
    sharpness = jnp.exp(jnp.linspace(-math.log(8), math.log(8), 4001))[:, None, None]
    log_p = jax.nn.log_softmax(sharpness * logits[None])
    return -jnp.max(jnp.mean(log_p[:, jnp.arange(len(labels)), labels], axis=1))


def cross_entropy(logits, labels):
    log_p = jax.nn.log_softmax(logits)
    return -jnp.mean(log_p[jnp.arange(len(labels)), labels])


def outer_loss_after(make, config, loss=cross_entropy):
    """The outer loss after one update with fixed strengths."""
    made = make(config)
    after = lambda state: made.outer_loss(made.update(state)[0].params, loss)
    return float(jax.jit(after)(made.parts.state))


# An optimiser that leaves everything where it is; its state is what it was given.
READING = optax.GradientTransformation(
    lambda r: r, lambda g, _, r=None: (jax.tree.map(jnp.zeros_like, g), g)
)


@pytest.fixture(scope="module")
def reading(make):
    """`(config) -> (made, state, step)`, with `READING` as the strengths' optimiser."""

    @functools.cache
    def of(text):
        made = make(json.loads(text))
        tune = dataclasses.replace(made.parts.tune, tx=READING)
        state = made.parts.state
        state = dataclasses.replace(state, strengths_opt_state=state.strengths)
        return made, state, jax.jit(lambda state: made.update(state, tune=tune))

    return lambda config: of(json.dumps(config))


def descended(reading, config, updates=0):
    """The hypergradient in `r` after some updates, as the strengths' optimiser is given it."""
    _, state, step = reading(config)
    for _ in range(updates + 1):
        state, _ = step(state)
    return jax.device_get(state.strengths_opt_state)


def differentiated(reading, config, updates=0):
    """The hypergradient by reverse mode through a whole plain step, whose arguments are traced."""
    made, state, step = reading(config)
    for _ in range(updates):
        state, _ = step(state)
    tune = made.parts.tune

    def outer_loss(raw):
        start = dataclasses.replace(state, strengths=(), strengths_opt_state=())
        after, _ = made.update(start, tune=None, **tune.parts(tune.values(raw)))
        return made.outer_loss(after.params, cross_entropy)

    return jax.device_get(jax.jit(jax.grad(outer_loss))(state.strengths))


# All of them in one program. A mix with clean images, since no derivative of the magnitude passes
# through what perturbs.
OF_EACH = ("phantom.weight[class]", "synthetic.weight[class]", "optimizer.weight_decay[layer]")
ALL = merged(COMMON, *PARTS.values(), {"latent": {"mix": 0.5}})


@pytest.mark.parametrize("names", [tuple(PARTS), OF_EACH], ids=["one", "of each"])
def test_the_hypergradient_is_that_of_reverse_mode_through_the_whole_step(names, reading):
    config = learning(*names, config=ALL)
    h, oracle = descended(reading, config), differentiated(reading, config)
    for name in names:
        assert np.abs(h[name]).min() > 1e-7
        np.testing.assert_allclose(h[name], oracle[name], rtol=2e-3, atol=1e-7, err_msg=name)


# Not of the latent radius nor of the magnitude: they move every pixel across kinks of ReLUs, and
# posterising and solarising jump. Their own derivatives have tests beside them.
SMOOTH = [name for name in PARTS if name not in ("latent.epsilon", "augment.magnitude")]


def test_the_hypergradient_is_the_difference_quotient_where_the_step_is_smooth(make, reading):
    """Along all of them at once, each by as much as makes its share the same."""
    tuned = learning(*SMOOTH)
    h = {name: float(value) for name, value in descended(reading, tuned).items()}
    least = min(map(abs, h.values()))
    assert least > 2e-5
    there = []
    for delta in (0.03, -0.03):
        config = {**tuned, "tune": {}}
        for name, strength in learned(from_config(tuned)).items():
            config = with_value(config, name, float(strength.value(delta * least / h[name])))
        there.append(outer_loss_after(make, config))
    assert (there[0] - there[1]) / 0.06 == pytest.approx(len(h) * least, rel=0.05 / len(h))


def test_strengths_that_are_held_are_the_fixed_step(make, reading):
    """To the rounding of a program that XLA fuses otherwise; operation by operation bit for bit."""
    fixed = make(ALL)
    state, step = fixed.parts.state, jax.jit(fixed.update)
    _, held, held_step = reading(learning(*PARTS, config=ALL))
    for _ in range(3):
        state, metrics = step(state)
        held, held_metrics = held_step(held)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    for kind in ("params", "model_state", "opt_state", "finder_params"):
        jax.tree.map(close, getattr(state, kind), getattr(held, kind))
    assert float(held_metrics["train/loss"]) == pytest.approx(float(metrics["train/loss"]))
    assert not any(map(jnp.any, held.strengths.values()))


def perceptron():
    """Of fewer operations than a convnet, each of which is compiled by itself; with a state."""

    def apply(params, state, x, *, rng, train):
        embedding = jax.nn.relu(x.reshape(len(x), -1) @ params[0] - state)
        return gr.Outputs(embedding @ params[1], embedding), state + embedding.mean()

    init = lambda key, x: ([normal(0, math.prod(SHAPE), 5), normal(1, 5, CLASSES)], jnp.zeros(()))
    normal = lambda seed, *shape: jnp.asarray(np.random.default_rng(seed).normal(size=shape), "f4")
    return gr.Model(init, apply)


@pytest.mark.parametrize("name", ["phantom.weight", "augment.label_smoothing"])
def test_a_strength_that_is_held_is_the_fixed_step_bit_for_bit_without_fusion(name, make):
    states = []
    for config in (merged(COMMON, PARTS[name]), learning(name, learning_rate=0.0)):
        made = make(config, model=perceptron())
        states.append(made.update(made.parts.state)[0])
    for kind in ("params", "model_state", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, *(getattr(state, kind) for state in states))


def test_a_strength_whose_loss_has_no_part_has_a_hypergradient_of_zero(reading):
    config = merged(learning("phantom.weight"), {"optimizer": {"learning_rate": 0.0}})
    assert float(descended(reading, config)["phantom.weight"]) == 0


@pytest.mark.parametrize(
    ("name", "optimizer"), [*((name, "sgd") for name in OF_EACH), (OF_EACH[-1], "adamw")]
)
def test_strengths_of_each_class_or_layer_add_up_to_that_of_all(name, optimizer, reading):
    base = name.partition("[")[0]
    if optimizer == "sgd":
        configs = (learning(*names, config=ALL) for names in (PARTS, OF_EACH))
    else:
        own = {"optimizer": {"name": optimizer, "weight_decay": 0.5}}
        configs = (merged(learning(n), own) for n in (base, name))
    whole, each = (descended(reading, config) for config in configs)
    each, layers = each[name], 2
    assert each.shape == ((layers,) if name.endswith("[layer]") else (CLASSES,))
    np.testing.assert_allclose(each.sum(), whole[base], rtol=1e-4)
    assert np.ptp(each) > 1e-6


def test_a_classifier_without_weights_has_no_decay_of_each():
    with pytest.raises(ConfigError, match="but the classifier has no weights"):
        learned(from_config(learning("optimizer.weight_decay[layer]")), num_layers=0)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_each_weight_has_its_own_decay_in_the_order_of_the_parameters(name):
    """A gradient of zero: what is left of an update is the decay."""
    settings = OptimizerSettings(name=name, momentum=0.0, nesterov=False, weight_decay=0.1)
    params = {"z": jnp.full((2, 2), 4.0), "b": jnp.ones(2), "a": {"kernel": jnp.full((1, 3), 3.0)}}
    tx = make_optimizer(settings, lambda step: 0.5, weight_decay=jnp.array([0.01, 0.2]))
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zero, tx.init(params), params)
    if name == "adam":  # each entry of a first step has the length of the rate
        expected = {"z": -0.5, "b": 0.0, "a": -0.5}
    else:
        expected = {"z": -0.5 * 0.2 * 4, "b": 0.0, "a": -0.5 * 0.01 * 3}
    for key, value in expected.items():
        for leaf in jax.tree.leaves(updates[key]):
            np.testing.assert_allclose(leaf, value, rtol=1e-5)


def test_one_hypergradient_serves_the_finder_and_the_strengths(make, reading):
    finder = {"meta": {"enabled": True, "radius": 0.3, "outer": "train", "hidden": [5]}}
    tuned = learning("synthetic.weight", "phantom.weight")
    made = make(merged({**tuned, "tune": {}}, finder))
    after, metrics = jax.jit(made.update)(made.parts.state)
    _, both, step = reading(merged(tuned, finder))
    both, both_metrics = step(both)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6)
    jax.tree.map(close, both.finder_params, after.finder_params)
    assert float(both_metrics["train/search_gain"]) == pytest.approx(
        float(metrics["train/search_gain"]), rel=1e-3, abs=1e-7
    )
    # With an untouched residual finder the samples are the draws, so the term is that of PCR.
    for name, h in descended(reading, tuned).items():
        assert abs(h) > 1e-5
        np.testing.assert_allclose(both.strengths_opt_state[name], h, rtol=1e-4)


def test_the_calibrated_loss_is_the_least_of_all_temperatures():
    rng = np.random.default_rng(0)
    for scale in (0.3, 1.0, 4.0):
        logits = jnp.asarray(scale * rng.normal(size=(50, 4)), jnp.float32)
        labels = jnp.asarray(np.where(rng.uniform(size=50) < 0.5, logits.argmax(1), 2), jnp.int32)
        value, slope = jax.value_and_grad(calibrated_cross_entropy)(logits, labels)
        oracle = jax.value_and_grad(least_cross_entropy)(logits, labels)
        assert float(value) == pytest.approx(float(oracle[0]), abs=1e-6)
        np.testing.assert_allclose(slope, oracle[1], atol=2e-4 / scale)
        # The derivative in the scale of all logits is zero there.
        assert scale != 1 or abs(float(jnp.vdot(slope, logits))) < 1e-4
        if scale == 1:  # else T may come to its end
            scaled = float(calibrated_cross_entropy(3 * logits, labels))
            assert scaled == pytest.approx(float(value), abs=1e-5)
    right = 5 * jax.nn.one_hot(labels, 4)  # separable: the lowest temperature
    value, slope = jax.value_and_grad(calibrated_cross_entropy)(right, labels)
    assert 0 <= float(value) < 1e-6 and np.isfinite(slope).all()


def test_the_calibrated_loss_is_of_each_device_and_of_wide_numbers():
    logits, labels = jax.random.normal(jax.random.key(1), (8, 3)), jnp.arange(8) % 3
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    run = jax.shard_map(
        lambda logits, labels: jax.lax.pmean(calibrated_cross_entropy(logits, labels), "d"),
        mesh=mesh, in_specs=(P("d"), P("d")), out_specs=P(),
    )  # fmt: skip
    halves = [calibrated_cross_entropy(logits[i : i + 4], labels[i : i + 4]) for i in (0, 4)]
    np.testing.assert_allclose(jax.jit(run)(logits, labels), np.mean(halves), rtol=1e-5)
    narrow = logits.astype(jnp.bfloat16)
    found = calibrated_cross_entropy(narrow, labels)
    assert found.dtype == jnp.float32
    assert found == calibrated_cross_entropy(narrow.astype(jnp.float32), labels)


def test_the_hypergradient_of_the_calibrated_loss_is_its_derivative(make, reading):
    name, delta = "phantom.weight", 0.1
    h = float(descended(reading, learning(name, outer_loss="calibrated"))[name])
    assert abs(h - float(descended(reading, learning(name))[name])) > 1e-5
    config = merged(COMMON, PARTS[name])
    there = [
        outer_loss_after(
            make, with_value(config, name, 0.7 * math.exp(r)), loss=least_cross_entropy
        )
        for r in (delta, -delta)
    ]
    assert h == pytest.approx((there[0] - there[1]) / (2 * delta), rel=0.05)


def test_shuffled_outer_labels_give_another_hypergradient(reading):
    name = "phantom.weight"
    true = descended(reading, learning(name))[name]
    shuffled = descended(reading, learning(name, outer_labels="shuffled"))[name]
    assert abs(float(true - shuffled)) > 1e-5


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_weight_decay_is_learned_through_every_optimiser(optimizer, reading):
    name = "optimizer.weight_decay"
    config = merged(
        learning(name, learning_rate=0.0), {"optimizer": {"name": optimizer, "learning_rate": 0.01}}
    )
    # Adam's first step is a sign, which no decay changes.
    h = descended(reading, config, updates=3)[name]
    assert abs(h) > 1e-6
    oracle = differentiated(reading, config, updates=3)[name]
    np.testing.assert_allclose(h, oracle, rtol=2e-3, atol=1e-7)


def test_a_step_with_learned_strengths_wants_an_outer_batch(make):
    made = make(learning("phantom.weight"))
    with pytest.raises(ValueError, match="outer is None"):
        jax.eval_shape(made._replace(outer=None).update, made.parts.state)


@pytest.mark.parametrize("spec", ["randaugment(2,1.2.3)", "randaugment(2,1e-3)", "randaugment(,5)"])
def test_an_augmentation_that_does_not_parse_is_said_in_its_own_words(spec):
    with pytest.raises(UserError, match="takes at most 2 numbers in its"):
        from_config({"augment": {"train": spec}, "tune": {"learn": "augment.magnitude"}})


def test_a_state_without_the_strengths_of_the_step_is_named(make):
    made = make(learning("phantom.weight"))
    state, tune = made.parts.state, made.parts.tune
    with pytest.raises(ValueError, match=r"state\.strengths is .*TrainState\.create the same tune"):
        made.update(dataclasses.replace(state, strengths=()))
    with pytest.raises(ValueError, match=r"tune\.parts returned None; allowed: a dict"):
        made.update(state, tune=dataclasses.replace(tune, parts=lambda values: None))


def test_the_report_says_what_nothing_moved_and_what_no_setting_has():
    config = {"phantom": {"loss": "attraction", "weight": 2.0}, "optimizer": {"weight_decay": 0.1}}
    settings = from_config(
        {**config, "tune": {"learn": "phantom.weight[class],optimizer.weight_decay"}}
    )
    decay = float(np.float32(0.1))
    values = {"phantom.weight[class]": [1.0, 3.0], "optimizer.weight_decay": decay}
    (text,) = learned_in_words(settings, values, "python x.py --workdir=a")
    assert "phantom.weight[class] from 2, between 1 and 3 now" in text
    assert "Nothing moved optimizer.weight_decay" in text
    assert text.endswith("--workdir=NEW --config.optimizer.weight_decay=0.1 --config.tune.learn=")
    alone = from_config({**config, "tune": {"learn": "phantom.weight[class]"}})
    (text,) = learned_in_words(alone, {"phantom.weight[class]": [1.0, 3.0]}, "python x.py")
    assert (
        text.endswith("No setting has a strength of each class or layer.") and "fixed" not in text
    )
    (text,) = learned_in_words(
        settings, values, "python x.py -workdir old -config.optimizer.weight_decay=9"
    )
    assert "python x.py --workdir=NEW --config." in text
    assert learned_in_words(alone, None, "python x.py") == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("augment.label_smoothing", 0.99999994),
        ("phantom.weight", 999999.9),
        ("phantom.weight", 1e-9),
    ],
)
def test_a_strength_at_its_end_is_a_setting_still(name, value):
    (flag, _) = as_overrides(Settings(), {name: value})
    group, key = name.split(".")
    number = float(flag.partition("=")[2])
    from_config({group: {key: number}})
    assert number == pytest.approx(value, rel=2e-5) and 0 < number <= value


def test_parts_that_a_step_does_not_take_are_named():
    model = gr.models.make("convnet", num_classes=3, widths=(4, 4))
    tune = gr.Tune({"w": gr.Strength(1.0)}, lambda v: {"weight": v["w"]}, optax.sgd(0.1))
    step = gr.make_train_step(model, optax.sgd(0.1), num_classes=3, augment=lambda k, x: x,
                              tune=tune)  # fmt: skip
    params, model_state = model.init(jax.random.key(0), jnp.zeros((1, *SHAPE)))
    state = gr.TrainState.create(params, model_state, optax.sgd(0.1), jax.random.key(1), tune=tune)
    with pytest.raises(ValueError, match=r"tune\.parts returned weight; allowed: tx, augment"):
        step(state, Batch(jnp.zeros((4, *SHAPE)), jnp.arange(4) % 3))


# ----------------------------------------------------------------------------------------- range


@pytest.mark.parametrize(("start", "upper"), [(0.3, math.inf), (0.3, 1.0), (7.25, 30.0)])
def test_a_strength_starts_where_it_is_and_stays_in_its_range(start, upper):
    strength = gr.Strength(start, upper)
    assert float(strength.value(strength.raw())) == np.float32(start)
    r = jnp.linspace(-5.0, 5.0, 41)
    values = np.asarray(strength.value(r), np.float64)
    assert (np.diff(values) > 0).all() and (values > 0).all() and (values < upper).all()
    odds = values / (1 - values / upper)  # a closed form: r moves the logarithm of the odds
    np.testing.assert_allclose(np.log(odds / odds[20]), r, rtol=2e-4, atol=1e-5)
    far = strength.held(jnp.array([-100.0, 100.0]))
    np.testing.assert_allclose(far, [-math.log(1000), math.log(1000)], rtol=1e-6)
    assert 0 < float(strength.value(far[0])) < float(strength.value(far[1])) < upper


@pytest.mark.parametrize(
    ("start", "upper"), [(1.1e-34, math.inf), (0.9999999, 1.0), (29.99999, 30.0)]
)
def test_the_ends_of_a_range_are_not_reached_in_float32(start, upper):
    strength = gr.Strength(start, upper)
    low, high = jax.jit(strength.value)(strength.held(jnp.array([-100.0, 100.0])))
    assert 0 < float(low) < float(high) < upper
    assert float(jax.jit(strength.value)(0.0)) == np.float32(start)


@pytest.mark.parametrize(
    "start",
    [0.0, -1.0, math.nan, math.inf, [0.1, 0.0], [[1.0]], [], True, "a", 1j, None, 1e300, 1e-35],
)
def test_a_start_that_no_factor_moves_is_refused(start):
    with pytest.raises(ValueError, match="start is .* allowed: finite float32 numbers above 1e-34"):
        gr.Strength(start)
    with pytest.raises(ValueError, match="below 1"):
        gr.Strength(1.0, upper=1.0)
    with pytest.raises(ValueError, match="below 1"):
        gr.Strength(1 - 1e-9, upper=1.0)
    for upper in (0.0, "x", None, [1, 2], math.nan):
        with pytest.raises(ValueError, match="upper is .* allowed: a number above 0, or inf"):
            gr.Strength(0.5, upper=upper)
    assert np.isfinite(gr.Strength(0.1, upper=1.0).value(jnp.array([1e4, -1e4]))).all()


# ---------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("learn", "config", "words"),
    [
        ("phantom.wieght", {}, ["'phantom.wieght'", *LEARNABLE]),
        ("optimizer.weight_decay[class]", {}, ["cannot be learned"]),
        ("phantom.weight", {}, ["needs a config.phantom.loss"]),
        ("latent.epsilon", {}, ["needs a config.latent.kind"]),
        ("augment.magnitude", {}, ["needs a randaugment"]),
        ("augment.label_smoothing", {}, ["that is 0", "above 1e-34 and below 1"]),
        (
            "augment.magnitude",
            {"augment": {"train": "randaugment(2,5)+randaugment(1,20)"}},
            ["a randaugment", "one only"],
        ),
        (
            "augment.magnitude",
            {"augment": {"train": "randaugment(2,5)"}, "latent": {"kind": "random"}},
            ["no derivative passes through what perturbs"],
        ),
        (
            "synthetic.weight[class]",
            {"synthetic": {"loss": "pcr"}, "flow": {"conditional": False}},
            ["of no class"],
        ),
        (",", {}, ["names ''"]),
        ("augment.label_smoothing", {"augment": {"label_smoothing": 1 - 1e-9}}, ["below 1"]),
        (
            "phantom.weight",
            {"phantom": {"loss": "attraction", "weight": 1e-38}},
            ["that is 1e-38", "above 1e-34"],
        ),
        (
            "phantom.weight",
            {"phantom": {"loss": "attraction", "weight": 0.0}},
            ["that is 0", "no factor"],
        ),
        (
            "phantom.weight, phantom.weight[class]",
            {"phantom": {"loss": "attraction"}},
            ["twice"],
        ),
        ("latent.epsilon", {"latent": {"kind": "interpolation", "epsilon": 1.0}}, ["below 1"]),
        ("optimizer.weight_decay", {"model": {"name": "none"}}, ["no class"]),
        ("", {"tune": {"outer": "elsewhere"}}, ["config.tune.outer must be one of"]),
    ],
)
def test_what_cannot_be_learned_is_said(learn, config, words):
    with pytest.raises(ConfigError) as error:
        from_config(merged(config, {"tune": {"learn": learn}} if learn else {}))
    for word in words:
        assert word in str(error.value)


def test_an_outer_split_that_leaves_a_class_empty_is_refused():
    settings = from_config(learning("phantom.weight", outer="folds"))
    with pytest.raises(UserError, match=r"config\.tune\.outer = 'folds' needs at least 5"):
        BatchPlan(settings, np.repeat([0, 1], [40, 4]))
    none = from_config(learning("phantom.weight"))
    with pytest.raises(UserError, match=r"config\.tune\.outer = 'validation', and there are no"):
        BatchPlan(none, np.repeat([0, 1], 20))


def test_outer_batches_are_of_the_validation_images_which_no_inner_one_sees(dataset):
    settings = from_config(learning("phantom.weight"))
    n, v = len(dataset.train.labels), len(dataset.validation.labels)
    indices = BatchPlan(settings, dataset.train.labels, dataset.validation.labels).epoch(0)
    assert set(indices.inner.ravel()) <= set(range(n))
    assert set(indices.outer.ravel()) == set(range(n, n + v))
    fixed = from_config(merged(COMMON, PARTS["phantom.weight"]))
    np.testing.assert_array_equal(
        indices.inner, BatchPlan(fixed, dataset.train.labels).epoch(0).inner
    )


def test_settings_that_learn_nothing_keep_published_hashes():
    assert config_hash(Settings()) == config_hash(from_config({"tune": {"learn": ""}}))
    other = from_config({"tune": {"learn": "optimizer.weight_decay"}})
    assert config_hash(Settings()) != config_hash(other)


def test_learned_strengths_as_settings_are_settings():
    config = default_config()
    config.augment.train = "flip + randaugment(1,5)+cutout(2)"
    settings = from_config(config)
    flags = as_overrides(
        settings, {"augment.magnitude": 7.123456, "phantom.weight": 1.5e-5, "x.y[class]": [1.0]}
    )
    assert flags == [
        "--config.augment.train=flip+randaugment(1,7.12346)+cutout(2)",
        "--config.phantom.weight=1.5e-05",
        "--config.tune.learn=",
    ]
    augment.make(flags[0].partition("=")[2], image_shape=(8, 8, 1))


# ------------------------------------------------------------------------------------------ runs


def test_a_run_learns_says_what_and_continues_and_its_command_has_it_fixed(dataset, tmp_path):
    names = "phantom.weight", "augment.label_smoothing", "optimizer.weight_decay"
    config = learning(*names)
    command = (
        "python -m genreg_jax.main --config=mine.py --workdir 'over there' "
        "--config.phantom.weight=0.7 --config.seed=0"
    )
    whole = gr.train_and_evaluate(config, tmp_path / "a", dataset=dataset, command=command)
    steps = []

    def leave(step, metrics):
        steps.append(step)
        if steps == [3, 6]:  # the first epoch is saved
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gr.train_and_evaluate(config, tmp_path / "b", dataset=dataset, callbacks=[leave])
    continued = gr.train_and_evaluate(config, tmp_path / "b", dataset=dataset, callbacks=[leave])
    assert steps == [3, 6, 6] and continued["strengths"] == whole["strengths"]
    a, b = ((tmp_path / name / "metrics.jsonl").read_text(encoding="utf-8") for name in ("a", "b"))
    assert a == b
    last = json.loads(a.splitlines()[-1])
    assert {panel_of(name) for name in last if "/strength/" in name} == {"Learned strengths"}
    page = (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    values = whole["strengths"]
    assert set(values) == set(names) and "Learned strengths" in page
    flags = as_overrides(from_config(config), values)
    for flag in flags:
        assert shlex.quote(flag).split("=")[0] in page
    assert f"phantom.weight from 0.7 to {values['phantom.weight']:.4g}" in page
    words = "python -m genreg_jax.main --config=mine.py --workdir=NEW --config.seed=0 --config."
    assert words in page
    # The same with the flags of the command that it prints.
    assert values["phantom.weight"] != 0.7
    fixed = default_config()
    fixed.update(config)
    for flag in flags:
        key, _, text = flag.removeprefix("--config.").partition("=")
        group, name = key.split(".")
        fixed[group][name] = float(text) if text else ""
    summary = gr.train_and_evaluate(fixed, tmp_path / "c", dataset=dataset)
    assert summary["strengths"] is None
    assert "train/strength/phantom.weight" not in (tmp_path / "c/metrics.jsonl").read_text()
