"""The groups of settings that turn regularisers on; see `genreg_jax.settings`."""

import dataclasses
from typing import Literal

from genreg_jax.checks import setting


@dataclasses.dataclass(frozen=True)
class SyntheticSettings:
    """The term on synthetic samples.

    Attributes:
      loss: `none`, `pcr`, or `cross_entropy` (naive generative data augmentation).
      weight: lambda; 0 turns the term off.
      distance: `cosine` or `l2`, for pcr.
      weak: augmentation of the first view, `none` for the sample itself.
      strong: augmentation of the second view.
      temperature: standard deviation of the latents.
      batch_size: synthetic samples that are computed at once; 0 for the real batch's size.
      source: of the latents. `prior`: N(0, I), with a class drawn uniformly; or encodings of the
        real batch, with its labels, `renoised`: partly replaced by noise, or `interpolated`: moved
        towards mixtures of others of their class. Those two need a generator that can encode.
      low: least share of noise of `renoised`.
      high: largest share of noise of `renoised`.
      strength: largest share of the way of `interpolated`.
      factor: expansion: synthetic samples a step, in units of `batch_size`, one such after another.
    """

    loss: Literal["none", "pcr", "cross_entropy"] = "none"
    weight: float = setting(1.0, at_least=0, limit=1e6)
    distance: Literal["cosine", "l2"] = "cosine"
    weak: str = "none"
    strong: str = "randaugment(2,9)"
    temperature: float = setting(1.0, above=0, limit=1e6)
    batch_size: int = setting(0, at_least=0, limit=2**20)
    source: Literal["prior", "renoised", "interpolated"] = setting("prior", added=True)
    low: float = setting(0.0, at_least=0, at_most=1, added=True)
    high: float = setting(0.2, at_least=0, at_most=1, added=True)
    strength: float = setting(0.5, at_least=0, at_most=1, added=True)
    factor: float = setting(1.0, above=0, at_most=16, added=True)


@dataclasses.dataclass(frozen=True)
class MetaSettings:
    """Which of the latents around a source's to take: meta pseudo sampling, and its rivals.

    Attributes:
      enabled: move the source's latents before they are decoded.
      search: how. `finder`: a network learns it, by differentiating the outer loss through the step
        (that is MGR). `hard`: one ascent step on the entropy of the classifier's prediction.
        `random`: a step in a random direction.
      radius: how far: the offset's length relative to that of the latent, a bound for the finder
        and the length of the others' step. 0 is the source alone, -1 no bound, for the finder only.
      mode: how the hypergradient is computed; see `genreg_jax.hypergradient`.
      outer: where the outer batch comes from. `holdout`: a fixed stratified part of the labelled
        images, which the classifier then never trains on. `folds`: in turn, for one epoch each, one
        of `folds` parts, which the classifier skips for that epoch. `train`: the training images
        under fresh augmentation, half a pass away from the inner batch; the finder is then rewarded
        for making the regulariser vanish, since that is what lowers a training loss.
      outer_labels: `true`, or `shuffled` within the outer batch, a control that must not help.
      outer_fraction: size of that part for `holdout`.
      folds: number of parts for `folds`.
      outer_batch_size: 0 for the real batch's size.
      learning_rate: of the finder's Adam.
      hidden: widths of the finder's hidden layers.
      conditional: feed the finder the requested class.
      residual: the finder learns an offset from the latent and starts at zero.
      keep_norm: scale each found latent to the norm of its draw.
    """

    enabled: bool = False
    search: Literal["finder", "hard", "random"] = setting("finder", added=True)
    radius: float = setting(-1.0, at_least=-1, limit=1e6, added=True)
    mode: Literal[
        "forward_over_reverse", "reverse_over_forward", "reverse", "finite_difference"
    ] = "forward_over_reverse"
    outer: Literal["holdout", "folds", "train"] = "holdout"
    outer_labels: Literal["true", "shuffled"] = setting("true", added=True)
    outer_fraction: float = setting(0.1, above=0, below=1)
    folds: int = setting(5, at_least=2, limit=1000)
    outer_batch_size: int = setting(0, at_least=0, limit=2**20)
    learning_rate: float = setting(1e-3, at_least=0, limit=1e6)
    hidden: tuple[int, ...] = setting((256, 256), at_least=1, limit=2**20)
    conditional: bool = True
    residual: bool = True
    keep_norm: bool = True


