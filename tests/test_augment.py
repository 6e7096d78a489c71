"""Augmentation: every operation against Pillow, then the properties that training relies on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from PIL import Image, ImageEnhance, ImageOps
from scipy.stats import ks_2samp

from genreg_jax import augment
from genreg_jax.augment import spec, transforms
from genreg_jax.errors import UserError

SHAPES = [(28, 20, 1), (24, 32, 3)]  # height and width differ, so that no test can mix them up


def bytes_like(shape, seed=0, low=0, high=256):
    """A random image that is smooth enough for warps and has no symmetry."""
    rng = np.random.default_rng(seed)
    height, width, channels = shape
    coarse = rng.integers(low, high, (height // 4 + 1, width // 4 + 1, channels))
    fine = np.kron(coarse, np.ones((4, 4, 1)))[:height, :width] + rng.integers(-20, 20, shape)
    return np.clip(fine, low, high - 1).astype(np.uint8)


def to_pillow(image):
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def from_pillow(image, shape):
    return np.asarray(image).reshape(shape).astype(np.int64)


@functools.cache
def jitted(name):
    return jax.jit(getattr(augment, name))


def run_op(name, image, **magnitude):
    """The operation in 8-bit units, not rounded."""
    x = jnp.asarray(image[None] / 255, jnp.float32)
    magnitude = {k: jnp.float32(v) for k, v in magnitude.items()}
    return np.asarray(jitted(name)(x, **magnitude))[0] * 255


def random_images(shape, seed=0, dtype=jnp.float32):
    return np.random.default_rng(seed).uniform(0.02, 0.98, shape).astype(dtype)


# Against Pillow ---------------------------------------------------------------------------------


def pillow_affine(image, a, b, c, d, e, f):
    return image.transform(
        image.size, Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR
    )


PILLOW_GEOMETRY = {
    "rotate": ("degrees", lambda im, v: im.rotate(v, Image.Resampling.BILINEAR)),
    "shear_x": ("level", lambda im, v: pillow_affine(im, 1, -v, 0, 0, 1, 0)),
    "shear_y": ("level", lambda im, v: pillow_affine(im, 1, 0, 0, -v, 1, 0)),
    "translate_x": ("pixels", lambda im, v: pillow_affine(im, 1, 0, -v, 0, 1, 0)),
    "translate_y": ("pixels", lambda im, v: pillow_affine(im, 1, 0, 0, 0, 1, -v)),
}
MAGNITUDES = {
    "rotate": [-133.0, -30.0, -7.3, 4.1, 29.0, 90.0, 135.0],
    "shear_x": [-0.99, -0.31, -0.05, 0.13, 0.29, 0.97],
    "shear_y": [-0.99, -0.31, -0.05, 0.13, 0.29, 0.97],
    "translate_x": [-32.0, -9.7, -3.0, 0.4, 5.0, 11.3],
    "translate_y": [-32.0, -9.7, -3.0, 0.4, 5.0, 11.3],
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", PILLOW_GEOMETRY)
def test_geometric_ops_match_pillow(name, shape):
    argument, reference = PILLOW_GEOMETRY[name]
    image = bytes_like(shape)
    for magnitude in MAGNITUDES[name]:
        ours = run_op(name, image, **{argument: magnitude})
        theirs = from_pillow(reference(to_pillow(image), magnitude), shape)
        # Pillow cuts the fraction off: the difference lies in [0, 1).
        wrong = (ours - theirs < -0.01) | (ours - theirs > 1.01)
        # A source within rounding of the image's edge may fall on either side of it.
        assert wrong.mean() <= 0.003, f"{name} {magnitude}: {wrong.sum()} pixels differ"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["brightness", "color", "contrast", "sharpness"])
def test_enhancing_ops_match_pillow(name, shape):
    image = bytes_like(shape)
    enhancer = getattr(ImageEnhance, name.capitalize())(to_pillow(image))
    for factor in [0.01, 0.1, 0.55, 1.0, 1.27, 1.9, 1.99]:
        ours = run_op(name, image, factor=factor)
        theirs = from_pillow(enhancer.enhance(factor), shape)
        # Pillow rounds the degenerate image to 8 bits before it blends, and cuts after it.
        assert np.abs(ours - theirs).max() <= 1.01 + 0.5 * abs(1 - factor), f"{name} {factor}"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_posterize_and_solarize_match_pillow(shape):
    image = bytes_like(shape)
    for bits in range(1, 9):
        theirs = from_pillow(ImageOps.posterize(to_pillow(image), bits), shape)
        np.testing.assert_allclose(run_op("posterize", image, bits=bits), theirs, atol=1e-3)
    for level in [0, 1, 77, 128, 200, 255, 256]:
        theirs = from_pillow(ImageOps.solarize(to_pillow(image), level), shape)
        # Between two grey levels, so that rounding cannot decide.
        ours = run_op("solarize", image, threshold=(level - 0.5) / 255)
        np.testing.assert_allclose(ours, theirs, atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("low,high", [(0, 256), (40, 180), (100, 103), (77, 78)])
def test_autocontrast_and_equalize_match_pillow(low, high, shape):
    image = bytes_like(shape, low=low, high=high)
    theirs = from_pillow(ImageOps.autocontrast(to_pillow(image)), shape)
    assert np.abs(run_op("autocontrast", image) - theirs).max() <= 1.01  # Pillow cuts
    theirs = from_pillow(ImageOps.equalize(to_pillow(image)), shape)
    np.testing.assert_allclose(run_op("equalize", image), theirs, atol=1e-3)


def test_equalize_matches_pillow_where_it_declines():
    small = bytes_like((8, 8, 1))
    np.testing.assert_allclose(run_op("equalize", small), small, atol=1e-3)
    # One channel to equalize, one constant, one with two values.
    mixed = bytes_like((24, 32, 3))
    mixed[..., 1] = 9
    mixed[..., 2] = np.where(mixed[..., 2] > 100, 200, 10)
    theirs = from_pillow(ImageOps.equalize(to_pillow(mixed)), mixed.shape)
    np.testing.assert_allclose(run_op("equalize", mixed), theirs, atol=1e-3)


@pytest.mark.parametrize("image_shape", [(8, 8, 1), (20, 28, 3)], ids=str)
def test_apply_ops_is_the_named_op_of_each_image(image_shape):
    # What RandAugment runs is one merged kernel; here every branch of it meets its public name.
    # No level puts a pixel on a border to the last bit, where rounding would decide.
    levels = [0, 0.25, -0.3, 2.5, -1.5, -25.0, 0.4, -0.6, 0.7, -0.8, 3, 100, 0, 0]
    x = random_images((len(levels), *image_shape))
    arguments = [
        {},
        {"level": 0.25},
        {"level": -0.3},
        {"pixels": 2.5},
        {"pixels": -1.5},
        {"degrees": -25.0},
        {"factor": 1.4},
        {"factor": 0.4},
        {"factor": 1.7},
        {"factor": 0.2},
        {"bits": jnp.float32(5)},
        {"threshold": 156 / 255},
        {},
        {},
    ]
    # Of a coordinate in pixels, between which no slope is above 1.
    rounding = max(image_shape) * 2.0**-23
    merged = jax.jit(transforms.apply_ops)(
        x, jnp.arange(len(levels)), jnp.array(levels, jnp.float32)
    )
    for n, (name, kwargs) in enumerate(zip(augment.OPS, arguments)):
        alone = jitted(name)(x[n : n + 1], **kwargs)[0]
        np.testing.assert_allclose(merged[n], alone, atol=rounding, err_msg=name)
        changed = float(jnp.abs(alone - x[n]).max()) > 1e-3
        no_op = (
            ["identity"] + ["color"] * (image_shape[-1] == 1) + ["equalize"] * (image_shape[0] == 8)
        )
        assert changed == (name not in no_op), name


# What every transformation keeps ----------------------------------------------------------------

TRANSFORMS = {
    "flip": augment.flip,
    "crop": functools.partial(augment.crop, padding=2),
    "shift": functools.partial(augment.crop, padding=2, mode="zero"),
    "random_resized_crop": augment.random_resized_crop,
    "cutout": functools.partial(augment.cutout, size=4),
    "affine": augment.affine,
    "randaugment": augment.randaugment,
    "trivialaugment": augment.trivialaugment,
}
JITTED = {name: jax.jit(transform) for name, transform in TRANSFORMS.items()}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_shape_range_dtype_and_randomness(name):
    x, before = random_images((8, 10, 12, 3)), JITTED[name]._cache_size()  # of other tests
    for dtype in (jnp.float32, jnp.bfloat16):
        y = JITTED[name](jax.random.key(1), x.astype(dtype))
        assert y.shape == x.shape and y.dtype == dtype
        assert 0 <= y.min() and y.max() <= 1
        assert not np.array_equal(y, x.astype(dtype))
    first, again = [JITTED[name](jax.random.key(1), x) for _ in range(2)]
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, JITTED[name](jax.random.key(2), x))
    assert JITTED[name]._cache_size() <= before + 2  # one for each dtype: no recompilation


@pytest.mark.parametrize("name", TRANSFORMS)
def test_image_i_does_not_depend_on_the_batch(name):
    x = random_images((8, 10, 12, 3))
    key = jax.random.key(3)
    whole = np.asarray(JITTED[name](key, x))
    some = np.array([5, 2, 7, 0, 1, 3])
    moved = JITTED[name](key, x[some], indices=some)
    np.testing.assert_allclose(moved, whole[some], atol=1e-6)


def test_same_image_gets_different_draws_in_a_batch():
    x = np.repeat(random_images((1, 10, 12, 3)), 16, axis=0)
    y = JITTED["affine"](jax.random.key(0), x)
    assert len(np.unique(np.asarray(y).reshape(16, -1), axis=0)) == 16


def test_transforms_run_under_vmap():
    x = random_images((2, 4, 8, 8, 1))
    keys = jax.random.split(jax.random.key(0), 2)
    together = jax.jit(jax.vmap(TRANSFORMS["cutout"]))(keys, x)
    for n in range(2):
        np.testing.assert_array_equal(together[n], JITTED["cutout"](keys[n], x[n]))


@pytest.mark.skipif(len(jax.devices()) < 2, reason="needs several devices")
def test_sharded_batch_gets_the_same_images_and_stays_where_it_is():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    x, key = random_images((4, 8, 8, 3)), jax.random.key(0)
    run = jax.jit(
        augment.make("flip+crop+random_resized_crop+affine+cutout", image_shape=(8, 8, 3))
    )
    compiled = run.lower(key, jax.device_put(x, sharding)).compile()
    np.testing.assert_allclose(compiled(key, jax.device_put(x, sharding)), run(key, x), atol=1e-6)
    assert "all-gather" not in compiled.as_text()


@pytest.mark.parametrize(
    "transform",
    [
        functools.partial(augment.crop, padding=0),
        functools.partial(augment.cutout, size=0),
        functools.partial(augment.affine, degrees=0, translate=0, shear=0),
        functools.partial(augment.randaugment, num_ops=0),
        augment.make("none", image_shape=(9, 7, 3)),
    ],
)
def test_strength_zero_is_the_identity_bit_for_bit(transform):
    x = random_images((4, 9, 7, 3))
    np.testing.assert_array_equal(jax.jit(transform)(jax.random.key(0), x), x)


def test_ops_at_their_neutral_magnitude_are_the_identity_bit_for_bit():
    x = random_images((3, 9, 7, 3))
    neutral = {"shear_x": "level", "shear_y": "level", "rotate": "degrees"}
    neutral |= {"translate_x": "pixels", "translate_y": "pixels"}
    for name, argument in neutral.items():
        np.testing.assert_array_equal(jitted(name)(x, **{argument: 0.0}), x)
    for name in ("brightness", "color", "contrast", "sharpness"):
        np.testing.assert_array_equal(jitted(name)(x, factor=1.0), x)
    np.testing.assert_array_equal(augment.solarize(x, threshold=1.1), x)


# Distributions ----------------------------------------------------------------------------------


def test_flip_is_left_to_right_and_happens_half_of_the_time():
    x = np.repeat(random_images((1, 3, 5, 1)), 1000, axis=0)
    y = np.asarray(JITTED["flip"](jax.random.key(0), x))
    flipped = (y == np.asarray(x)[:, :, ::-1]).all(axis=(1, 2, 3))
    kept = (y == np.asarray(x)).all(axis=(1, 2, 3))
    assert (flipped ^ kept).all()
    assert 0.44 < flipped.mean() < 0.56  # 4 standard errors


@pytest.mark.parametrize("mode,numpy_mode", [("reflect", "reflect"), ("zero", "constant")])
def test_crop_is_a_window_of_the_padded_image_and_reaches_all_of_them(mode, numpy_mode):
    image = np.asarray(random_images((1, 5, 6, 1)))
    x = jnp.repeat(image, 400, axis=0)
    y = np.asarray(
        jax.jit(functools.partial(augment.crop, padding=2, mode=mode))(jax.random.key(0), x)
    )
    padded = np.pad(image[0], ((2, 2), (2, 2), (0, 0)), mode=numpy_mode)
    windows = [padded[r : r + 5, c : c + 6] for r in range(5) for c in range(5)]
    seen = {int(np.argmin([np.abs(w - out).max() for w in windows])) for out in y}
    nearest = [min(np.abs(w - out).max() for w in windows) for out in y]
    assert max(nearest) == 0.0
    assert seen == set(range(25))


resize_boxes = jax.jit(transforms.kernels.resize_boxes)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "box", [(3, 5, 9, 6), (0, 0, 24, 20), (10, 2, 1, 2), (2, 1, 22, 3), (7, 0, 2, 19)]
)
def test_resized_boxes_match_pillow(box, shape):
    top, left, height, width = box
    x = random_images((1, *shape))
    found = resize_boxes(x, *(np.array([n]) for n in box))[0]
    for c in range(shape[-1]):
        plane = Image.fromarray(np.asarray(x[0, ..., c]), "F")
        plane = plane.crop((left, top, left + width, top + height))
        wanted = plane.resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(found[..., c], wanted, atol=1e-5)


def published_box(rng, high, wide, least):
    """Area, aspect and place as torchvision's RandomResizedCrop draws them, one box at a time."""
    for _ in range(10):
        area = high * wide * rng.uniform(least, 1)
        aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < w <= wide and 0 < h <= high:
            return rng.integers(0, high - h + 1), rng.integers(0, wide - w + 1), h, w
    if wide / high < 3 / 4:
        w, h = wide, round(wide / (3 / 4))
    elif wide / high > 4 / 3:
        w, h = round(high * (4 / 3)), high
    else:
        w, h = wide, high
    return (high - h) // 2, (wide - w) // 2, h, w


