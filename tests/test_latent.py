"""Latent perturbations: against a plain loop, inside their balls, and without side effects."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import genreg_jax as gr
from genreg_jax.regularizers.latent import KINDS, perturbation

SHAPE, CLASSES, BATCH = (4, 4, 1), 3, 6


def make_flow(num_classes):
    """A small flow whose parameters are disturbed, since a fresh coupling is the identity."""
    flow = gr.flows.glow(SHAPE, levels=1, steps=2, width=6, num_classes=num_classes)
    x = jax.random.uniform(jax.random.key(0), (32, *SHAPE))
    y = None if num_classes is None else jnp.arange(32) % num_classes
    leaves, tree = jax.tree.flatten(flow.init(jax.random.key(1), x, y))
    rng = np.random.default_rng(2)
    leaves = [
        leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
        else leaf
        for leaf in leaves
    ]
    return flow, tree.unflatten(leaves)


both_flows = pytest.mark.parametrize(
    "setting", [None, CLASSES], indirect=True, ids=["unconditional", "conditional"]
)


@pytest.fixture(scope="module", params=[CLASSES])
def setting(request):
    flow, params = make_flow(request.param)
    rng = np.random.default_rng(3)
    labels = jnp.asarray([0, 1, 2, 0, 1, 0])
    return Setting(
        flow=flow,
        params=params,
        frozen=flow.freeze(params),
        x=jnp.asarray(rng.uniform(0.3, 0.7, (BATCH, *SHAPE)), jnp.float32),
        labels=labels,
        y=None if request.param is None else labels,
        weights=jnp.asarray(rng.normal(size=(16, 8)), jnp.float32),
        head=jnp.asarray(rng.normal(size=(8, CLASSES)), jnp.float32),
    )


class Setting:
    """A flow, a batch and a classifier with a hidden layer."""

    def __init__(self, **values):
        self.__dict__.update(values)

    def loss(self, images):
        logits = jnp.tanh(images.reshape(-1, 16) @ self.weights) @ self.head
        return -jax.nn.log_softmax(logits)[jnp.arange(len(images)), self.labels[: len(images)]]

    @functools.cached_property
    def gradient(self):
        """Of the loss of one image, in the change of its latent."""

        def loss(delta, z, y, label):
            image = self.flow.decode(self.params, z + delta, y)[0]
            return -jax.nn.log_softmax(jnp.tanh(image.reshape(16) @ self.weights) @ self.head)[
                label
            ]

        return jax.jit(jax.grad(loss))

    def perturb(self, kind, key=5, x=None, loss=None, **options):
        options = {"epsilon": 0.5, **options}
        call = perturbation(kind, **options)
        x = self.x if x is None else x
        return call(jax.random.key(key), self.frozen, loss or self.loss, x, self.labels, None)

    def moved(self, kind, key=5, z=None, **options):
        """The latents, and where they were moved to: what the flow was asked to decode."""
        decoded = []

        class Recording:
            image_shape, num_classes = self.frozen.image_shape, self.frozen.num_classes
            encode = staticmethod(self.frozen.encode)

            def decode(_, z, y=None):
                decoded.append(z)
                return self.frozen.decode(z, y)

        call = perturbation(kind, **{"epsilon": 0.5, **options})
        z = self.frozen.encode(self.x, self.y) if z is None else z
        call(jax.random.key(key), Recording(), self.loss, self.x, self.labels, z)
        return np.asarray(z, np.float64), np.asarray(decoded[-1], np.float64)


# ----------------------------------------------------------------------------- the plain reference


def reference(s, *, epsilon, step_size, num_steps, norm, start):
    """Projected gradient ascent, one image and one step at a time."""
    decode = lambda z, y: s.flow.decode(s.params, z, y)[0]
    result = []
    for i in range(BATCH):
        y = None if s.y is None else s.y[i : i + 1]
        z = np.asarray(s.flow.encode(s.params, s.x[i : i + 1], y)[0])
        delta = np.asarray(start[i : i + 1], np.float64)
        for _ in range(num_steps):
            g = s.gradient(delta.astype(np.float32), z, y, s.labels[i])
            g = np.asarray(g, np.float64)
            if norm == "l2":
                delta = delta + step_size * g / np.sqrt((g**2).sum())
                length = np.sqrt((delta**2).sum())
                if length > epsilon:
                    delta = delta * epsilon / length
            else:
                delta = np.clip(delta + step_size * np.sign(g), -epsilon, epsilon)
        image = decode(jnp.asarray(z + delta, jnp.float32), y)
        result.append(np.clip(np.asarray(image), 0, 1)[0])
    return np.stack(result)


@both_flows
@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_attack_equals_a_plain_loop(setting, norm, backend, monkeypatch):
    """As accelerators make it, too: in a loop on the device."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    options = {"epsilon": 0.1 if norm == "linf" else 0.3, "num_steps": 4, "norm": norm}
    options["step_size"] = 0.4 * options["epsilon"]
    attacked = setting.perturb("adversarial", random_start=False, **options)
    assert np.all((0 < attacked) & (attacked < 1)), "nothing is clamped here"
    expected = reference(setting, start=np.zeros((BATCH, *SHAPE)), **options)
    np.testing.assert_allclose(attacked, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["adversarial", "pgd"])
