"""genreg_jax: generative regularisers for image classifiers with few labels.

Three places where a regulariser can act, and what the library has for each:

- the input: `random_latent_perturbation`, `away_latent_perturbation` and
  `adversarial_latent_perturbation` of images through an exact flow (`genreg_jax.flows`);
- the embedding: `phantom_embeddings` and the losses that use them, on `Outputs.embedding` of any
  model behind the contract of `genreg_jax.contract`;
- the feature extractor through synthetic data: `pcr_loss` on samples whose latents come from
  `renoised_latents` or `interpolated_latents` of real images, and are moved by a `Finder` with
  `hypergradient`, or by `entropy_offset`; `memorisation_report` says whether they are copies.

`train_and_evaluate(config, workdir)` is the whole training run that the command line calls, and
`load(workdir)` what came out of it, with `predict`.
"""

import sys
from typing import TYPE_CHECKING, Any

from genreg_jax.door import answer_interrupts

if sys.argv[:1] == ["-m"]:  # `python -m genreg_jax.COMMAND`, which is being found
    answer_interrupts()

from genreg_jax import augment, data, flows, models
from genreg_jax.config import default_config
from genreg_jax.contract import Batch, Generator, Model, Outputs
from genreg_jax.errors import UserError
from genreg_jax.hypergradient import Hypergradient, hypergradient
from genreg_jax.implicit_hypergradient import implicit_hypergradient
from genreg_jax.memorisation import memorisation_report
from genreg_jax.models.adapters import from_equinox, from_haiku, from_linen, from_nnx
from genreg_jax.models.finder import Finder
from genreg_jax.objective import make_train_step
from genreg_jax.regularizers.latent import (
    adversarial_latent_perturbation,
    away_latent_perturbation,
    latent_interpolation,
    perturbation,
    random_latent_perturbation,
)
from genreg_jax.regularizers.latent_training import Latent
from genreg_jax.regularizers.mgr import Meta, Synthetic, pcr_loss
from genreg_jax.regularizers.mixing import cutmix, mixup
from genreg_jax.regularizers.pgd import image_pgd
from genreg_jax.regularizers.phantom import (
    PhantomMemory,
    attraction_loss,
    classification_loss,
    combination_loss,
    phantom_embeddings,
    separation_loss,
)
from genreg_jax.regularizers.synthetic import (
    bounded_offset,
    entropy_offset,
    interpolated_latents,
    random_offset,
    renoised_latents,
    restore_norm,
)
from genreg_jax.state import TrainState
from genreg_jax.strengths import Strength, Tune

if TYPE_CHECKING:
    from genreg_jax.predict import load as load
    from genreg_jax.train import train_and_evaluate as train_and_evaluate

__all__ = [
    "Batch",
    "Finder",
    "Generator",
    "Hypergradient",
    "Latent",
    "Meta",
    "Model",
    "Outputs",
    "PhantomMemory",
    "Strength",
    "Synthetic",
    "TrainState",
    "Tune",
    "UserError",
    "adversarial_latent_perturbation",
    "attraction_loss",
    "augment",
    "away_latent_perturbation",
    "bounded_offset",
    "classification_loss",
    "combination_loss",
    "cutmix",
    "data",
    "default_config",
    "entropy_offset",
    "flows",
    "from_equinox",
    "from_haiku",
    "from_linen",
    "from_nnx",
    "hypergradient",
    "image_pgd",
    "implicit_hypergradient",
    "interpolated_latents",
    "latent_interpolation",
    "load",
    "make_train_step",
    "memorisation_report",
    "mixup",
    "models",
    "pcr_loss",
    "perturbation",
    "phantom_embeddings",
    "random_latent_perturbation",
    "random_offset",
    "renoised_latents",
    "restore_norm",
    "separation_loss",
    "train_and_evaluate",
]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("genreg-jax")
    # The loop needs orbax, TensorBoard and the data set readers; the losses do not.
    if name == "train_and_evaluate":
        from genreg_jax.train import train_and_evaluate

        return train_and_evaluate
    if name == "load":
        from genreg_jax.predict import load

        return load
    raise AttributeError(f"module 'genreg_jax' has no attribute {name!r}")