@pytest.mark.parametrize("size", [(40, 56), (64, 64), (17, 90), (90, 17)], ids=str)
@pytest.mark.parametrize("least", [0.08, 0.9])
def test_boxes_are_distributed_as_published(size, least):
    draws = jax.random.uniform(jax.random.key(3), (2000, 11, 2))
    found = np.stack(transforms._boxes(draws, size, least), axis=1).astype(float)
    rng = np.random.default_rng(4)
    wanted = np.array([published_box(rng, *size, least) for _ in range(2000)])
    for ours, theirs in zip(found.T, wanted.T):
        assert np.all(ours == np.round(ours))
        assert ks_2samp(ours, theirs, method="asymp").pvalue > 1e-3
    aspects = found[:, 2] / found[:, 3], wanted[:, 2] / wanted[:, 3]
    assert ks_2samp(*aspects, method="asymp").pvalue > 1e-3
    assert np.all(found[:, 0] + found[:, 2] <= size[0])
    assert np.all(found[:, 1] + found[:, 3] <= size[1]) and found.min() >= 0


def test_cutout_blackens_one_square_anywhere_and_nothing_else():
    x = jnp.ones((600, 9, 7, 3))
    y = np.asarray(jax.jit(functools.partial(augment.cutout, size=3))(jax.random.key(0), x))
    black = y[..., 0] == 0
    assert ((y == 0) == black[..., None]).all() and ((y == 0) | (y == 1)).all()
    rows, columns = black.any(axis=2), black.any(axis=1)
    assert (black == rows[:, :, None] & columns[:, None, :]).all()  # a rectangle
    assert set(rows.sum(1)) == set(columns.sum(1)) == {2, 3}  # cut at a border, or whole
    assert black.any(axis=0).all()  # every pixel is reached


