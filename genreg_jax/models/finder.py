"""The finder of meta pseudo sampling: a small network from latents to useful latents."""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from genreg_jax.regularizers.synthetic import bounded_offset, check_radius, restore_norm


class Finder(nn.Module):
    """Maps noise `z ~ N(0, I)` to the latent `z^` whose sample helps the classifier most.

    A perceptron with leaky ReLU between its linear layers. With `residual=True` it is
    `z^ = z + mlp(z)` with the last layer zero at initialisation, so that meta pseudo sampling
    starts from uniform sampling and moves away only where the validation loss says so; with
    `residual=False` it is the plain perceptron.

    With `keep_norm=True` every found latent is scaled to the norm of the draw it was made from. A
    high-dimensional normal draw lies on a thin shell, which a free finder leaves: unchecked it ends
    at one far-out latent whose sample the classifier no longer reacts to. (StyleGAN, the generator
    in the paper, normalises its latents itself.)

    A finite `radius` holds every found latent near its draw, so that no parameters whatever can map
    the draws of a class to one latent: `bounded_offset`, then the norm. `latent_diagnostics` has
    the bound on the spread that follows. At 0 the finder is the identity, at infinity unbounded.

    Attributes:
      hidden: widths of the hidden layers (two of them make the three-layer perceptron).
      num_classes: None for an unconditional finder; K for one that is also fed an embedding of the
        requested class.
      residual: learn the offset from `z`.
      keep_norm: scale each found latent to the norm of its draw.
      radius: bound on the offset from the draw, relative to the draw's norm; 0 to infinity.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import genreg_jax as gr
      >>> finder = gr.Finder(hidden=(16, 16), num_classes=10)
      >>> z, y = jnp.ones((2, 4, 4, 1)), jnp.array([3, 7])
      >>> variables = finder.init(jax.random.key(0), z, y)
      >>> bool(jnp.all(finder.apply(variables, z, y) == z))
      True

    Source: Yamaguchi et al., Regularizing Neural Networks with Meta-Learning Generative Models,
    arXiv:2307.13899 (meta pseudo sampling); the class embedding follows Yamaguchi, Generative
    Semi-supervised Learning with Meta-Optimized Synthetic Samples, ACML 2023.
    """

    hidden: Sequence[int] = (256, 256)
    num_classes: int | None = None
    residual: bool = True
    keep_norm: bool = True
    radius: float = math.inf

    @nn.compact
    def __call__(self, z, y=None):
        """Maps latents `z` `[B, ...]` and, if conditional, labels `y` `[B]` to latents like `z`."""
        check_radius(self.radius)
        h = z.reshape(z.shape[0], -1)
        size = h.shape[1]
        if self.num_classes is not None:
            if y is None:
                raise ValueError(
                    f"y is required: this finder is conditional on {self.num_classes} classes."
                )
            h = jnp.concatenate([h, nn.Embed(self.num_classes, 32)(y)], axis=1)
        for width in self.hidden:
            h = nn.leaky_relu(nn.Dense(width)(h), negative_slope=0.2)
        last = nn.initializers.zeros_init() if self.residual else nn.initializers.lecun_normal()
        h = nn.Dense(size, kernel_init=last)(h)
        draw = z.reshape(h.shape)
        found = draw + h if self.residual else h
        if self.radius < math.inf:
            offset = h if self.residual else h - draw
            found = draw + bounded_offset(draw, offset, radius=self.radius)
        if self.keep_norm:
            # Exactly 1 where nothing was learned yet, so the found latent is the draw bit for bit.
            found = restore_norm(found, draw)
        return found.reshape(z.shape)