def test_an_attack_is_one_loop_on_every_backend_with_the_same_result(setting, kind, monkeypatch):
    def attacked(epsilon):
        options = dict(epsilon=epsilon, step_size=0.1, num_steps=5, random_start=False)
        images = setting.perturb(kind, **options)
        return jnp.sum(images * setting.x**2), images

    def found(backend):
        monkeypatch.setattr(jax, "default_backend", lambda: backend)
        (_, images), slope = jax.jit(jax.value_and_grad(attacked, has_aux=True))(0.2)
        loops = str(jax.make_jaxpr(lambda e: attacked(e))(0.2)).count("length=5")
        return images, slope, loops

    images, slope, loops = found("cpu")
    assert loops == 1 and abs(slope) > 1e-3
    other, other_slope, loops = found("gpu")
    assert loops == 1
    np.testing.assert_allclose(other, images, atol=1e-6)
    np.testing.assert_allclose(other_slope, slope, rtol=1e-4)


def test_the_attack_from_a_random_start_equals_a_plain_loop(setting):
    options = {"epsilon": 0.3, "step_size": 0.12, "norm": "l2"}
    # A step of length zero shows where the attack starts.
    z, started = setting.moved("adversarial", **{**options, "step_size": 0.0}, num_steps=1)
    start = started - z
    np.testing.assert_allclose(np.sqrt((start**2).sum((1, 2, 3))), 0.3, atol=1e-5)
    attacked = setting.perturb("adversarial", num_steps=2, **options)
    expected = reference(setting, start=start, num_steps=2, **options)
    np.testing.assert_allclose(attacked, expected, atol=1e-5)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_pgd_equals_a_plain_loop_in_image_space(setting, norm):
    # Images that touch the border, so that it matters where the border is respected.
    x = np.clip(np.asarray(setting.x) * 3 - 1, 0, 1)
    options = {"epsilon": 0.25, "step_size": 0.1, "num_steps": 4, "norm": norm}
    attacked = setting.perturb("pgd", x=jnp.asarray(x), random_start=False, **options)
    gradient = jax.jit(jax.grad(lambda images: setting.loss(images).sum()))
    for i in range(BATCH):
        delta = np.zeros(SHAPE)
        for _ in range(4):
            batch = jnp.asarray(x, jnp.float32).at[i].set(x[i] + delta)
            g = np.asarray(gradient(batch)[i], np.float64)
            g = np.sign(g) if norm == "linf" else g / np.linalg.norm(g)
            delta = delta + 0.1 * g
            length = np.linalg.norm(delta)
            if norm == "linf":
                delta = np.clip(delta, -0.25, 0.25)
            elif length > 0.25:
                delta = delta * 0.25 / length
            delta = np.clip(x[i] + delta, 0, 1) - x[i]
        np.testing.assert_allclose(attacked[i], x[i] + delta, atol=1e-5)