@pytest.mark.parametrize("channels", [1, 3])
def test_a_traced_magnitude_has_the_gradient_of_its_operations(channels):
    """A difference of smooth images, without what jumps: the tonal operations."""
    rows, columns = np.mgrid[:16, :16]
    x = 0.5 + 0.2 * np.sin(0.3 * rows + 0.2 * columns)[None, :, :, None]
    x = np.repeat(np.repeat(x, 24, axis=0), channels, axis=3)
    weights = np.cos(0.05 * np.arange(x.size)).reshape(x.shape)
    smooth = [augment.OPS.index(n) for n in ("rotate", "translate_x", "brightness", "contrast")]
    op = np.resize(smooth, 24).astype(np.int32)
    level = np.resize([3.0, 0.21, 0.1, 0.15], 24).astype(np.float32)

    @jax.jit
    @jax.value_and_grad
    def total(factor):
        images = transforms.apply_ops(jnp.asarray(x, jnp.float32), op, factor * level)
        return jnp.sum(weights.astype(np.float32) * images)

    difference = (float(total(1.01)[0]) - float(total(0.99)[0])) / 0.02
    slope = float(total(1.0)[1])
    assert abs(difference) > 0.3
    assert slope == pytest.approx(difference, rel=0.03)


def test_a_magnitude_given_apart_is_that_of_the_spec():
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(6, 8, 8, 3)), jnp.float32)
    spec, other = "flip+randaugment(2,3)+crop(1)", "flip+randaugment(2,12.5)+crop(1)"
    key = jax.random.key(3)
    run = lambda text, **kw: augment.make(text, image_shape=(8, 8, 3), **kw)(key, x)
    apart = jax.jit(lambda m: run(spec, magnitude=m))
    np.testing.assert_allclose(apart(12.5), jax.jit(lambda: run(other))(), atol=2e-6)
    assert np.abs(apart(12.5) - apart(3.0)).max() > 0.1
    default = jax.jit(lambda: run("randaugment", magnitude=4.0))()
    np.testing.assert_array_equal(default, jax.jit(lambda: run("randaugment(2,4.0)"))())
    with pytest.raises(UserError, match="magnitude is given for the augmentation 'flip'"):
        augment.make("flip", image_shape=(8, 8, 3), magnitude=4.0)
    for wrong in (31.0, -1.0, float("nan")):
        with pytest.raises(UserError, match="magnitude is"):
            augment.make("randaugment", image_shape=(8, 8, 3), magnitude=wrong)


