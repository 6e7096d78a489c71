"""Glow: ActNorm, invertible 1x1 convolution, affine coupling; multi-scale."""

from genreg_jax.flows import checks
from genreg_jax.flows.chain import Chain, Level, Repeat
from genreg_jax.flows.flow import Flow
from genreg_jax.flows.layers import ActNorm, AffineCoupling, ClassAffine, InvertibleConv, Logit


def glow(
    image_shape: tuple[int, int, int],
    *,
    levels: int,
    steps: int,
    width: int,
    num_classes: int | None = None,
    scale: float = 2.0,
    dropout: float = 0.0,
    prior: bool = True,
    num_bins: int = 256,
    seed: int = 0,
    scan: bool = True,
    remat: bool = False,
) -> Flow:
    """A Glow for any even image shape and any number of channels.

        step   = ActNorm -> invertible 1x1 convolution -> affine coupling
        level  = squeeze -> `steps` steps -> half of the channels are latents, half go on
        flow   = logit -> `levels` levels -> affine prior

    The factored-out latents are put back where their pixels are, so `z` has the image's shape.

    Args:
      image_shape: `(H, W, C)`; `H` and `W` divisible by `2 ** levels`.
      levels: number of scales; 28x28 images allow 2.
      steps: steps a level.
      width: channels of the couplings' networks.
      num_classes: None, or the number of classes: the couplings get a class embedding and the
        prior a mean and a scale per class.
      scale: bound on a coupling's `|log scale|`.
      dropout: in the couplings' networks, while training.
      prior: whether to end in a learned elementwise affine map, per class if there are any.
      num_bins: grey levels of the images.
      seed: of the constant permutations and the initial rotations.
      scan: whether the steps of a level run as one `lax.scan`, which keeps the time to compile
        independent of `steps`; else they are unrolled. The parameters are the same.
      remat: whether to recompute a step's activations in the backward pass instead of storing them.

    Returns:
      A `Flow`.

    Raises:
      ValueError: on a size the levels do not divide, or an argument out of its range.

    Example:
      >>> flow = glow((28, 28, 1), levels=2, steps=2, width=8, num_classes=10)
      >>> flow.dimensions
      784
      >>> glow((28, 28, 1), levels=3, steps=2, width=8)
      Traceback (most recent call last):
      ...
      ValueError: levels=3 is too many for image_shape=(28, 28, 1): its sides must be divisible by \
8. At most levels=2 is allowed.

    Source: Kingma and Dhariwal, "Glow: Generative Flow with Invertible 1x1 Convolutions" (2018).
    """
    image_shape = checks.check_image_shape(image_shape, levels, squeezes=levels)
    checks.check_architecture(steps, width, num_classes, scale, dropout, num_bins)
    inner = None
    for depth in reversed(range(levels)):
        rotation = InvertibleConv(image_shape[2] * 2 ** (depth + 2), seed)
        coupling = AffineCoupling(width, scale=scale, num_classes=num_classes, dropout=dropout)
        step = Chain((ActNorm(), rotation, coupling))
        inner = Level(Repeat(step, steps, scan, remat), inner)
    layers = (Logit(num_bins), inner, *([ClassAffine(num_classes)] if prior else []))
    return Flow(image_shape, Chain(layers), num_classes, num_bins)
