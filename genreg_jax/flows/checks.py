"""What `glow` and `realnvp` accept."""

import numpy as np

from genreg_jax.checks import check_positive


def check_image_shape(image_shape, levels: int, *, squeezes: int) -> tuple[int, int, int]:
    """Checks that `image_shape` is `(H, W, C)` with sides divisible by `2 ** squeezes`."""
    if len(tuple(image_shape)) != 3 or any(int(n) != n or n < 1 for n in image_shape):
        raise ValueError(
            f"image_shape={image_shape!r} must be (height, width, channels), three positive "
            "integers."
        )
    height, width, channels = (int(n) for n in image_shape)
    if levels < 1 or int(levels) != levels:
        raise ValueError(f"levels={levels!r} must be a positive integer.")
    if height % 2 or width % 2:
        raise ValueError(
            f"image_shape={image_shape!r} has an odd side; a flow needs even ones. Pad the images "
            f"to {(height + height % 2, width + width % 2, channels)}."
        )
    factor = 2**squeezes
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
    if num_classes is not None:
        check_positive(num_classes=num_classes)
    if not scale > 0:
        raise ValueError(f"scale={scale!r} must be positive.")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout!r} must be in [0, 1).")
    if int(num_bins) != num_bins or num_bins < 2:
        raise ValueError(f"num_bins={num_bins!r} must be an integer of at least 2.")
