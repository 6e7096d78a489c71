"""RealNVP: affine couplings with checkerboard and channel masks; multi-scale."""

from genreg_jax.flows import checks
from genreg_jax.flows.chain import Chain, Level, Repeat
from genreg_jax.flows.flow import Flow
from genreg_jax.flows.layers import ActNorm, AffineCoupling, ClassAffine, Logit


def _couplings(mask: str, steps: int, scan: bool, remat: bool, options: dict) -> list:
    even, odd = (
        (ActNorm(), AffineCoupling(mask=mask, flip=flip, **options)) for flip in (False, True)
    )
    layers = []
    if steps > 1:
        layers.append(Repeat(Chain((*even, *odd)), steps // 2, scan, remat))
    if steps % 2:
        layers += even
    return layers


def realnvp(
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
    scan: bool = True,
    remat: bool = False,
) -> Flow:
    """A RealNVP for any even image shape and any number of channels.

        step   = ActNorm -> affine coupling, the masks alternating
        level  = `steps` checkerboard steps -> squeeze -> `steps` channel steps
                 -> half of the channels are latents, half go on
        flow   = logit -> `levels` levels -> affine prior

    The factored-out latents are put back where their pixels are, so `z` has the image's shape.
    ActNorm takes the place of the original's batch normalisation: it is the same map in both
    directions and does not tie the examples of a batch together.

    Args:
      image_shape: `(H, W, C)`; `H` and `W` divisible by `2 ** levels`.
      levels: number of scales; 28x28 images allow 2.
      steps: couplings per mask and level; the original has 3.
      width: channels of the couplings' networks.
      num_classes: None, or the number of classes: the couplings get a class embedding and the
        prior a mean and a scale per class.
      scale: bound on a coupling's `|log scale|`.
      dropout: in the couplings' networks, while training.
      prior: whether to end in a learned elementwise affine map, per class if there are any.
      num_bins: grey levels of the images.
      scan: whether pairs of steps run as one `lax.scan`, which keeps the time to compile
        independent of `steps`; else they are unrolled. The parameters are the same.
      remat: whether to recompute a pair's activations in the backward pass instead of storing them.

    Returns:
      A `Flow`.

    Raises:
      ValueError: on a size the levels do not divide, or an argument out of its range.

    Example:
      >>> realnvp((8, 8, 3), levels=2, steps=2, width=8).dimensions
      192

    Source: Dinh et al., "Density estimation using Real NVP" (2017).
    """
    image_shape = checks.check_image_shape(image_shape, levels, squeezes=levels)
    checks.check_architecture(steps, width, num_classes, scale, dropout, num_bins)
    options = dict(width=width, scale=scale, num_classes=num_classes, dropout=dropout)
    inner = None
    for _ in range(levels):
        level = Level(Chain(tuple(_couplings("channel", steps, scan, remat, options))), inner)
        inner = Chain((*_couplings("checkerboard", steps, scan, remat, options), level))
    layers = (Logit(num_bins), inner, *([ClassAffine(num_classes)] if prior else []))
    return Flow(image_shape, Chain(layers), num_classes, num_bins)
