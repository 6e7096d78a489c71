"""Latent perturbations in the training step and in a run: reductions, and what they leave alone."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import genreg_jax as gr
from genreg_jax import train
from genreg_jax.config import from_config
from genreg_jax.contract import Batch
from genreg_jax.objective import make_train_step
from genreg_jax.regularizers.latent import perturbation
from genreg_jax.regularizers.latent_training import Latent
from genreg_jax.state import TrainState

SHAPE, CLASSES, BATCH = (8, 8, 1), 3, 12


@pytest.fixture(scope="module")
def parts():
    """A convnet with BatchNorm, a batch, a flow and the plain step."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.integers(40, 216, (BATCH, *SHAPE), np.uint8))
    labels = jnp.asarray(rng.integers(0, CLASSES, BATCH), jnp.int32)
    model = gr.models.make("convnet", num_classes=CLASSES, widths=(4,))
    params, model_state = jax.jit(model.init)(jax.random.key(1), jnp.zeros((1, *SHAPE)))
    tx = optax.sgd(0.1, momentum=0.9)
    state = TrainState(
        jnp.int32(3), params, model_state, tx.init(params), (), (), jax.random.key(2)
    )
    flow = gr.flows.glow(SHAPE, levels=1, steps=1, width=4, num_classes=CLASSES)
    frozen = flow.freeze(jax.jit(flow.init)(jax.random.key(3), images / 255.0, labels))
    parts = SimpleNamespace(
        model=model, tx=tx, state=state, batch=Batch(images, labels), frozen=frozen
    )
    parts.plain = run(parts)
    return parts


def latent_of(kind, *, labels="predicted", mix=0.0, after=lambda key, x: x, **options):
    options = {"epsilon": 0.5, "num_steps": 2, **options}
    return Latent(perturbation(kind, **options), labels, mix, after)


def run(parts, latent=None, *, model=None, batch=None, state=None):
    step = make_train_step(
        model or parts.model, parts.tx, num_classes=CLASSES, augment=lambda key, x: x,
        latent=latent,
    )  # fmt: skip
    return jax.jit(step)(state or parts.state, batch or parts.batch, None, (), parts.frozen)


def assert_same(a, b, **tolerance):
    compare = np.testing.assert_allclose if tolerance else np.testing.assert_array_equal
    jax.tree.map(lambda x, y: compare(x, y, **tolerance), a, b)


def weights(result):
    state, _ = result
    return state.params, state.model_state, state.opt_state


# ---------------------------------------------------------------------------------------- the step


@pytest.mark.parametrize("kind", ["away", "adversarial", "pgd"])
def test_radius_zero_is_the_clean_step_to_the_rounding_of_the_flow(parts, kind):
    zero = run(parts, latent_of(kind, epsilon=0.0, step_size=0.1))
    assert_same(weights(zero), weights(parts.plain), atol=2e-6)


@pytest.mark.parametrize("kind", ["adversarial", "interpolation"])
def test_ratio_zero_is_the_clean_step_and_its_statistics(parts, kind):
    # The attack runs, and nothing of it is used: the forward passes it made left no trace.
    off = run(parts, latent_of(kind, ratio=0.0))
    assert_same(off[0].model_state, parts.plain[0].model_state, rtol=1e-6, atol=1e-7)
    assert_same(weights(off), weights(parts.plain), atol=1e-6)


def counting(parts, seen):
    """The model, with its passes counted in its state and their images recorded."""

    def apply(params, model_state, x, *, rng, train):
        assert train
        seen.append(x)
        outputs, inner = parts.model.apply(params, model_state["model"], x, rng=rng, train=train)
        return outputs, {"model": inner, "passes": model_state["passes"] + 1}

    return gr.Model(parts.model.init, apply)


@pytest.mark.parametrize("kind", ["adversarial", "pgd", "random"])
def test_only_the_pass_of_the_loss_updates_the_running_statistics(parts, kind):
    seen = []
    labels = "true" if kind == "random" else "predicted"
    state = TrainState(
        **{**vars(parts.state), "model_state": {"model": parts.state.model_state, "passes": 0}}
    )
    new, _ = run(parts, latent_of(kind, labels=labels), model=counting(parts, seen), state=state)
    # The prediction, the body of the attack's loop and the loss; for random the loss alone.
    assert len(seen) == (1 if kind == "random" else 3) and new.model_state["passes"] == 1


def attacks_seen(parts, labels):
    """The gradient of the attacked loss in the logits, which shows the labels it is taken to."""
    seen = {}

    def perturb(key, flow, loss_fn, x, true, z):
        seen["losses"] = loss_fn(x)
        return x

    step = make_train_step(
        parts.model, parts.tx, num_classes=CLASSES, augment=lambda key, x: x,
        latent=Latent(perturb, labels, 0.0, lambda key, x: x),
    )  # fmt: skip

    @jax.jit
    def found(state, batch):
        x = batch.images / 255.0
        outputs, _ = parts.model.apply(state.params, state.model_state, x, rng=None, train=True)
        _, metrics = step(state, batch, None, (), parts.frozen)
        return jax.nn.log_softmax(outputs.logits), seen["losses"], metrics

    return jax.device_get(found(parts.state, parts.batch))


