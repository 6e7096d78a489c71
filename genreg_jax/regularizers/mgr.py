"""MGR, meta generative regularisation: synthetic samples in the feature extractor, not in the loss.

    real batch (x, y), outer batch (x_v, y_v), z ~ N(0, I), y_s uniform over the classes
    1  L(theta, phi) = CE(f_theta(x), y) + lambda * PCR(G(F_phi(z), y_s); psi)
    2  theta' = one optimiser step from theta on L(theta, phi)
    3  phi   <- one optimiser step on d/d phi CE(f_theta'(x_v), y_v)           exact, through theta'
    4  the synthetic samples are generated again with the new phi
    5  theta <- one optimiser step from the OLD theta on L(theta, new phi); theta' is thrown away

PCR (pseudo consistency regularisation) is the distance between the embeddings of two views of one
synthetic sample; it does not see the label and does not touch the head. MPS (meta pseudo sampling)
is the finder F_phi with its hypergradient. `genreg_jax.objective` puts the five lines into one
step; this file holds the terms.

Reductions, each a test: lambda = 0 is the plain step; a finder that is not updated is PCR on
uniformly drawn samples; a `residual` finder starts there.

Sources: Yamaguchi et al., Regularizing Neural Networks with Meta-Learning Generative Models,
arXiv:2307.13899; the algorithm's lines and the cosine distance as written out in Yamaguchi,
Generative Semi-supervised Learning with Meta-Optimized Synthetic Samples, ACML 2023.
"""

import jax
import jax.numpy as jnp
import optax

DISTANCES = ("cosine", "l2")


def pcr_loss(
    embedding_weak: jax.Array, embedding_strong: jax.Array, *, distance: str = "cosine"
) -> jax.Array:
    """Distance between the embeddings of two views of the same samples.

    `cosine`: `1 - <a, b> / (|a| |b|)`, in [0, 2]; its gradient is finite at zero vectors.
    `l2`: `|a - b|^2 / D`, divided by the width so that a weight carries over between networks.

    Args:
      embedding_weak: `[B, D]`, embeddings of one view.
      embedding_strong: `[B, D]`, embeddings of the other view, row by row.
      distance: `cosine` or `l2`.

    Returns:
      Per-example losses `[B]`, float32.

    Raises:
      ValueError: unknown distance, or embeddings that are not `[B, D]` of one shape.

    Gradients flow to both embeddings; wrap one in `jax.lax.stop_gradient` for a one-sided loss.

    Example:
      >>> import jax.numpy as jnp
      >>> import genreg_jax as gr
      >>> a, b = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 2.0]])
      >>> float(gr.pcr_loss(a, b)[0]), float(gr.pcr_loss(a, b, distance="l2")[0])
      (1.0, 2.5)
    """
    if distance not in DISTANCES:
        raise ValueError(f"distance must be one of {DISTANCES}, got {distance!r}.")
    if embedding_weak.ndim != 2 or embedding_weak.shape != embedding_strong.shape:
        raise ValueError(
            f"embedding_weak and embedding_strong must share one shape [B, D], got "
            f"{embedding_weak.shape} and {embedding_strong.shape}."
        )
    a = embedding_weak.astype(jnp.float32)
    b = embedding_strong.astype(jnp.float32)
    if distance == "l2":
        return jnp.mean((a - b) ** 2, axis=1)
    return optax.losses.cosine_distance(a, b, epsilon=1e-12)
