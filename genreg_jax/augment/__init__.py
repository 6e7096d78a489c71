"""Image augmentation on the device: batched, pure, and differentiable in the image.

Four layers, one a file. `kernels` computes the pixels. `ops` holds the 14 operations of
RandAugment with a magnitude that the caller gives. `transforms` draws their magnitudes and adds
flips, crops and cutout; each takes a key. `spec` turns a string such as
`"flip+crop(4)+randaugment"` into one function `(key, x) -> x`.

Images are floats `[B, H, W, C]` in `[0, 1]` with 1 or 3 channels, and so are the results, in the
same dtype. Image `i` of a batch draws from `fold_in(key, indices[i])`, so what happens to it
depends neither on the size of the batch nor on how the batch is laid out over devices.

Gradients flow to the image through every operation, because a hypergradient has to reach the
generator that drew it. They are the true ones except for `posterize` and `equalize`, which round
to 8 bits and pass the gradient straight through.
"""

from genreg_jax.augment.ops import (
    OPS,
    autocontrast,
    brightness,
    color,
    contrast,
    equalize,
    identity,
    posterize,
    rotate,
    sharpness,
    shear_x,
    shear_y,
    solarize,
    translate_x,
    translate_y,
)
from genreg_jax.augment.spec import make
from genreg_jax.augment.transforms import (
    affine,
    crop,
    cutout,
    flip,
    randaugment,
    random_resized_crop,
    trivialaugment,
)

__all__ = [
    "OPS",
    "affine",
    "autocontrast",
    "brightness",
    "color",
    "contrast",
    "crop",
    "cutout",
    "equalize",
    "flip",
    "identity",
    "make",
    "posterize",
    "randaugment",
    "random_resized_crop",
    "rotate",
    "sharpness",
    "shear_x",
    "shear_y",
    "solarize",
    "translate_x",
    "translate_y",
    "trivialaugment",
]