def test_an_attack_uses_own_predictions_or_the_true_labels_as_asked(parts):
    log_p, losses, metrics = attacks_seen(parts, "predicted")
    np.testing.assert_allclose(losses, -log_p.max(1), rtol=1e-5)
    labels = np.asarray(parts.batch.labels)
    assert np.any(log_p.argmax(1) != labels)
    np.testing.assert_allclose(metrics["train/accuracy"], np.mean(log_p.argmax(1) == labels))
    log_p, losses, _ = attacks_seen(parts, "true")
    np.testing.assert_allclose(losses, -log_p[np.arange(BATCH), labels], rtol=1e-5)


def test_the_loss_is_that_of_the_perturbed_images_or_a_mix_with_the_clean_ones(parts):
    only, mixed = (run(parts, latent_of("pgd", labels="true", mix=mix)) for mix in (0.0, 0.3))
    clean, attacked = (r[1]["train/cross_entropy"] for r in (parts.plain, only))
    assert attacked > clean
    expected = 0.3 * clean + 0.7 * attacked
    np.testing.assert_allclose(mixed[1]["train/cross_entropy"], expected, rtol=1e-5)
    assert_same(mixed[0].model_state, parts.plain[0].model_state, atol=1e-6)
    np.testing.assert_allclose(mixed[1]["train/accuracy"], parts.plain[1]["train/accuracy"])
    assert_same(weights(run(parts, latent_of("pgd", mix=1.0))), weights(parts.plain), atol=1e-6)


def test_augmentation_after_decoding_sees_the_perturbed_images(parts):
    dark = run(parts, latent_of("random", epsilon=0.0, after=lambda key, x: 0.5 * x))
    half = parts.batch._replace(images=parts.batch.images / 510.0)
    assert_same(weights(dark), weights(run(parts, batch=half)), atol=1e-5)


def test_known_latents_are_used(parts):
    batch = parts.batch
    z = jax.jit(parts.frozen.encode)(batch.images / 255.0, batch.labels)
    latent = latent_of("random", epsilon=0.0)
    known = run(parts, latent, batch=batch._replace(latents=z))
    assert_same(weights(known), weights(parts.plain), atol=2e-6)
    other = run(parts, latent, batch=batch._replace(latents=z[::-1]))
    assert np.any(np.asarray(other[1]["train/loss"]) != np.asarray(known[1]["train/loss"]))


def test_no_gradient_reaches_the_flow(parts):
    step = make_train_step(
        parts.model, parts.tx, num_classes=CLASSES, augment=lambda key, x: x,
        latent=latent_of("adversarial", mix=0.5),
    )  # fmt: skip
    loss = lambda flow: step(parts.state, parts.batch, None, (), flow)[1]["train/loss"]
    for leaf in jax.tree.leaves(jax.jit(jax.grad(loss, allow_int=True))(parts.frozen)):
        assert leaf.dtype == jax.dtypes.float0 or not np.any(leaf)


# ---------------------------------------------------------------------------------------- the loop


@pytest.fixture(scope="module")
def dataset():
    return gr.data.load("digits", per_class=8, validation_fraction=0.05)


@pytest.fixture(scope="module")
def own_flow(dataset):
    flow = gr.flows.glow(dataset.image_shape, levels=1, steps=1, width=4, num_classes=10)
    x, y = dataset.train.images / np.float32(255), dataset.train.labels
    return flow.freeze(jax.jit(flow.init)(jax.random.key(3), x, y))


def config(**groups):
    base = {
        "model": {"widths": [4]},
        "train": {"epochs": 1, "steps_per_epoch": 2, "batch_size": 16, "progress": False},
    }
    return {**base, **groups}


def go(workdir, dataset, **groups):
    flow = groups.pop("flow", None)
    if "flow_settings" in groups:
        groups["flow"] = groups.pop("flow_settings")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("genreg_jax.workdir.write_report", lambda *args, **kwargs: None)
        summary = gr.train_and_evaluate(config(**groups), workdir, dataset=dataset, flow=flow)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return summary, lines


def test_off_is_the_base_run_bit_for_bit(tmp_path, dataset, own_flow):
    off = {"kind": "adversarial", "ratio": 0.0}
    _, base = go(tmp_path / "base", dataset)
    _, none = go(tmp_path / "none", dataset, latent=off, flow=own_flow)
    assert base == none


