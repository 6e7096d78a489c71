"""What `glow` and `realnvp` accept."""

import jax
import jax.numpy as jnp
import numpy as np

from genreg_jax.checks import check_positive, is_number, short

_MOST_STEPS = 1000  # more take hours to compile


def check_image_shape(image_shape, levels: int, *, squeezes: int) -> tuple[int, int, int]:
    """Checks that `image_shape` is `(H, W, C)` with sides divisible by `2 ** squeezes`."""
    try:
        height, width, channels = image_shape
        check_positive(height=height, width=width, channels=channels)
    except (TypeError, ValueError):
        raise ValueError(
            f"image_shape={image_shape!r} must be (height, width, channels), three positive "
            "integers."
        ) from None
    height, width, channels = int(height), int(width), int(channels)
    check_positive(levels=levels)
    squeezes = min(squeezes, 64)  # more are refused below, whatever their number
    factor = 2**squeezes
    if height % 2 or width % 2:
        raise ValueError(
            f"image_shape={image_shape!r} has an odd side; with levels={levels} the sides must be "
            f"multiples of {factor}. Resize or pad the images."
        )
    if height % factor or width % factor:
        sides = np.gcd(height, width)
        most = int(sides & -sides).bit_length() - 1
        raise ValueError(
            f"levels={levels} is too many for image_shape={image_shape!r}: its sides must be "
            f"divisible by {factor}. At most levels={most} is allowed."
        )
    return height, width, channels


def check_architecture(steps, width, num_classes, scale, dropout, num_bins) -> None:
    """Checks what `glow` and `realnvp` share."""
    check_positive(steps=steps, width=width)
    if steps > _MOST_STEPS:
        raise ValueError(f"steps={steps!r} must be at most {_MOST_STEPS}.")
    if num_classes is not None:
        check_positive(num_classes=num_classes)
    if not (is_number(scale) and scale > 0):
        raise ValueError(f"scale={scale!r} must be positive.")
    if not (is_number(dropout) and 0 <= dropout < 1):
        raise ValueError(f"dropout={dropout!r} must be in [0, 1).")
    if not is_number(num_bins) or int(num_bins) != num_bins or not 2 <= num_bins <= 2**24:
        raise ValueError(f"num_bins={num_bins!r} must be an integer of at least 2, at most 2**24.")


def call(flow, function, params, *arguments):
    """A function of a flow's bijector, and a word about parameters that are not this flow's."""
    try:
        return function(flow.bijector, params, *arguments)
    except (TypeError, KeyError, AttributeError, IndexError, ValueError, OverflowError):
        x = jax.ShapeDtypeStruct((1, *flow.image_shape), jnp.float32)
        y = None if flow.num_classes is None else jax.ShapeDtypeStruct((1,), jnp.int32)
        like = jax.eval_shape(flow.init, jax.random.key(0), x, y)
        shape = lambda leaf: getattr(leaf, "shape", None)
        if jax.tree.map(shape, params) != jax.tree.map(shape, like):
            raise ValueError(
                f"params is {short(params)}, which are not the parameters of this flow; make them "
                "with flow.init(key, x) or flows.fit."
            ) from None
        raise