def test_randaugment_draws_all_ops_with_both_signs():
    draws = transforms._uniform(jax.random.key(0), jnp.zeros((4000, 1, 1, 1)), None, (2,))
    drawn = {}

    def record(x, op, level):
        drawn["op"], drawn["level"] = np.asarray(op), np.asarray(level)
        return x

    original, transforms.apply_ops = transforms.apply_ops, record
    try:
        x = jnp.zeros((4000, 33, 66, 1))
        augment.randaugment(jax.random.key(0), x, num_ops=1, magnitude=15)
        op, level = drawn["op"], drawn["level"]
        augment.trivialaugment(jax.random.key(0), x)
    finally:
        transforms.apply_ops = original
    counts = np.bincount(op, minlength=14)
    assert len(counts) == 14 and (abs(counts - 4000 / 14) < 4 * np.sqrt(4000 / 14)).all()
    assert draws.min() >= 0 and draws.max() < 1

    half = {"shear_x": 0.15, "shear_y": 0.15, "rotate": 15, "brightness": 0.45, "color": 0.45}
    half |= {"contrast": 0.45, "sharpness": 0.45, "translate_x": 75 / 331 * 66}
    half |= {"translate_y": 75 / 331 * 33}
    for name, expected in half.items():
        values = level[op == augment.OPS.index(name)]
        np.testing.assert_allclose(np.abs(values), expected, rtol=1e-5)
        assert 0.35 < (values > 0).mean() < 0.65, name
    assert set(level[op == augment.OPS.index("posterize")]) == {2.0}
    assert set(level[op == augment.OPS.index("solarize")]) == {128.0}

    # TrivialAugment: every magnitude from none to the widest, with both signs.
    turns = drawn["level"][drawn["op"] == augment.OPS.index("rotate")]
    assert len(np.unique(np.abs(turns))) > 25
    assert turns.max() > 120 and turns.min() < -120 and abs(turns).max() <= 135
    moves = drawn["level"][drawn["op"] == augment.OPS.index("translate_y")]
    assert abs(moves).max() <= 32