def test_cached_encodings_give_the_run_without_them(tmp_path, dataset, own_flow):
    latent = {"kind": "random", "epsilon": 1.0, "augment_after": "shift(1)"}
    runs = {
        cache: go(tmp_path / str(cache), dataset, latent={**latent, "cache": cache}, flow=own_flow)
        for cache in (True, False)
    }
    for with_cache, without in zip(runs[True][1], runs[False][1]):
        assert "train/attacked_accuracy" in with_cache
        for name, value in with_cache.items():
            np.testing.assert_allclose(value, without[name], rtol=2e-3, err_msg=name)
    assert (tmp_path / "True" / "samples" / "5_perturbed.png").exists()


def test_a_synthetic_term_and_a_perturbation_share_one_flow(
    tmp_path, dataset, own_flow, monkeypatch
):
    calls, record = [], {"bits_per_dim": 4.0, "seconds": 2.0}

    def trained(*args, **kwargs):
        calls.append(args)
        decode = lambda frozen, z, y: jnp.clip(frozen.decode(z, y), 0, 1)
        return gr.Generator(decode, own_flow, dataset.image_shape), record

    monkeypatch.setattr(train, "trained_flow_generator", trained)
    summary, lines = go(
        tmp_path, dataset,
        synthetic={"loss": "cross_entropy", "batch_size": 8},
        latent={"kind": "random"},
    )  # fmt: skip
    assert len(calls) == 1 and summary["flow"] == record
    assert lines[0]["train/synthetic_loss"] > 0 and "train/attacked_accuracy" in lines[0]


def test_a_flow_for_other_images_or_classes_is_refused_before_anything_is_written(
    tmp_path, dataset
):
    for shape, classes, words in (
        ((4, 4, 1), 10, "images of shape (4, 4, 1)"),
        ((8, 8, 1), 3, "3 classes"),
    ):
        flow = gr.flows.glow(shape, levels=1, steps=1, width=4, num_classes=classes)
        x, y = jnp.full((4, *shape), 0.5), jnp.arange(4) % classes
        frozen = flow.freeze(flow.init(jax.random.key(0), x, y))
        with pytest.raises(gr.UserError) as error:
            go(tmp_path / "run", dataset, latent={"kind": "random"}, flow=frozen)
        assert words in str(error.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("latent", "words"),
    [
        ({"epsilon": -1.0}, "config.latent.epsilon must be at least 0, got -1.0"),
        ({"num_steps": 0}, "config.latent.num_steps must be at least 1, got 0"),
        ({"ratio": 1.5}, "config.latent.ratio must be from 0 to 1, got 1.5"),
        ({"mix": -0.5}, "config.latent.mix must be from 0 to 1, got -0.5"),
        ({"clip": -0.5}, "config.latent.clip must be at least 0, got -0.5"),
        ({"kind": "pgd", "norm": "none"}, "config.latent.norm must be l2 or linf for an attack"),
        ({"kind": "interpolation", "epsilon": 2.0}, "config.latent.epsilon must be a share"),
        ({"kind": "randm"}, "config.latent.kind must be one of none, random"),
        ({"kind": "random", "augment_after": "shft"}, "shft"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_wrong_settings_are_refused_by_name(tmp_path, dataset, latent, words):
    with pytest.raises(gr.UserError) as error:
        go(tmp_path / "run", dataset, latent=latent)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_workdir_without_a_trained_flow_is_refused(tmp_path, dataset):
    with pytest.raises(gr.UserError, match="holds no trained flow"):
        gr.train_and_evaluate(
            config(latent={"kind": "random"}, flow={"levels": 1, "workdir": str(tmp_path / "no")}),
            tmp_path / "run", dataset=dataset,
        )  # fmt: skip


def test_the_images_without_labels_are_those_that_are_not_for_validation():
    dataset = gr.data.load("digits", per_class=8, validation_fraction=0.05)
    pool = {image.tobytes() for image in dataset.unlabelled}
    assert len(dataset.unlabelled) == 1297 - len(dataset.validation)
    assert {image.tobytes() for image in dataset.train.images} <= pool
    held_out = [image.tobytes() in pool for image in dataset.validation.images]
    assert not any(held_out), "but for images that the data set has twice"
    with pytest.raises(gr.UserError, match="conditional is True"):
        from_config({"flow": {"images": "all"}})


def test_a_flow_can_be_trained_on_them(tmp_path, dataset, monkeypatch):
    seen = {}

    def fit(key, flow, images, labels, **options):
        seen.update(images=images, labels=labels)
        params = flow.init(key, images[:8] / np.float32(255))
        return gr.flows.FlowFit(params, [], best_step=1, bits_per_dim=4.0, seconds=0.0,
                       compile_seconds=0.0, images_per_second=0.0, steps=1)  # fmt: skip

    monkeypatch.setattr("genreg_jax.flow_run.fit", fit)
    flow = {"images": "all", "conditional": False, "levels": 1, "steps": 1, "width": 4}
    summary, _ = go(tmp_path, dataset, latent={"kind": "random"}, flow_settings=flow)
    assert seen["labels"] is None
    np.testing.assert_array_equal(seen["images"], dataset.unlabelled)
    assert summary["flow"]["train_images"] == len(dataset.unlabelled)