def test_random_and_away_equal_their_formulas(setting):
    z, noisy = setting.moved("random", norm="none", epsilon=0.2)
    delta = noisy - z
    assert 0.15 < delta.std() < 0.25 and abs(delta.mean()) < 0.1
    _, clipped = setting.moved("random", norm="linf", epsilon=0.2)
    np.testing.assert_allclose(clipped - z, np.clip(delta, -0.2, 0.2), atol=1e-6)
    _, sphere = setting.moved("random", norm="l2", epsilon=0.2)
    lengths = np.sqrt((delta**2).sum((1, 2, 3), keepdims=True))
    np.testing.assert_allclose(sphere - z, 0.2 * delta / lengths, atol=1e-6)
    # The same draws, folded to the side of the latent.
    _, away = setting.moved("away", norm="none", epsilon=0.2)
    np.testing.assert_allclose(away - z, np.sign(z) * np.abs(delta), atol=1e-6)


def test_interpolation_stays_on_the_arc_to_an_image_of_the_class(setting):
    z, moved = setting.moved("interpolation", epsilon=1.0)
    labels = np.asarray(setting.labels)
    np.testing.assert_array_equal(moved[2], z[2], err_msg="alone in its class")
    for i in (0, 1, 3, 4, 5):
        residuals = []
        for j in np.flatnonzero((labels == labels[i]) & (np.arange(BATCH) != i)):
            pair = np.stack([z[i].ravel(), z[j].ravel()], axis=1)
            shares, *_ = np.linalg.lstsq(pair, moved[i].ravel())
            cosine = pair[:, 0] @ pair[:, 1] / np.prod(np.linalg.norm(pair, axis=0))
            # sin^2((1 - t) a) + sin^2(t a) + 2 cos(a) sin((1 - t) a) sin(t a) = sin^2(a)
            arc = shares @ shares + 2 * cosine * shares[0] * shares[1] - 1
            residuals.append((np.abs(pair @ shares - moved[i].ravel()).max(), arc, *shares))
        best = min(residuals)
        assert best[0] < 1e-5 and abs(best[1]) < 1e-4 and best[2] > 0 and best[3] > 0
    _, half = setting.moved("interpolation", epsilon=0.5)
    assert np.abs(half - z).sum() < np.abs(moved - z).sum()


# ---------------------------------------------------------------------------- balls and reductions


@both_flows
@pytest.mark.parametrize("kind", KINDS)
def test_radius_zero_is_the_identity_to_the_rounding_of_the_flow(setting, kind):
    images = setting.perturb(kind, epsilon=0.0, step_size=0.1)
    np.testing.assert_allclose(images, setting.x, atol=2e-6)
    if kind == "pgd":
        np.testing.assert_array_equal(images, setting.x)


@pytest.mark.parametrize("kind", KINDS)
def test_the_ratio_chooses_whom_to_perturb_and_leaves_the_others_bit_for_bit(setting, kind):
    everyone = np.asarray(setting.perturb(kind))
    none = setting.perturb(kind, ratio=0.0)
    np.testing.assert_array_equal(none, setting.x)
    some = np.asarray(setting.perturb(kind, ratio=0.5))
    kept = np.all(some == np.asarray(setting.x), axis=(1, 2, 3))
    assert 0 < kept.sum() < BATCH
    np.testing.assert_array_equal(some[~kept], everyone[~kept])


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("kind", ["random", "away", "adversarial"])
def test_every_perturbation_lies_in_its_ball(setting, kind, norm):
    for epsilon, relative in ((0.4, False), (0.1, True)):
        # Latents of almost zero, so that what is decoded is the perturbation itself.
        _, delta = setting.moved(
            kind, z=jnp.full_like(setting.x, 1e-30), epsilon=epsilon, norm=norm,
            relative=relative, step_size=epsilon, num_steps=2,
        )  # fmt: skip
        axes = (1, 2, 3)
        size = np.sqrt((delta**2).sum(axes)) if norm == "l2" else np.abs(delta).max(axes)
        radius = 4 * epsilon if relative and norm == "l2" else epsilon
        assert np.all(size <= radius * (1 + 1e-6))
        assert np.all(size > 0.5 * radius), "and it uses the ball"


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_clip_bounds_the_change_of_the_image_and_the_clamp_its_range(setting, kind, norm):
    x = jnp.clip(setting.x * 3 - 1, 0, 1)
    images = np.asarray(
        setting.perturb(kind, x=x, epsilon=1.0, clip=0.05, clip_norm=norm), np.float64
    )
    assert images.min() >= 0 and images.max() <= 1
    change = images - np.asarray(x, np.float64)
    axes = (1, 2, 3)
    size = np.sqrt((change**2).sum(axes)) if norm == "l2" else np.abs(change).max(axes)
    assert np.all(size <= 0.05 + 1e-6) and size.max() > 0.01
    free = np.asarray(setting.perturb(kind, x=x, epsilon=1.0))
    assert free.min() >= 0 and free.max() <= 1