def test_affine_draws_stay_within_their_limits_and_fill_them():
    # The centre of mass of a dot follows the shift; its sign and size show the limits.
    x = jnp.zeros((500, 17, 33, 1)).at[:, 8, 16].set(1.0)
    moving = jax.jit(functools.partial(augment.affine, degrees=0, translate=0.125, shear=0))
    y = np.asarray(moving(jax.random.key(0), x))[..., 0]
    down = (y.sum(2) * np.arange(17)).sum(1) - 8
    right = (y.sum(1) * np.arange(33)).sum(1) - 16
    for moved, limit in ((down, 17 / 8), (right, 33 / 8)):
        assert abs(moved).max() <= limit + 1e-4
        assert moved.max() > 0.95 * limit and moved.min() < -0.95 * limit
        assert abs(moved.mean()) < 0.12 * limit


def test_affine_matches_pillow_with_composed_matrices():
    # The oracle composes 3 x 3 matrices; the draws are read off by the same key.
    image = bytes_like((20, 28, 3), seed=4)
    x = jnp.asarray(image[None] / 255, jnp.float32)
    key = jax.random.key(11)
    u = np.asarray(transforms._uniform(key, x, None, (4,)))[0].astype(np.float64) * 2 - 1
    angle, slope, right, down = np.deg2rad(20 * u[0]), 0.2 * u[1], 7 * u[2], 5 * u[3]

    def move(dx, dy):
        return np.array([[1, 0, dx], [0, 1, dy], [0, 0, 1.0]])

    rotation = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    shearing = np.array([[1, -slope, 0], [0, 1, 0], [0, 0, 1]])
    source = move(14, 10) @ rotation @ shearing @ move(-14, -10) @ move(-right, -down)
    theirs = from_pillow(pillow_affine(to_pillow(image), *source[:2].ravel()), image.shape)
    turn = jax.jit(functools.partial(augment.affine, degrees=20, translate=0.25, shear=0.2))
    difference = np.asarray(turn(key, x))[0] * 255 - theirs
    assert ((difference < -0.01) | (difference > 1.01)).mean() <= 0.003


