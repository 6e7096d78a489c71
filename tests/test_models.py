"""Shapes, parameter counts and the contract of the shipped classifiers."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import genreg_jax as gr
from genreg_jax import models
from genreg_jax.models.convnet import max_pool

SMALL = {
    "convnet": gr.models.ConvNet(num_classes=5, widths=(4, 8)),
    "convnet_max": gr.models.ConvNet(num_classes=5, widths=(4, 8), pooling="max"),
    "resnet": gr.models.ResNet(num_classes=5, stages=(1, 1), width=4),
    "wide_resnet": gr.models.WideResNet(num_classes=5, depth=10, width=1),
}


@functools.cache
def initialised(name):
    """A small model, its variables away from their start, and images."""
    rng = np.random.default_rng(0)
    model = gr.from_linen(SMALL[name])
    x = jnp.asarray(rng.normal(size=(6, 8, 8, 1)), jnp.float32)
    params, model_state = jax.jit(model.init)(jax.random.key(0), x)
    noisy = lambda leaf: leaf + 0.1 * jnp.asarray(rng.normal(size=leaf.shape), jnp.float32)
    larger = lambda leaf: leaf + 0.1 * jnp.asarray(rng.random(leaf.shape), jnp.float32)
    return model, jax.tree.map(noisy, params), jax.tree.map(larger, model_state), x


def apply(model, params, model_state, x, train):
    return jax.jit(functools.partial(model.apply, rng=None, train=train))(params, model_state, x)


def count(name, image_shape=(32, 32, 3), num_classes=10, **options):
    model = models.make(name, num_classes=num_classes, **options)
    params, _ = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image_shape)))
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def conv(kernel, inputs, outputs):
    return kernel * kernel * inputs * outputs


def resnet18_parameters(classes, channels, width=64):
    bn, total, inputs = lambda w: 2 * w, conv(3, channels, width) + 2 * width, width
    for stage in range(4):
        w = width * 2**stage
        total += conv(3, inputs, w) + 3 * conv(3, w, w) + 4 * bn(w)
        total += (conv(1, inputs, w) + bn(w)) if inputs != w else 0
        inputs = w
    return total + (inputs + 1) * classes


def wide_resnet_parameters(depth, k, classes, channels=3):
    total, inputs = conv(3, channels, 16), 16
    for stage in range(3):
        w = 16 * k * 2**stage
        for block in range((depth - 4) // 6):
            total += 2 * inputs + conv(3, inputs, w) + 2 * w + conv(3, w, w)
            total += conv(1, inputs, w) if block == 0 and inputs != w else 0
            inputs = w
    return total + 2 * inputs + (inputs + 1) * classes


def test_parameter_counts_are_those_of_the_papers():
    assert count("resnet18") == resnet18_parameters(10, 3) == 11_173_962
    assert count("wide_resnet", depth=28, width=2) == wide_resnet_parameters(28, 2, 10)
    assert wide_resnet_parameters(28, 2, 10) == 1_467_610
    assert count("wide_resnet", depth=28, width=10) == wide_resnet_parameters(28, 10, 10)
    assert wide_resnet_parameters(28, 10, 10) == 36_479_194
    convnet = conv(3, 1, 4) + conv(3, 4, 8) + 2 * (4 + 8) + (8 + 1) * 3
    assert count("convnet", (8, 8, 1), 3, widths=(4, 8)) == convnet


@pytest.mark.parametrize("image_shape", [(8, 8, 1), (28, 28, 1), (32, 32, 3)])
@pytest.mark.parametrize(
    ("name", "options", "width"),
    [
        ("convnet", {"widths": (4, 8, 16)}, 16),
        ("convnet", {"widths": (4, 8, 8, 8, 16), "pooling": "max"}, 16),
        ("resnet18", {"width": 8}, 64),
        ("wide_resnet", {"depth": 10, "width": 2}, 128),
    ],
)
def test_logits_and_embedding_have_their_shapes(name, options, width, image_shape):
    model = models.make(name, num_classes=7, **options)
    x = jax.ShapeDtypeStruct((3, *image_shape), jnp.float32)
    params, model_state = jax.eval_shape(model.init, jax.random.key(0), x)
    outputs, new_state = jax.eval_shape(
        lambda p, s, x: model.apply(p, s, x, rng=jax.random.key(1), train=True),
        params, model_state, x,
    )  # fmt: skip
    assert outputs.logits.shape == (3, 7) and outputs.embedding.shape == (3, width)
    assert outputs.logits.dtype == outputs.embedding.dtype == jnp.float32
    assert new_state == model_state


def test_the_stem_keeps_the_resolution_and_the_stages_halve_it():
    module = gr.models.ResNet(num_classes=10)
    x = jnp.zeros((1, 32, 32, 3))
    run = lambda: module.init_with_output(
        jax.random.key(0), x, train=False, capture_intermediates=True
    )[1]["intermediates"]
    sizes = [v["__call__"][0].shape[1:] for k, v in jax.eval_shape(run).items() if "Conv" in k]
    assert sizes[0] == (32, 32, 64)
    assert set(sizes) == {(32, 32, 64), (16, 16, 128), (8, 8, 256), (4, 4, 512)}


@pytest.mark.parametrize("name", SMALL)
def test_the_embedding_is_what_the_head_sees(name):
    model, params, model_state, x = initialised(name)
    for train in (True, False):
        outputs, _ = apply(model, params, model_state, x, train)
        head = params["head"]
        logits = np.asarray(outputs.embedding) @ head["kernel"] + np.asarray(head["bias"])[None]
        np.testing.assert_allclose(outputs.logits, logits, rtol=1e-5, atol=1e-6)
        assert np.std(outputs.embedding, axis=0).max() > 1e-3


@pytest.mark.parametrize("name", SMALL)
def test_evaluation_leaves_the_state_alone_and_training_updates_it(name):
    model, params, model_state, x = initialised(name)
    _, same = apply(model, params, model_state, x, False)
    jax.tree.map(np.testing.assert_array_equal, same, model_state)
    _, new = apply(model, params, model_state, x, True)
    assert jax.tree.structure(new) == jax.tree.structure(model_state)
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(model_state)):
        assert np.all(np.asarray(a) != b)


@pytest.mark.parametrize("name", SMALL)
def test_evaluation_treats_images_on_their_own_and_training_as_a_batch(name):
    model, params, model_state, x = initialised(name)
    other = x.at[1:].add(1.0)
    first = lambda images, train: apply(model, params, model_state, images, train)[0].logits[0]
    np.testing.assert_allclose(first(x, False), first(other, False), rtol=1e-5, atol=1e-6)
    assert np.max(np.abs(first(x, True) - first(other, True))) > 1e-3


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (3, 7, 5, 1), (2, 2, 3, 4)])
def test_max_pooling_is_flax_max_pooling_and_has_its_gradient(shape):
    rng = np.random.default_rng(1)
    x, away = jnp.asarray(rng.normal(size=shape)), jnp.asarray(rng.normal(size=shape))
    flax = lambda x: nn.max_pool(x, (2, 2), (2, 2))
    np.testing.assert_array_equal(max_pool(x), flax(x))
    loss = lambda pool: lambda x: jnp.sum(jnp.sin(pool(x)) ** 2)
    gradient, expected = (jax.grad(loss(pool)) for pool in (max_pool, flax))
    np.testing.assert_allclose(gradient(x), expected(x), rtol=1e-5, atol=1e-6)
    products = (jax.jvp(g, (x,), (away,))[1] for g in (gradient, expected))
    np.testing.assert_allclose(*products, rtol=1e-5, atol=1e-6)


def test_unknown_pooling_is_refused():
    model = gr.models.make("convnet", num_classes=3, pooling="mean")
    with pytest.raises(ValueError, match="pooling must be 'stride' or 'max', got 'mean'"):
        model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))


def test_the_first_running_statistics_are_those_of_the_first_convolution():
    model, params, model_state, x = initialised("convnet")
    h = jax.lax.conv_general_dilated(
        x, params["Conv_0"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    _, new = apply(model, params, model_state, x, True)
    old = model_state["batch_stats"]["BatchNorm_0"]
    expected = 0.9 * old["mean"] + 0.1 * h.mean((0, 1, 2))
    np.testing.assert_allclose(
        new["batch_stats"]["BatchNorm_0"]["mean"], expected, rtol=1e-4, atol=1e-6
    )


@pytest.mark.promotes
@pytest.mark.parametrize("name", ["convnet", "resnet18", "wide_resnet"])
def test_bfloat16_computes_in_bfloat16_and_keeps_parameters_and_outputs_float32(name):
    options = {"convnet": {"widths": (4, 8)}, "resnet18": {"width": 4}}.get(
        name, {"depth": 10, "width": 1}
    )
    model = models.make(name, num_classes=3, dtype="bfloat16", **options)
    x = jnp.zeros((2, 8, 8, 1))
    params, model_state = jax.eval_shape(model.init, jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, model_state))} == {jnp.dtype("float32")}
    forward = lambda p, s, x: model.apply(p, s, x, rng=None, train=True)[0]
    outputs = jax.eval_shape(forward, params, model_state, x)
    assert outputs.logits.dtype == outputs.embedding.dtype == jnp.float32
    text = str(jax.make_jaxpr(forward)(params, model_state, x))
    convolutions = [line for line in text.splitlines() if "= conv_general_dilated" in line]
    assert convolutions and all("bf16" in line for line in convolutions)


def test_dropout_draws_from_the_rng_of_the_contract():
    class Dropping(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            x = nn.Dropout(0.5, deterministic=not train)(x.reshape(len(x), -1))
            return nn.Dense(2, name="head")(x), x

    model = gr.from_linen(Dropping())
    x = jnp.ones((4, 4, 4, 1))
    params, model_state = model.init(jax.random.key(0), x)
    assert model_state == {}
    run = lambda seed: model.apply(params, {}, x, rng=jax.random.key(seed), train=True)[0]
    np.testing.assert_array_equal(run(1).embedding, run(1).embedding)
    assert np.any(run(1).embedding != run(2).embedding)
    plain, _ = model.apply(params, {}, x, rng=None, train=False)
    np.testing.assert_array_equal(plain.embedding, x.reshape(4, -1))


def test_standardisation_stands_in_front_of_the_model_channel_by_channel():
    model = gr.Model(
        init=lambda key, x: ({"seen": x}, {}),
        apply=lambda p, s, x, *, rng, train: (gr.Outputs(x, x), s),
    )
    mean, std = np.array([0.1, 0.5, 0.9]), np.array([0.5, 0.25, 2.0])
    x = np.random.default_rng(0).random((2, 4, 4, 3)).astype(np.float32)
    wrapped = models.standardized(model, mean, std)
    expected = (x.astype(np.float64) - mean) / std
    params, model_state = wrapped.init(jax.random.key(0), x)
    np.testing.assert_allclose(params["seen"], expected, rtol=1e-4, atol=1e-6)
    for train in (True, False):
        outputs, new_state = wrapped.apply({}, model_state, x, rng=None, train=train)
        np.testing.assert_allclose(outputs.logits, expected, rtol=1e-4, atol=1e-6)
        jax.tree.map(np.testing.assert_array_equal, new_state, model_state)


def test_standardisation_divides_uint8_by_255_and_refuses_other_integers():
    model = gr.Model(
        init=lambda key, x: ({}, {}), apply=lambda p, s, x, *, rng, train: (gr.Outputs(x, x), s)
    )
    wrapped = models.standardized(model, [0.25], [0.5])
    _, state = wrapped.init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)))
    x = np.random.default_rng(0).integers(0, 256, (3, 2, 2, 1))
    outputs, _ = wrapped.apply({}, state, jnp.asarray(x, jnp.uint8), rng=None, train=False)
    np.testing.assert_allclose(outputs.logits, (x / 255 - 0.25) / 0.5, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="the images have the type int32; they must be uint8"):
        wrapped.apply({}, state, jnp.asarray(x, jnp.int32), rng=None, train=False)


def test_wrong_models_are_refused_by_name():
    with pytest.raises(TypeError, match="module must be an instance of flax.linen.Module, got"):
        gr.from_linen(gr.models.ConvNet)
    with pytest.raises(TypeError, match="got <function"):
        gr.from_linen(apply)
    with pytest.raises(ValueError, match=r"name must be one of .*resnet18.*, got 'resnet50'"):
        models.make("resnet50", num_classes=10)


@pytest.mark.parametrize("depth", [4, 27, 29])
def test_an_impossible_depth_is_refused(depth):
    model = models.make("wide_resnet", num_classes=10, depth=depth)
    with pytest.raises(ValueError, match=rf"depth must be 6n \+ 4 .* got {depth}"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))


@pytest.mark.parametrize(
    "model",
    [
        gr.models.ConvNet(num_classes=10, widths=(64,), pooling="max"),
        gr.models.ConvNet(num_classes=10, widths=(160,), pooling="max"),
        gr.models.ConvNet(num_classes=10, widths=(4, 160)),
        gr.models.ResNet(num_classes=10, stages=(1, 1), width=80, stem="imagenet"),
    ],
)
def test_a_mixed_derivative_is_right_when_compiled(model):
    """As operation by operation: those of `jnp.max` were 6 % off, or NaN with 160 channels."""
    model = gr.from_linen(model)
    x = jax.random.uniform(jax.random.key(0), (8, 7, 7, 1))
    params, model_state = model.init(jax.random.key(1), x[:1])
    direction = jax.tree.map(lambda a: 0.01 + 0 * a, params)

    def loss(params, x):
        outputs, _ = model.apply(params, model_state, x, rng=None, train=True)
        return optax.losses.softmax_cross_entropy_with_integer_labels(
            outputs.logits, jnp.arange(8)
        ).mean()

    def mixed(params, x):
        slope = lambda params: jax.grad(loss, 1)(params, x)
        return jax.jvp(slope, (params,), (direction,))[1]

    found = jax.jit(mixed)(params, x)
    expected = mixed(params, x)
    assert float(jnp.abs(expected).max()) > 1e-4
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-7)