def test_relative_radii_are_per_dimension(setting):
    for kind in ("random", "adversarial", "pgd"):
        absolute = setting.perturb(kind, epsilon=0.4, step_size=0.2)
        relative = setting.perturb(kind, epsilon=0.1, step_size=0.05, relative=True)
        np.testing.assert_allclose(absolute, relative, atol=1e-6)
        linf = {"epsilon": 0.1, "step_size": 0.05, "norm": "linf"}
        np.testing.assert_array_equal(
            setting.perturb(kind, **linf), setting.perturb(kind, relative=True, **linf)
        )


# --------------------------------------------------------------------------------------- the attack


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_more_steps_do_not_lower_the_loss_and_beat_random_of_the_same_radius(setting, norm):
    epsilon = 0.6 if norm == "l2" else 0.15
    means = [
        np.mean(
            [
                setting.loss(
                    setting.perturb(
                        "adversarial", key=key, epsilon=epsilon, norm=norm,
                        step_size=epsilon / 3, num_steps=steps,
                    )
                )
                for key in range(3)
            ]
        )
        for steps in (1, 2, 4, 8)
    ]  # fmt: skip
    random = np.mean(
        [
            setting.loss(setting.perturb("random", key=k, epsilon=epsilon, norm=norm))
            for k in range(3)
        ]
    )
    assert np.all(np.diff(means) > -1e-4) and means[0] > random
    assert means[-1] > means[0] > np.mean(setting.loss(setting.x))


def test_a_zero_gradient_is_a_zero_step_and_a_tiny_one_a_whole_step(setting):
    options = {"epsilon": 0.5, "step_size": 0.2, "num_steps": 2, "random_start": False}
    for norm in ("l2", "linf"):
        for kind in ("adversarial", "pgd"):
            still = setting.perturb(
                kind, loss=lambda images: 0 * images.sum((1, 2, 3)), norm=norm, **options
            )
            np.testing.assert_allclose(still, setting.x, atol=2e-6)
    tiny = setting.perturb(
        "adversarial", loss=lambda images: 1e-25 * setting.loss(images), **options
    )
    whole = setting.perturb("adversarial", **options)
    np.testing.assert_allclose(tiny, whole, atol=1e-5)


def test_black_and_white_pixels_keep_their_gradient(setting):
    x = jnp.zeros_like(setting.x)
    brighter = setting.perturb(
        "adversarial", x=x, loss=lambda images: images.sum((1, 2, 3)), epsilon=1.0,
        step_size=0.5, num_steps=2, random_start=False,
    )  # fmt: skip
    assert np.all(np.asarray(brighter).sum((1, 2, 3)) > 0.01)


# ------------------------------------------------------------------------ keys, sharding, gradients


@pytest.mark.parametrize("kind", KINDS)
def test_the_key_alone_decides_and_known_latents_change_nothing(setting, kind):
    first, again = setting.perturb(kind), setting.perturb(kind)
    np.testing.assert_array_equal(first, again)
    assert np.any(np.asarray(setting.perturb(kind, key=6)) != np.asarray(first))
    z = setting.frozen.encode(setting.x, setting.y)
    call = perturbation(kind, epsilon=0.5)
    given = call(jax.random.key(5), setting.frozen, setting.loss, setting.x, setting.labels, z)
    np.testing.assert_allclose(given, first, atol=1e-6)


