"""Sources of synthetic samples, searches and the expansion factor, in the step and in a run."""

import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_mgr import (
    BATCH,
    CLASSES,
    LATENT,
    SIDE,
    apply_model,
    augment_real,
    make_problem,
    run_step,
    strong_view,
    weak_view,
)

import genreg_jax as gr
from genreg_jax import build
from genreg_jax.config import from_config
from genreg_jax.evaluate import finder_share, search_in_words
from genreg_jax.objective import make_train_step
from genreg_jax.regularizers import mgr
from genreg_jax.regularizers.mgr import make_regularizer
from genreg_jax.regularizers.synthetic import interpolated_latents, renoised_latents

SOURCES = ("prior", "renoised", "interpolated")


def problem_of(**changes):
    """The problem of MGR's tests, with a generator that encodes, in some way."""
    problem = make_problem(loss=changes.pop("loss", "pcr"))
    mix = np.random.default_rng(7).normal(size=(*LATENT, SIDE, SIDE)).astype(np.float32)

    def encode(params, x, y):
        return jnp.einsum("ijhw,bhw->bij", params["mix"], x[..., 0]) + y[:, None, None] * 0.1

    generator = problem.generator._replace(
        params={**problem.generator.params, "mix": jnp.asarray(mix)}, encode=encode
    )
    synthetic = dataclasses.replace(problem.synthetic, **changes)
    return problem._replace(generator=generator, synthetic=synthetic)


def keys_of(state):
    """The keys of the synthetic part of a step."""
    made = jax.random.split(jax.random.fold_in(state.key, state.step), 3)[1]
    return jax.random.split(made, 5), made


