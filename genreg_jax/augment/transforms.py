"""Random transformations: a key and images in, images out.

Every function takes `indices`, the global numbers `[B]` of the images, and gives image `i` the key
`fold_in(key, indices[i])`. They default to 0 ... B-1, which is right for a batch that is one
array, sharded or not. A program that holds only a part of the batch, as under `shard_map`, passes
the numbers of its part and gets what the whole batch would have got.
"""

import dm_pix as pix
import jax
import jax.numpy as jnp

from genreg_jax.augment import kernels
from genreg_jax.augment.ops import OPS, check_images
from genreg_jax.checks import check_key, check_number, check_strength

MAX_MAGNITUDE = 30  # magnitudes are 0 ... 30, the 31 bins of torchvision


def flip(key, x, *, indices=None):
    """Mirrors every image left to right with probability one half.

    Args:
      key: a PRNG key.
      x: images `[B, H, W, C]` in `[0, 1]`.
      indices: global numbers of the images, integers `[B]`; 0 ... B-1 by default.

    Returns:
      Images `[B, H, W, C]`.

    Raises:
      ValueError: `x` is not a batch of float images, or `indices` does not fit it.

    Gradients flow to `x`; they are moved with the pixels.

    Example:
      >>> flip(jax.random.key(0), jnp.ones((2, 4, 4, 1))).shape
      (2, 4, 4, 1)
    """
    x = check_images(x)
    return jax.vmap(pix.random_flip_left_right)(_image_keys(key, x, indices), x)


def crop(key, x, *, padding=4, mode="reflect", indices=None):
    """Pads every image and cuts a window of the old size at a random place.

    Args:
      key: a PRNG key.
      x: images `[B, H, W, C]` in `[0, 1]`.
      padding: pixels added on each side; the usual choice is an eighth of the side.
      mode: what is added: `"reflect"` mirrors the image without repeating its edge, `"zero"` is
        black.
      indices: global numbers of the images, integers `[B]`; 0 ... B-1 by default.

    Returns:
      Images `[B, H, W, C]`; `x` itself with padding 0.

    Raises:
      ValueError: `x` is not a batch of float images, `padding` is negative or, for `"reflect"`,
        not smaller than the image, `mode` is unknown, or `indices` does not fit.

    Gradients flow to `x`; a pixel that shows up twice adds up its two gradients.

    Example:
      >>> crop(jax.random.key(0), jnp.ones((2, 8, 8, 1)), padding=1).shape
      (2, 8, 8, 1)
    """
    x = check_images(x)
    check_number("padding", padding, integer=True)
    if mode not in ("reflect", "zero"):
        raise ValueError(f"mode is {mode!r}; allowed: 'reflect' and 'zero'.")
    if mode == "reflect" and padding >= min(x.shape[1:3]):
        raise ValueError(
            f"padding is {padding}, but reflection needs less than the image's "
            f"{x.shape[1]} x {x.shape[2]} pixels; mode 'zero' allows it, in a config `shift`."
        )
    keys = _image_keys(key, x, indices)
    sides = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = jnp.pad(x, sides, mode="reflect" if mode == "reflect" else "constant")
    return jax.vmap(lambda k, image: pix.random_crop(k, image, x.shape[1:]))(keys, padded)


def random_resized_crop(key, x, *, least=0.08, indices=None):
    """Cuts a box of random size and shape out of every image and enlarges it to the image's size.

    The usual augmentation of photographs. The box's area is uniform in `[least, 1]` of the image's,
    its width to height log-uniform in `[3/4, 4/3]`, its place uniform; of ten such draws the first
    that fits is taken, or else the largest box in the middle with such a shape.

    Args:
      key: a PRNG key.
      x: images `[B, H, W, C]` in `[0, 1]`.
      least: smallest share of the image's area, in (0, 1].
      indices: global numbers of the images, integers `[B]`; 0 ... B-1 by default.

    Returns:
      Images `[B, H, W, C]`, resized by Pillow's antialiased bilinear filter.

    Raises:
      ValueError: `x` is not a batch of float images, `least` is out of range, or `indices` does not
        fit.

    Gradients flow to `x`, linearly.

    Example:
      >>> random_resized_crop(jax.random.key(0), jnp.ones((2, 8, 8, 3)), least=0.5).shape
      (2, 8, 8, 3)

    Source: Szegedy et al., arXiv:1409.4842; ranges of `torchvision.transforms.RandomResizedCrop`.
    """
    x = check_images(x)
    check_number("least", least, maximum=1)
    if least == 0:
        raise ValueError("least is 0; allowed: a number above 0 and at most 1.")
    draws = _uniform(key, x, indices, (_ATTEMPTS + 1, 2))
    return kernels.resize_boxes(x, *_boxes(draws, x.shape[1:3], least))