# Gradients --------------------------------------------------------------------------------------

LINEAR = {
    "rotate": {"degrees": 17.0},
    "shear_x": {"level": 0.2},
    "shear_y": {"level": -0.2},
    "translate_x": {"pixels": 1.3},
    "translate_y": {"pixels": -0.7},
    "brightness": {"factor": 0.6},
    "color": {"factor": 0.3},
    "contrast": {"factor": 0.4},
    "sharpness": {"factor": 0.2},
}


@pytest.mark.parametrize("name", LINEAR)
def test_gradients_of_linear_ops(name):
    x = random_images((2, 4, 5, 3))
    op = jax.jit(functools.partial(getattr(augment, name), **LINEAR[name]))
    check_grads(op, (x,), order=1, atol=1e-2, rtol=1e-2, eps=1e-2)


@pytest.mark.parametrize("name", ["solarize", "autocontrast"])
def test_gradients_of_piecewise_ops(name):
    x = random_images((2, 4, 5, 3), seed=1)
    kwargs = {"threshold": 0.5} if name == "solarize" else {}
    op = jax.jit(functools.partial(getattr(augment, name), **kwargs))
    assert abs(x - 0.5).min() > 1e-3  # no kink within the difference
    check_grads(op, (x,), order=1, atol=2e-2, rtol=2e-2, eps=1e-4)