@dataclasses.dataclass(frozen=True)
class PhantomSettings:
    """The term on phantom embeddings; see `genreg_jax.regularizers.phantom`.

    Attributes:
      loss: `none`, or the reading: `attraction`, `separation`, `classification`, `combination`.
      weight: of the term; 0 turns it off.
      warmup: fraction of all updates over which the weight rises linearly from 0.
      subset_size: partners a phantom is mixed from; 0 for all in the batch.
      weighting: `dirichlet` (random) or `uniform` (the mean).
      distance: `l2` or `cosine`, for attraction and separation.
      temperature: of separation's softmax.
      ratio: the anchor's part in combination.
      stop_gradient: no gradient to the phantoms of attraction and combination.
    """

    loss: Literal["none", "attraction", "separation", "classification", "combination"] = "none"
    weight: float = setting(1.0, at_least=0, limit=1e6)
    warmup: float = setting(0.0, at_least=0, at_most=1)
    subset_size: int = setting(0, at_least=0, limit=2**20)
    weighting: Literal["dirichlet", "uniform"] = "dirichlet"
    distance: Literal["l2", "cosine"] = "l2"
    temperature: float = setting(1.0, above=0, limit=1e6)
    ratio: float = setting(0.5, at_least=0, at_most=1)
    stop_gradient: bool = False


@dataclasses.dataclass(frozen=True)
class LatentSettings:
    """Perturbation of the real batch, between augmentation and the classifier.

    Attributes:
      kind: `none`; `random`, `away`, `adversarial` or `interpolation` in the latent space of the
        flow; or `pgd`, adversarial in image space, without a flow.
      epsilon: radius. For `away` without a ball the standard deviation per dimension; for
        `interpolation` the largest share of the way, in [0, 1].
      norm: of the ball; `none` is no ball, for random and away.
      relative: measure l2 radii and steps per dimension, in units of `sqrt(H W C)`.
      step_size: length of an attack's step.
      num_steps: steps of an attack.
      random_start: start an attack from noise.
      labels: what an attack increases the loss of: the classifier's own predictions on the clean
        batch, so that no label leaks, or the true labels.
      ratio: share of the images that are perturbed; 0 turns the stage off.
      mix: weight of the clean batch in the loss; 0 trains on perturbed images alone. With a clean
        share it is the clean pass that updates the classifier's running statistics.
      clip: largest change in image space; 0 for no bound.
      clip_norm: norm of that change.
      difference: add to the image what the perturbation changes in what the flow decodes, instead
        of taking that itself. The image keeps its detail where the flow is of a smaller size.
      cache: encode each training image once, before the loop, where `augment.train` is `none`.
      augment_after: augmentation after decoding, which leaves the encodings as they are.
    """

    kind: Literal["none", "random", "away", "adversarial", "pgd", "interpolation"] = "none"
    epsilon: float = setting(1.0, at_least=0, limit=1e6)
    norm: Literal["l2", "linf", "none"] = "l2"
    relative: bool = False
    step_size: float = setting(0.5, at_least=0, limit=1e6)
    num_steps: int = setting(3, at_least=1, limit=200)
    random_start: bool = True
    labels: Literal["predicted", "true"] = "predicted"
    ratio: float = setting(1.0, at_least=0, at_most=1)
    mix: float = setting(0.0, at_least=0, at_most=1)
    clip: float = setting(0.0, at_least=0, limit=1e6)
    clip_norm: Literal["linf", "l2"] = "linf"
    difference: bool = setting(False, added=True)
    cache: bool = True
    augment_after: str = "none"


@dataclasses.dataclass(frozen=True)
class TuneSettings:
    """Strengths that the run learns, from their configured values on.

    Attributes:
      learn: which, separated by commas: `phantom.weight`, `synthetic.weight`, `latent.epsilon`,
        `augment.magnitude` (of the `randaugment` in `augment.train`), `augment.label_smoothing`,
        `optimizer.weight_decay`; of the first two also one for each class, `phantom.weight[class]`,
        and of the last one for each of the classifier's weights, `optimizer.weight_decay[layer]`.
        Each starts at its setting, which must be above 0. Empty for none.
      learning_rate: of their Adam; a step changes a strength by about this share of itself.
      outer: where the outer batch comes from: `validation`, the images that also choose the epoch;
        or as `config.meta.outer` has it, whose sizes it has. Where there is a finder, too, it
        stands in the place of that. Of `folds`, all parts but that of the epoch have been learned
        by heart in those before, and what is learned by heart wants no regularisation.
      outer_loss: `calibrated`, cross-entropy at the temperature that makes it least; or
        `cross_entropy`, which wants weaker regularisers than accuracy does, since strong ones make
        a classifier less sure of itself.
      outer_labels: `true`, or `shuffled` within the outer batch, a control that must not help.
    """

    learn: str = setting("", added=True)
    learning_rate: float = setting(0.1, at_least=0, limit=100, added=True)
    outer: Literal["validation", "folds", "holdout", "train"] = setting("validation", added=True)
    outer_loss: Literal["calibrated", "cross_entropy"] = setting("calibrated", added=True)
    outer_labels: Literal["true", "shuffled"] = setting("true", added=True)