def latents_of(problem, total):
    """Latents and labels of a source, written out."""
    s, batch = problem.synthetic, problem.batch
    (key_z, key_y, *_), _ = keys_of(problem.state)
    if s.source == "prior":
        z = s.temperature * jax.random.normal(key_z, (total, *LATENT))
        return z, jax.random.randint(key_y, (total,), 0, CLASSES)
    z = problem.generator.encode(
        problem.generator.params, batch.images.astype(jnp.float32) / 255, batch.labels
    )
    rows = jnp.arange(total) % BATCH
    if s.source == "renoised":
        noise = {"low": s.low, "high": s.high, "temperature": s.temperature}
        return renoised_latents(key_z, z[rows], **noise), batch.labels[rows]
    rounds = [
        interpolated_latents(jax.random.fold_in(key_z, i), z, batch.labels, strength=s.strength)
        for i in range(-(-total // BATCH))
    ]
    return jnp.concatenate(rounds)[:total], batch.labels[rows]


def loss_of(problem, z, y, key):
    """The mean loss of one chunk, written out."""
    s, state = problem.synthetic, problem.state
    _, _, key_weak, key_strong, key_model = jax.random.split(key, 5)
    x = problem.generator.apply(problem.generator.params, z, y)
    weak = weak_view(key_weak, x)
    run = lambda x: apply_model(state.params, state.model_state, x, rng=key_model, train=True)[0]
    if s.loss == "cross_entropy":
        log_p = jax.nn.log_softmax(run(weak).logits)
        return -jnp.mean(log_p[jnp.arange(len(y)), y])
    a, b = jnp.split(run(jnp.concatenate([weak, strong_view(key_strong, x)])).embedding, 2)
    return jnp.mean(1 - jnp.sum(a * b, 1) / jnp.sqrt(jnp.sum(a**2, 1) * jnp.sum(b**2, 1)))


@pytest.mark.parametrize("loss", ["pcr", "cross_entropy"])
@pytest.mark.parametrize("source", SOURCES)
def test_the_samples_are_those_of_the_source_with_the_labels_of_the_images(source, loss):
    problem = problem_of(loss=loss, source=source, low=0.1, high=0.6, strength=0.7)
    z, y = latents_of(problem, problem.synthetic.batch_size)
    want = 0.7 * loss_of(problem, z, y, keys_of(problem.state)[1])
    metrics = run_step(problem, meta=False)[1]
    np.testing.assert_allclose(metrics["train/synthetic_loss"], want, rtol=2e-6)
    # And they are others than those of the other sources.
    other = run_step(problem_of(loss=loss, source=SOURCES[source == "prior"]), meta=False)[1]
    assert abs(metrics["train/synthetic_loss"] - other["train/synthetic_loss"]) > 1e-3


@pytest.mark.parametrize("source", SOURCES)
def test_more_samples_are_batches_of_their_own(source):
    """2.4 times 7 are 17, in chunks of 6, 6 and 5."""
    problem = problem_of(source=source, factor=2.4)
    z, y = latents_of(problem, 17)
    made = keys_of(problem.state)[1]
    keys = [made, jax.random.fold_in(made, 1), jax.random.fold_in(made, 2)]
    cuts = [slice(0, 6), slice(6, 12), slice(12, 17)]
    losses = [loss_of(problem, z[c], y[c], k) * len(y[c]) for c, k in zip(cuts, keys)]
    got = run_step(problem, meta=False)[1]["train/synthetic_loss"]
    np.testing.assert_allclose(got, 0.7 * sum(losses) / 17, rtol=2e-6)


def test_a_mixed_class_of_one_image_is_that_image():
    problem = problem_of(source="interpolated", strength=1.0)
    still = problem._replace(synthetic=dataclasses.replace(problem.synthetic, source="renoised"))

    def loss(problem, **options):
        """With a class for each image, more than there are, which only `jit` does not see."""

        @jax.jit
        def of(labels):
            batch = problem.batch._replace(labels=labels)
            return run_step(problem._replace(batch=batch), meta=False, **options)[1]

        return of(jnp.arange(BATCH, dtype=jnp.int32))["train/synthetic_loss"]

    alone, unmoved = loss(problem), loss(still, low=0.0, high=0.0)
    np.testing.assert_allclose(alone, unmoved, rtol=1e-6)


def test_known_encodings_are_used_and_equal_computed_ones():
    problem = problem_of(source="renoised", low=0.2, high=0.4)
    z = problem.generator.encode(
        problem.generator.params,
        problem.batch.images.astype(jnp.float32) / 255,
        problem.batch.labels,
    )
    known = problem._replace(batch=problem.batch._replace(encodings=z))
    a, b = (run_step(p, meta=False)[1]["train/synthetic_loss"] for p in (problem, known))
    assert a == b
    wrong = problem._replace(batch=problem.batch._replace(encodings=z + 1))
    assert run_step(wrong, meta=False)[1]["train/synthetic_loss"] != a


@pytest.mark.parametrize("source", SOURCES)
def test_a_finder_of_radius_zero_is_the_source_bit_for_bit(source):
    problem = problem_of(source=source)
    finder = gr.Finder(hidden=(8,), num_classes=CLASSES, radius=0.0)
    held = dataclasses.replace(
        problem.meta, apply=lambda phi, z, y: finder.apply({"params": phi}, z, y)
    )
    got, metrics = run_step(problem._replace(meta=held))
    want, _ = run_step(problem, meta=False)
    chex.assert_trees_all_equal(got.params, want.params)
    assert metrics["train/search_distance"] == 0 and metrics["train/search_spread"] == 1
    free, metrics = run_step(problem)
    assert metrics["train/search_distance"] > 0.01
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(free.params, want.params)


@pytest.mark.parametrize("search", ["hard", "random"])
def test_a_rival_takes_a_step_of_its_radius_and_costs_no_outer_batch(search):
    problem = problem_of(source="renoised")
    options = {"search": search, "radius": 0.25, "keep_norm": False}
    _, metrics = run_step(problem, meta=False, **options)
    np.testing.assert_allclose(metrics["train/search_distance"], 0.25, rtol=1e-5)
    assert "train/outer_loss" not in metrics
    _, none = run_step(problem, meta=False, **{**options, "radius": 0.0})
    _, source = run_step(problem, meta=False)
    assert none["train/synthetic_loss"] == source["train/synthetic_loss"]
    assert metrics["train/synthetic_loss"] != source["train/synthetic_loss"]


def test_hard_samples_have_more_entropy_than_random_ones():
    """What the classifier predicts on them, over many keys; a larger step would overshoot here."""
    problem = problem_of(source="renoised")
    seen = []

    def apply(params, z, y):
        x = problem.generator.apply(params, z, y)
        seen.append(x)
        return x

    def entropy(search, step):
        seen.clear()
        state = dataclasses.replace(problem.state, step=jnp.int32(step))
        p = problem._replace(state=state, generator=problem.generator._replace(apply=apply))
        run_step(p, meta=False, search=search, radius=0.02)
        key = jax.random.fold_in(keys_of(state)[0][0], mgr._SEARCH)  # of its dropout, too
        outputs, _ = apply_model(state.params, state.model_state, seen[-1], rng=key, train=True)
        log_p = jax.nn.log_softmax(outputs.logits)
        return float(-jnp.sum(jnp.exp(log_p) * log_p, 1).mean())

    none, hard, random = (
        np.array([entropy(s, i) for i in range(6)]) for s in ("none", "hard", "random")
    )
    assert np.all(hard > none + 0.02) and abs(np.mean(random - none)) < 0.01


def test_real_images_come_back_from_a_flow_without_noise():
    """The term on re-noised samples without noise is consistency on the real images."""
    flow = gr.flows.glow((4, 4, 1), levels=1, steps=2, width=4, num_classes=3)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(20, 236, (8, 4, 4, 1)), jnp.float32) / 255
    y = jnp.asarray(rng.integers(0, 3, 8), jnp.int32)
    frozen = flow.freeze(jax.jit(flow.init)(jax.random.key(0), x, y))
    decoded = []

    def apply(frozen, z, y):
        decoded.append(frozen.decode(z, y))
        return decoded[-1]

    problem = make_problem()
    generator = gr.Generator(apply, frozen, (4, 4, 1), lambda frozen, x, y: frozen.encode(x, y))
    synthetic = dataclasses.replace(
        problem.synthetic, source="renoised", low=0.0, high=0.0, batch_size=8
    )
    step = make_train_step(
        problem.model, problem.tx, num_classes=3, augment=augment_real, synthetic=synthetic,
        generator=generator,
    )  # fmt: skip
    step(problem.state, gr.Batch(x, y), None, frozen)
    np.testing.assert_allclose(jax.device_get(jax.lax.stop_gradient(decoded[0])), x, atol=2e-5)


def test_a_source_of_real_images_needs_an_encoder():
    problem = problem_of(source="renoised")
    with pytest.raises(ValueError, match=r"source is 'renoised'.*generator\.encode is None"):
        make_regularizer(
            lambda *a: None, problem.synthetic, problem.generator._replace(encode=None), None,
            num_classes=3,
        )  # fmt: skip


# -------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"synthetic": {"low": 0.5, "high": 0.2}}, ["config.synthetic.low", "got 0.5"]),
        ({"synthetic": {"high": 1.5}}, ["config.synthetic.high must be from 0 to 1, got 1.5"]),
        ({"synthetic": {"strength": -0.1}}, ["config.synthetic.strength", "got -0.1"]),
        ({"synthetic": {"factor": 0}}, ["config.synthetic.factor must be above 0", "got 0.0"]),
        ({"synthetic": {"source": "post"}}, ["prior, renoised, interpolated", "'post'"]),
        ({"meta": {"radius": -0.5}}, ["config.meta.radius", "-1 for no bound, got -0.5"]),
        (
            {"meta": {"enabled": True, "search": "hard"}, "synthetic": {"loss": "pcr"}},
            ["config.meta.radius", "for the search hard, got -1.0"],
        ),
        (
            {"synthetic": {"loss": "cross_entropy"}, "flow": {"conditional": False}},
            ["config.synthetic.loss = 'cross_entropy'", "unconditional", "renoised"],
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(config, words):
    with pytest.raises(gr.UserError) as error:
        from_config(config)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_generator_without_an_encoder_is_refused_before_anything_is_written(tmp_path):
    generator = gr.Generator(lambda p, z, y: jnp.full((len(z), 8, 8, 1), 0.5), (), (3,))
    config = {"data": {"per_class": 8}, "synthetic": {"loss": "pcr", "source": "interpolated"}}
    with pytest.raises(gr.UserError, match="no `encode`.*supports the source 'prior'"):
        gr.train_and_evaluate(config, tmp_path / "run", generator=generator)
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------ runs


def digits_run(tmp_path, name, *, updates, **meta):
    config = {
        "data": {"per_class": 10},
        "augment": {"train": "shift(1)"},
        "synthetic": {"loss": "pcr", "source": "renoised", "strong": "shift(1)", "batch_size": 16},
        "meta": {"enabled": True, "outer": "train", "hidden": [32], **meta},
        "train": {"epochs": 1, "steps_per_epoch": updates, "batch_size": 20, "progress": False},
    }
    matrix = jax.random.orthogonal(jax.random.key(0), 64)

    def encode(matrix, x, y):
        return jax.scipy.special.logit(jnp.clip(x.reshape(len(x), 64), 0.05, 0.95)) @ matrix

    def decode(matrix, z, y):
        return jax.nn.sigmoid(z @ matrix.T).reshape(len(z), 8, 8, 1)

    # A perceptron, which compiles in a fraction of the time of a convnet.
    def init(key, x):
        keys = jax.random.split(key)
        return [0.2 * jax.random.normal(k, n) for k, n in zip(keys, ((64, 24), (24, 10)))], ()

    def apply(params, state, x, *, rng=None, train=False):
        embedding = jax.nn.relu((x.reshape(len(x), 64) - 0.3) @ params[0])
        return gr.Outputs(embedding @ params[1], embedding), state

    generator = gr.Generator(decode, matrix, (64,), encode)
    model = gr.Model(init, apply)
    summary = gr.train_and_evaluate(config, tmp_path / name, model=model, generator=generator)
    lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").open()]
    return summary, lines[-1], (tmp_path / name / "report.html").read_text()


def test_a_bounded_finder_keeps_its_spread_and_a_free_one_reports_its_collapse(
    tmp_path, monkeypatch
):
    seen, whole = [], build.encode_all

    def counted(encode, params, data, settings):
        seen.append(len(data.labels))
        return whole(encode, params, data, settings)

    monkeypatch.setattr(build, "encode_all", counted)
    fast = {"learning_rate": 0.3, "keep_norm": True}
    bounded, metrics, report = digits_run(tmp_path, "bounded", updates=60, radius=0.3, **fast)
    assert bounded["finder_spread"] > 0.8 and 0.01 < bounded["finder_distance"] <= 0.3
    assert metrics["train/search_spread"] > 0.8
    assert "The finder moves a latent by" in report and "outer loss&#x27;s decrease" in report
    assert "from the nearest training image as unseen real ones" in report
    assert bounded["generator"]["distance_ratio"] > 0
    gains = [metrics["train/search_gain"], metrics["train/outer_decrease"]]
    assert bounded["finder_share"] == round(gains[0] / gains[1], 4)
    assert seen == [100]  # once before the loop, and never again inside the step
    free, metrics, report = digits_run(tmp_path, "free", updates=60, **fast)
    assert free["finder_spread"] < 0.8 < bounded["finder_spread"]
    assert free["finder_distance"] > bounded["finder_distance"]
    assert "The finder has collapsed" in report


def test_words_for_a_finder_that_does_nothing():
    assert search_in_words(1.0, 0.001).startswith("The finder does nothing")


def test_a_share_is_of_the_whole_training_and_there_is_none_without_a_decrease():
    line = lambda gain, fall: {"train/search_gain": gain, "train/outer_decrease": fall}
    assert finder_share([line(0.3, 1.0), line(-0.1, 1.0), {"flow/loss": 1.0}]) == 0.1
    assert finder_share([line(0.3, 1.0), line(0.1, None)]) == 0.4
    assert finder_share([line(0.3, -1.0)]) is None and finder_share([]) is None
    assert "10.0% of the outer loss's decrease is its doing" in search_in_words(0.9, 0.2, 0.1)