def test_straight_through_ops_have_the_identity_gradient():
    x, weight = random_images((2, 24, 24, 3)), random_images((2, 24, 24, 3), seed=1)
    for op in (augment.equalize, functools.partial(augment.posterize, bits=3)):
        made, (gradient,) = jax.jit(lambda x, op=op: (op(x), jax.vjp(op, x)[1](weight)))(x)
        assert not np.allclose(made, x, atol=0.01)
        np.testing.assert_array_equal(gradient, weight)


def test_extreme_images_have_finite_gradients_and_autocontrast_keeps_constant_ones():
    @jax.jit
    @jax.grad
    def gradient(x, levels):
        return (transforms.apply_ops(x, jnp.arange(14), levels) ** 2).sum()

    for value in (0.0, 0.3, 1.0):
        x = jnp.full((14, 6, 6, 3), value)
        np.testing.assert_array_equal(jitted("autocontrast")(x), x)
        np.testing.assert_array_equal(jitted("equalize")(x), x)
        for level in (-0.9, 0.9):
            levels = jnp.full(14, level).at[10].set(2.0)
            assert jnp.isfinite(gradient(x, levels)).all()


def test_black_and_white_pixels_keep_their_gradient():
    x = jnp.array([0.0, 0.5, 1.0]).reshape(1, 1, 3, 1)
    gradient = jax.grad(lambda x: augment.brightness(x, factor=1.0).sum())(x)
    np.testing.assert_array_equal(gradient, jnp.ones_like(x))
    gradient = jax.grad(lambda x: augment.brightness(x, factor=1.5).sum())(x)
    np.testing.assert_allclose(gradient.ravel(), [1.5, 1.5, 0.0])  # the last one was clipped


@pytest.mark.parametrize("name", TRANSFORMS)
def test_gradient_reaches_the_image_in_both_modes(name):
    x, tangent = random_images((8, 10, 12, 3)), random_images((8, 10, 12, 3), seed=1)
    key = jax.random.key(5)

    @jax.jit
    def both(x):
        f = lambda x: (TRANSFORMS[name](key, x) ** 2).sum()
        return jax.grad(f)(x), jax.jvp(f, (x,), (tangent,))[1]

    gradient, directional = both(x)
    assert jnp.isfinite(gradient).all()
    assert (jnp.abs(gradient).max(axis=(1, 2, 3)) > 0).all()  # in every image
    np.testing.assert_allclose((gradient * tangent).sum(), directional, rtol=1e-3)


# The string form --------------------------------------------------------------------------------


def test_make_composes_the_terms_with_one_key_each():
    x, key = random_images((4, 16, 16, 3)), jax.random.key(9)
    made = augment.make(" flip + crop(3)+cutout(4)", image_shape=(16, 16, 3))

    @jax.jit
    def three(x):
        x = augment.flip(jax.random.fold_in(key, 0), x)
        x = augment.crop(jax.random.fold_in(key, 1), x, padding=3)
        return augment.cutout(jax.random.fold_in(key, 2), x, size=4)

    by_hand, made = np.asarray(three(x)), jax.jit(made)
    np.testing.assert_array_equal(made(key, x), by_hand)
    order = np.array([3, 1, 0, 2])
    np.testing.assert_array_equal(made(key, x[order], indices=order), by_hand[order])


@pytest.mark.parametrize(
    "text,transform",
    [
        ("crop", functools.partial(augment.crop, padding=2)),
        ("shift", functools.partial(augment.crop, padding=2, mode="zero")),
        ("random_resized_crop(0.3)", functools.partial(augment.random_resized_crop, least=0.3)),
        ("random_resized_crop", functools.partial(augment.random_resized_crop, least=0.08)),
        ("cutout", functools.partial(augment.cutout, size=8)),
        ("affine(0.5)", functools.partial(augment.affine, degrees=5, translate=1 / 16, shear=0.05)),
        ("randaugment(1,4.5)", functools.partial(augment.randaugment, num_ops=1, magnitude=4.5)),
        ("trivialaugment", augment.trivialaugment),
    ],
)
def test_terms_mean_their_transform(text, transform):
    x, key = random_images((2, 16, 20, 1)), jax.random.key(9)
    made = jax.jit(augment.make(text, image_shape=(16, 20, 1)))(key, x)
    by_hand = jax.jit(transform)(jax.random.fold_in(key, 0), x)
    np.testing.assert_allclose(made, by_hand, atol=1e-6)