_ATTEMPTS = 10
_ASPECT = (3 / 4, 4 / 3)  # width to height


def _boxes(draws, size, least):
    """`top, left, height, width`, whole numbers `[B]`, of uniform draws `[B, attempts + 1, 2]`."""
    high, wide = size
    low, up = _ASPECT
    area = high * wide * (least + (1 - least) * draws[:, :-1, 0])
    aspect = jnp.exp(jnp.log(low) + jnp.log(up / low) * draws[:, :-1, 1])
    widths, heights = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
    fits = (0 < widths) & (widths <= wide) & (0 < heights) & (heights <= high)
    first = jnp.argmax(fits, axis=1)[:, None]
    any_fits = fits.any(axis=1)

    def pick(values, largest):
        return jnp.where(any_fits, jnp.take_along_axis(values, first, axis=1)[:, 0], largest)

    def place(room, draw):
        anywhere = jnp.minimum(jnp.floor(draw * (room + 1)), room)
        return jnp.where(any_fits, anywhere, jnp.floor(room / 2))

    height = pick(heights, min(high, round(wide / low)))
    width = pick(widths, min(wide, round(high * up)))
    top, left = place(high - height, draws[:, -1, 0]), place(wide - width, draws[:, -1, 1])
    return top, left, height, width


def cutout(key, x, *, size, indices=None):
    """Blackens a square with a random centre in every image.

    The centre is any pixel, so that part of the square may lie outside of the image.

    Args:
      key: a PRNG key.
      x: images `[B, H, W, C]` in `[0, 1]`.
      size: side of the square in pixels.
      indices: global numbers of the images, integers `[B]`; 0 ... B-1 by default.

    Returns:
      Images `[B, H, W, C]`; `x` itself with size 0.

    Raises:
      ValueError: `x` is not a batch of float images, `size` is negative, or `indices` does not fit.

    Gradients flow to the pixels of `x` outside of the square.

    Example:
      >>> y = cutout(jax.random.key(0), jnp.ones((1, 8, 8, 1)), size=2)
      >>> 1 <= (y == 0).sum() <= 4
      Array(True, dtype=bool)

    Source: DeVries and Taylor, arXiv:1708.04552.
    """
    x = check_images(x)
    check_number("size", size, integer=True)
    batch, height, width, _ = x.shape
    keys = _image_keys(key, x, indices)
    limits = jnp.array([height, width])
    top, left = (jax.vmap(lambda k: jax.random.randint(k, (2,), 0, limits))(keys) - size // 2).T

    def covered(start, length):
        distance = jnp.arange(length)[None, :] - start[:, None]
        return (0 <= distance) & (distance < size)

    rows = covered(top, height).reshape(batch, height, 1, 1)
    columns = covered(left, width).reshape(batch, 1, width, 1)
    return jnp.where(rows & columns, jnp.zeros((), x.dtype), x)


def affine(key, x, *, degrees=10.0, translate=0.125, shear=0.1, indices=None):
    """Rotates, shears and moves every image a little: the augmentation for digits.

    Each of the four amounts is uniform between plus and minus its limit. One bilinear warp about
    the centre of the image, black outside of it.

    Args:
      key: a PRNG key.
      x: images `[B, H, W, C]` in `[0, 1]`.
      degrees: largest rotation.
      translate: largest shift, as a fraction of the height and of the width.
      shear: largest shift of a row per row of distance from the centre.
      indices: global numbers of the images, integers `[B]`; 0 ... B-1 by default.

    Returns:
      Images `[B, H, W, C]`; `x` itself, bit for bit, when the three limits are 0.

    Raises:
      ValueError: `x` is not a batch of float images, a limit is negative, or `indices` does not
        fit.

    Gradients flow to `x`, linearly.

    Example:
      >>> affine(jax.random.key(0), jnp.ones((2, 8, 8, 1)), degrees=5.0).shape
      (2, 8, 8, 1)
    """
    x = check_images(x)
    for name, value in (("degrees", degrees), ("translate", translate), ("shear", shear)):
        check_number(name, value)
    height, width = x.shape[1:3]
    limits = (degrees, shear, translate * width, translate * height)
    draws = _uniform(key, x, indices, (4,)) * 2 - 1
    angle, slope, right, down = [draws[:, n] * limit for n, limit in enumerate(limits)]

    # Source = center + R S (result - center - shift), with the shear S = [[1, -slope], [0, 1]].
    cos, sin = jnp.cos(jnp.deg2rad(angle)), jnp.sin(jnp.deg2rad(angle))
    a, b, d, e = cos, -sin - cos * slope, sin, cos - sin * slope
    center_x, center_y = width / 2, height / 2
    c = center_x - a * (center_x + right) - b * (center_y + down)
    f = center_y - d * (center_x + right) - e * (center_y + down)
    return kernels.warp(x, (a, b, c, d, e, f))


def randaugment(key, x, *, num_ops=2, magnitude=9, indices=None):
    """Applies `num_ops` random operations of one magnitude to every image.

    The ranges are those of torchvision's `RandAugment` with its 31 bins. At magnitude 30: shear
    0.3, translation 150/331 of the side, rotation 30 degrees, enhancement factors 1 +- 0.9, 4 bits
    removed, solarize threshold 0; other magnitudes are proportional. Geometric and enhancing
    operations take a random sign. Two differences: sampling is bilinear, and the solarize
    threshold starts from 256 as in AutoAugment, not from 255, so that magnitude 0 does not invert
    white pixels.

    Args:
      key: a PRNG key.
      x: images `[B, H, W, C]` in `[0, 1]`.
      num_ops: how many operations are drawn, with replacement, from the 14 in `OPS`.
      magnitude: a number from 0 to 30; it may be traced.
      indices: global numbers of the images, integers `[B]`; 0 ... B-1 by default.

    Returns:
      Images `[B, H, W, C]`; `x` itself with `num_ops` 0.

    Raises:
      ValueError: `x` is not a batch of float images, a number is out of range, or `indices` does
        not fit.

    Gradients flow to `x`, straight through posterize and equalize; and to `magnitude`, through the
    geometric and the enhancing operations.

    Example:
      >>> randaugment(jax.random.key(0), jnp.ones((2, 8, 8, 3)), num_ops=1).shape
      (2, 8, 8, 3)

    Source: Cubuk et al., arXiv:1909.13719; ranges of `torchvision.transforms.RandAugment`.
    """
    x = check_images(x)
    check_number("num_ops", num_ops, maximum=32, integer=True)
    check_strength("magnitude", magnitude, maximum=MAX_MAGNITUDE)
    height, width = x.shape[1:3]
    largest = _largest_levels(
        shear=0.3,
        translate=(150 / 331 * width, 150 / 331 * height),
        degrees=30.0,
        enhance=0.9,
        bits=4,
    )
    draws = _uniform(key, x, indices, (num_ops, 2))
    strength = jnp.full(x.shape[:1], magnitude / MAX_MAGNITUDE, jnp.float32)
    for n in range(num_ops):  # unrolled: inside a scan XLA is slow on CPU
        x = _random_op(x, draws[:, n, 0], draws[:, n, 1], strength, largest)
    return x


def trivialaugment(key, x, *, indices=None):
    """Applies one random operation of random magnitude to every image.

    The wide search space with its 31 equally likely magnitudes. At the largest: shear 0.99,
    translation 32 pixels but no more than the side, rotation 135 degrees, enhancement factors
    1 +- 0.99, 6 bits removed, solarize threshold 0. Geometric and enhancing operations take a
    random sign. Sampling is bilinear.

    Args:
      key: a PRNG key.
      x: images `[B, H, W, C]` in `[0, 1]`.
      indices: global numbers of the images, integers `[B]`; 0 ... B-1 by default.

    Returns:
      Images `[B, H, W, C]`.

    Raises:
      ValueError: `x` is not a batch of float images, or `indices` does not fit.

    Gradients flow to `x`; straight through posterize and equalize.

    Example:
      >>> trivialaugment(jax.random.key(0), jnp.ones((2, 8, 8, 3))).shape
      (2, 8, 8, 3)

    Source: Mueller and Hutter, arXiv:2103.10158.
    """
    x = check_images(x)
    height, width = x.shape[1:3]
    largest = _largest_levels(
        shear=0.99,
        translate=(min(32, width), min(32, height)),
        degrees=135.0,
        enhance=0.99,
        bits=6,
    )
    draws = _uniform(key, x, indices, (3,))
    strength = jnp.floor(draws[:, 2] * (MAX_MAGNITUDE + 1)) / MAX_MAGNITUDE
    return _random_op(x, draws[:, 0], draws[:, 1], strength, largest)


def apply_ops(x, op, level):
    """Applies operation `OPS[op[i]]` with magnitude `level[i]` to image `i`.

    Every family runs once for the whole batch and each image takes the result it drew: under
    `vmap` a `lax.switch` would run all 14 branches, five warps among them.

    Args:
      x: images `[B, H, W, C]`.
      op: places in `OPS`, integers `[B]`.
      level: `[B]`; degrees, pixels or shear for the geometric operations; `factor - 1` for the
        enhancing ones; removed bits for posterize; for solarize what is left of the 8-bit
        threshold 256. Level 0 is the identity for all that have a level.

    Returns:
      The images `[B, H, W, C]`.
    """
    height, width = x.shape[1:3]

    def level_of(name):
        return jnp.where(op == OPS.index(name), level, 0.0)

    def pick(name, then, otherwise):
        return jnp.where((op == OPS.index(name))[:, None, None, None], then, otherwise)

    rotated = op == OPS.index("rotate")
    out = kernels.warp(
        x,
        kernels.affine_matrix(
            degrees=level_of("rotate"),
            shear_x=level_of("shear_x"),
            shear_y=level_of("shear_y"),
            translate_x=level_of("translate_x"),
            translate_y=level_of("translate_y"),
            anchor=(jnp.where(rotated, width / 2, 0.0), jnp.where(rotated, height / 2, 0.0)),
        ),
    )

    degenerate = pick("color", kernels.grey(x), kernels.black(x))
    degenerate = pick("contrast", kernels.mean_grey(x), degenerate)
    degenerate = pick("sharpness", kernels.smooth(x), degenerate)
    enhanced = kernels.blend(x, degenerate, level)
    for name in ("brightness", "color", "contrast", "sharpness"):
        out = pick(name, enhanced, out)

    out = pick("posterize", kernels.posterize(x, 8 - level_of("posterize")), out)
    out = pick("solarize", kernels.solarize(x, (256 - level_of("solarize")) / 255), out)
    out = pick("autocontrast", kernels.autocontrast(x), out)
    return pick("equalize", kernels.equalize(x), out)


def _largest_levels(*, shear, translate, degrees, enhance, bits):
    """The level of each operation in `OPS` at the largest magnitude; see `apply_ops`."""
    levels = dict.fromkeys(OPS, 0.0)
    levels |= {"shear_x": shear, "shear_y": shear, "rotate": degrees}
    levels |= {"translate_x": translate[0], "translate_y": translate[1]}
    levels |= dict.fromkeys(("brightness", "color", "contrast", "sharpness"), enhance)
    levels |= {"posterize": bits, "solarize": 256}
    return levels


_UNSIGNED = ("posterize", "solarize")


def _random_op(x, op_draw, sign_draw, strength, largest):
    """Applies to each image the operation and the sign that its uniform draws `[B]` select."""
    # A draw just below 1 may round up in the product.
    op = jnp.minimum((op_draw * len(OPS)).astype(jnp.int32), len(OPS) - 1)
    signed = jnp.array([name not in _UNSIGNED for name in OPS])[op]
    sign = jnp.where(signed & (sign_draw < 0.5), -1.0, 1.0)
    level = jnp.array([largest[name] for name in OPS], jnp.float32)[op] * strength
    return apply_ops(x, op, sign * level)


def _image_keys(key, x, indices):
    check_key(key)
    if indices is None:
        indices = jnp.arange(x.shape[0])
    indices = jnp.asarray(indices)
    if indices.shape != x.shape[:1] or not jnp.issubdtype(indices.dtype, jnp.integer):
        raise ValueError(
            f"indices has shape {indices.shape} and dtype {indices.dtype}; "
            f"allowed: integers of shape {x.shape[:1]}, one for each image."
        )
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(indices)


def _uniform(key, x, indices, shape):
    """Uniform draws in `[0, 1)`, `[B, *shape]`, in float32 whatever the images are."""
    keys = _image_keys(key, x, indices)
    return jax.vmap(lambda k: jax.random.uniform(k, shape, jnp.float32))(keys)