@pytest.mark.parametrize("kind", ["random", "adversarial", "interpolation"])
def test_sharding_over_eight_devices_changes_nothing(kind):
    flow, params = make_flow(None)
    frozen = flow.freeze(params)
    x = jax.random.uniform(jax.random.key(4), (16, *SHAPE))
    labels = jnp.arange(16) % 3
    loss = lambda images: jnp.sum(jnp.sin(3 * images), (1, 2, 3))
    call = perturbation(kind, epsilon=0.5, ratio=0.8)
    run = jax.jit(lambda frozen, x, y: call(jax.random.key(5), frozen, loss, x, y, None))
    alone = run(frozen, x, labels)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    shard = lambda a: jax.device_put(a, NamedSharding(mesh, PartitionSpec("data")))
    frozen = jax.device_put(frozen, NamedSharding(mesh, PartitionSpec()))
    sharded = run(frozen, shard(x), shard(labels))
    assert len(sharded.sharding.device_set) == 8
    np.testing.assert_allclose(sharded, alone, atol=2e-6)


def test_a_part_of_a_batch_with_its_numbers_gets_what_the_whole_batch_gets(setting):
    whole = setting.perturb("random", ratio=0.7)
    y = None if setting.y is None else setting.y[2:5]
    part = gr.random_latent_perturbation(
        jax.random.key(5), setting.frozen, setting.x[2:5], epsilon=0.5, y=y, ratio=0.7,
        indices=jnp.arange(2, 5),
    )  # fmt: skip
    np.testing.assert_allclose(part, whole[2:5], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_reaches_the_flow_the_images_or_the_classifier(setting, kind):
    def total(frozen, x, scale):
        call = perturbation(kind, epsilon=0.5, num_steps=1)
        loss = lambda images: scale * setting.loss(images)
        return jnp.sum(call(jax.random.key(5), frozen, loss, x, setting.labels, None) ** 2)

    grads = jax.grad(total, argnums=(0, 1, 2), allow_int=True)(setting.frozen, setting.x, 2.0)
    for leaf in jax.tree.leaves(grads):
        if leaf.dtype != jax.dtypes.float0:
            assert not np.any(leaf)


@pytest.mark.parametrize("kind", KINDS)
def test_a_traced_radius_has_a_gradient_and_still_nothing_else_has(setting, kind):
    def total(epsilon, frozen, x, scale, **options):
        call = perturbation(kind, epsilon=epsilon, num_steps=1, **options)
        loss = lambda images: scale * setting.loss(images)
        weights = jnp.sin(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)
        images = call(jax.random.key(5), frozen, loss, x, setting.labels, None)
        return jnp.sum(weights * images)

    # The ball binds: a step of 0.5 is longer than its radius.
    options = {"random_start": False} if kind in ("adversarial", "pgd") else {}
    run = lambda epsilon: total(epsilon, setting.frozen, setting.x, 2.0, **options)
    np.testing.assert_allclose(jax.jit(run)(0.2), run(0.2), atol=1e-5)
    slope = jax.jit(jax.grad(run))(0.2)
    difference = (float(run(0.202)) - float(run(0.198))) / 0.004
    assert abs(difference) > 1e-2
    np.testing.assert_allclose(slope, difference, rtol=0.02)
    grads = jax.grad(total, argnums=(0, 1, 2, 3), allow_int=True)(
        0.2, setting.frozen, setting.x, 2.0
    )
    assert np.any(grads[0])
    for leaf in jax.tree.leaves(grads[1:]):
        if leaf.dtype != jax.dtypes.float0:
            assert not np.any(leaf)


@pytest.mark.parametrize("kind", ["adversarial", "pgd"])
def test_a_ball_that_does_not_bind_gives_its_radius_no_gradient(setting, kind):
    def total(epsilon):
        call = perturbation(kind, epsilon=epsilon, num_steps=2, step_size=0.05, random_start=False)
        args = jax.random.key(5), setting.frozen, setting.loss, setting.x, setting.labels, None
        return jnp.sum(call(*args) ** 2)

    assert float(jax.grad(total)(0.2)) == 0
    assert float(jax.grad(total)(0.06)) != 0


@pytest.mark.parametrize("kind", ["adversarial", "pgd"])
def test_an_image_that_an_attack_leaves_alone_gives_the_radius_no_gradient(setting, kind):
    def total(epsilon, **options):
        call = perturbation(kind, epsilon=epsilon, num_steps=2, random_start=False, **options)
        args = jax.random.key(5), setting.frozen, lambda x: 0 * x.sum((1, 2, 3)), setting.x
        return jnp.sum(call(*args, setting.labels, None))

    assert float(jax.grad(total)(0.3)) == 0
    assert float(jax.grad(lambda e: total(e, clip=0.2, clip_norm="l2"))(0.3)) == 0


@pytest.mark.parametrize("epsilon", [-0.1, float("nan")])
def test_a_radius_that_is_an_array_is_checked_where_it_is_known(setting, epsilon):
    with pytest.raises(ValueError, match="epsilon is .*; allowed: a number >= 0"):
        setting.perturb("random", epsilon=jnp.float32(epsilon))


def test_bfloat16_images_come_back_as_bfloat16(setting):
    for kind in KINDS:
        assert setting.perturb(kind, x=setting.x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("random", {"epsilon": -1.0}, "epsilon is -1.0; allowed: a number >= 0"),
        ("pgd", {"epsilon": float("nan")}, "epsilon is nan"),
        ("adversarial", {"num_steps": 0}, "num_steps is 0; allowed: an integer >= 1"),
        ("adversarial", {"step_size": -0.1}, "step_size is -0.1"),
        ("adversarial", {"norm": "none"}, r"norm must be one of \('l2', 'linf'\), got 'none'"),
        ("away", {"norm": "l1"}, "norm must be .* got 'l1'"),
        ("random", {"ratio": 1.5}, "ratio is 1.5; allowed: a number from 0 to 1"),
        ("random", {"clip": -0.1}, "clip is -0.1"),
        ("random", {"clip_norm": "l1"}, "clip_norm must be .* got 'l1'"),
        ("interpolation", {"epsilon": 1.5}, "epsilon is 1.5; allowed: a number from 0 to 1"),
        ("adversarial", {"loss": lambda x: x.sum()}, r"loss_fn returned losses of shape \(\)"),
        ("random", {"x": jnp.zeros((2, 8, 8, 1))}, r"x has shape \(2, 8, 8, 1\)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_named_with_its_value(setting, kind, options, words):
    with pytest.raises(ValueError, match=words):
        setting.perturb(kind, **options)


@both_flows
def test_labels_and_latents_that_do_not_fit_are_refused(setting):
    key, x = jax.random.key(0), setting.x
    wrong = setting.labels if setting.y is None else None
    words = "unconditional flow" if setting.y is None else "y is None, but the flow is conditional"
    for z in (None, jnp.zeros_like(x)):
        with pytest.raises(ValueError, match=words):
            gr.random_latent_perturbation(key, setting.frozen, x, epsilon=1.0, y=wrong, z=z)
    for z in (jnp.zeros((2, *SHAPE)), jnp.zeros((BATCH, 8, 8, 1))):
        with pytest.raises(ValueError, match="z has shape"):
            gr.away_latent_perturbation(key, setting.frozen, x, epsilon=1.0, y=setting.y, z=z)
    with pytest.raises(ValueError, match="labels has shape"):
        gr.latent_interpolation(key, setting.frozen, x, jnp.zeros(2), epsilon=0.5, y=setting.y)
    with pytest.raises(ValueError, match="indices has shape"):
        gr.random_latent_perturbation(
            key, setting.frozen, x, epsilon=1.0, y=setting.y, indices=jnp.arange(3)
        )
    with pytest.raises(ValueError, match="kind must be one of .* got 'randon'"):
        perturbation("randon", epsilon=1.0)


@pytest.mark.parametrize("kind", ["random", "away", "adversarial", "interpolation"])
def test_a_flow_without_its_parameters_is_named(setting, kind):
    for flow in (setting.flow, None):
        call = perturbation(kind, epsilon=0.5)
        with pytest.raises(ValueError, match=r"frozen is .*; allowed: flow\.freeze\(params\)"):
            call(jax.random.key(5), flow, setting.loss, setting.x, setting.labels, None)


def test_a_radius_of_numpy_does_not_make_float64_of_the_images():
    x = jnp.full((2, 4, 4, 1), 0.5, jnp.float32)
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        attack = lambda radius: gr.image_pgd(
            jax.random.key(0), lambda images: images.sum((1, 2, 3)), x, epsilon=radius,
            step_size=0.2, num_steps=2, random_start=False,
        )  # fmt: skip
        found = jax.jit(lambda: attack(np.float64(0.5)))()
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(found, jax.jit(lambda: attack(0.5))())