@pytest.mark.parametrize("side,padding", [(8, 1), (28, 3), (32, 4), (5, 1)])
def test_default_padding_scales(side, padding):
    assert spec._eighth((side, side + 3, 1)) == padding


@pytest.mark.parametrize(
    "text,parts",
    [
        ("flipp+crop", ["'flipp'", "did you mean 'flip'?", "trivialaugment"]),
        ("flip_crop_randaugment", ["did you mean 'flip+crop+randaugment'?"]),
        ("crop(1,2)", ["'crop(1,2)'", "at most 1"]),
        ("flip(2)", ["'flip(2)'", "no numbers"]),
        ("crop(a)", ["'crop(a)'"]),
        ("crop(1.5)", ["padding is 1.5", "integer"]),
        ("crop(-1)", ["padding is -1", ">= 0"]),
        ("crop(8)", ["padding is 8", "8 x 8"]),
        ("affine(-0.5)", ["strength is -0.5"]),
        ("random_resized_crop(0)", ["least is 0", "above 0"]),
        ("randaugment(2,31)", ["magnitude is 31", "from 0 to 30"]),
        ("__import__('os')", ["Unknown term"]),
        ("flip++crop", ["Unknown term ''"]),
        ("", ["''", "allowed"]),
        (None, ["None", "allowed"]),
    ],
)
def test_wrong_specs_say_what_is_allowed(text, parts):
    with pytest.raises(UserError) as error:
        augment.make(text, image_shape=(8, 8, 1))
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize("image_shape", [(8, 8), (8, 8, 2), (0, 8, 1), (8.0, 8, 1)])
def test_wrong_image_shapes_are_refused(image_shape):
    with pytest.raises(UserError, match="image_shape"):
        augment.make("flip", image_shape=image_shape)


# Wrong arguments --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "x,part",
    [
        (jnp.zeros((4, 4, 3)), r"shape \(4, 4, 3\)"),
        (jnp.zeros((2, 4, 4, 2)), "C = 1 or 3"),
        (jnp.zeros((2, 0, 4, 1)), r"shape \(2, 0, 4, 1\)"),
        (jnp.zeros((2, 4, 4, 3), jnp.uint8), "uint8"),
    ],
)
def test_wrong_images_are_refused_by_name(x, part):
    for call in (
        lambda: augment.flip(jax.random.key(0), x),
        lambda: augment.autocontrast(x),
        lambda: augment.make("none", image_shape=(4, 4, 1))(jax.random.key(0), x),
    ):
        with pytest.raises(ValueError, match="x has.*" + part):
            call()


def test_wrong_settings_are_refused_by_name():
    key, x = jax.random.key(0), jnp.zeros((2, 8, 8, 1))
    cases = {
        "padding is -1": lambda: augment.crop(key, x, padding=-1),
        "padding is True": lambda: augment.crop(key, x, padding=True),
        "mode is 'wrap'": lambda: augment.crop(key, x, padding=1, mode="wrap"),
        "size is -2": lambda: augment.cutout(key, x, size=-2),
        "degrees is -1": lambda: augment.affine(key, x, degrees=-1),
        "shear is nan": lambda: augment.affine(key, x, shear=float("nan")),
        "num_ops is 1.5": lambda: augment.randaugment(key, x, num_ops=1.5),
        "magnitude is 31": lambda: augment.randaugment(key, x, magnitude=31),
        "bits is 0": lambda: augment.posterize(x, bits=0),
        "factor has shape": lambda: augment.brightness(x, factor=jnp.ones(3)),
        "indices has shape": lambda: augment.flip(key, x, indices=jnp.arange(3)),
        "made for": lambda: augment.make("flip", image_shape=(4, 4, 1))(key, x),
    }
    for message, call in cases.items():
        with pytest.raises(ValueError, match=message):
            call()
