"""A run's parts read back from its workdir, which is not changed."""

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from genreg_jax import flows
from genreg_jax.build import classifier, flow_of
from genreg_jax.checkpoint import CheckpointReader
from genreg_jax.checks import path_of
from genreg_jax.config import from_config
from genreg_jax.contract import Model
from genreg_jax.data import Dataset
from genreg_jax.data.dataset import names_hash
from genreg_jax.devices import warn
from genreg_jax.errors import UserError
from genreg_jax.fingerprints import like_by_names, named
from genreg_jax.logs import read_json
from genreg_jax.models.frozen import HEAD
from genreg_jax.models.pretrained import ORIGINS, read_weights, weights_file
from genreg_jax.records import CLASSIFIER, FLOW, check_known, check_same_config
from genreg_jax.settings import Settings


class Classifier(NamedTuple):
    """The best classifier of a run.

    Attributes:
      model: for images `[B, H, W, C]` in [0, 1].
      params: what it has learned.
      model_state: its running statistics, those of the standardisation among them.
      class_names: K names.
      image_shape: `(H, W, C)`.
      settings: of the run.
      updates: that the run had made at the checkpoint that was read.
      extra: what that checkpoint says of the run.
    """

    model: Model
    params: Any
    model_state: Any
    class_names: tuple[str, ...]
    image_shape: tuple[int, ...]
    settings: Settings
    updates: int
    extra: dict[str, Any]

    def logits(self, x: jax.Array) -> jax.Array:
        """Images `[B, H, W, C]` in [0, 1] to logits `[B, K]`."""
        outputs, _ = self.model.apply(self.params, self.model_state, x, rng=None, train=False)
        return outputs.logits


def restore_classifier(workdir: str | Path, model: Model | None = None) -> Classifier:
    """The best classifier of a finished or running run.

    Args:
      workdir: of a run that trains a classifier.
      model: that it was trained with, where it was the caller's own.

    Raises:
      UserError: it holds none, one that is not of this library and `model` is not given, or one
        of this library and `model` is.
    """
    workdir, restored = path_of(workdir), None
    if (workdir / "config.json").exists():
        with CheckpointReader(workdir / "checkpoints", shape=CLASSIFIER) as checkpoints:
            restored = checkpoints.restore(None)
    if restored is None and _begun(workdir):
        raise UserError(
            f"The run in {str(workdir)!r} is not finished: it has not come to its "
            f"first checkpoint, so that there is no classifier yet. {how_to_continue(workdir)}"
        )
    if restored is None:
        raise UserError(
            f"{str(workdir)!r} holds no trained classifier: there is no checkpoint of one. Name "
            "the workdir of a run that trained one, such as `python -m genreg_jax.main "
            "--config=configs/base_digits.py --workdir=DIR`."
        )
    step, (_, best), extra = restored
    run = check_known(extra.get("run"), workdir)
    if "model" in run["own"] and model is None:
        raise UserError(
            f"The run in {str(workdir)!r} trained a classifier that its caller had made, which "
            "cannot be built from its config; in Python, give it: gr.load(workdir, model=...)."
        )
    if "model" not in run["own"] and model is not None:
        raise UserError(
            f"The run in {str(workdir)!r} trained a classifier of its config, and a model was given"
            "; leave it out."
        )
    settings = from_config(read_json(workdir / "config.json"))
    check_same_config(run, settings, workdir)
    names, shape = tuple(run["class_names"]), tuple(run["image_shape"])
    if model is None:
        blank = [0.0] * shape[-1]  # the statistics are restored with the state
        model = classifier(settings, len(names), blank, blank)
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)  # of which no memory is taken
    like = jax.eval_shape(model.init, jax.random.key(0), images)
    params, model_state = _like((best["params"], best["model_state"]), like, workdir)
    return Classifier(model, params, model_state, names, shape, settings, step, extra)


def _begun(workdir: Path) -> bool:
    """Whether a run that trains a classifier has begun and not come to its first checkpoint."""
    if not (workdir / "config.json").exists() or (workdir / "summary.json").exists():
        return False
    steps = (workdir / "checkpoints").glob("[0-9]*")
    return not any(steps) and not from_config(read_json(workdir / "config.json")).flow_only


def how_to_continue(workdir: Path) -> str:
    """What continues a run that is not finished, as a sentence."""
    return (
        f"The command that began it, with --workdir={shlex.quote(str(workdir))}, continues it; in "
        "Python, gr.train_and_evaluate with its config and workdir."
    )


def _like(tree: Any, like: Any, workdir: Path) -> Any:
    """A restored tree of dicts and lists in the containers of another, leaf by leaf by name."""
    there = dict(named(tree))
    for name, leaf in named(like):
        found = there.get(name)
        if found is None or (found.shape, found.dtype) != (leaf.shape, leaf.dtype):
            raise UserError(
                f"The model that was given is not that of the run in {str(workdir)!r}: its {name} "
                f"is {leaf.shape} {leaf.dtype}, and the run has "
                f"{'none' if found is None else f'{found.shape} {found.dtype}'}."
            )
    return like_by_names(there, like)


Start = tuple[Callable[[Any], Any], str]


def start_from(settings: Settings, dataset: Dataset, note: Callable[[str], None] = print) -> Start:
    """What a classifier starts from: a function of its fresh arrays, and a hash of their origin."""
    if settings.model.init_from:
        return warm_start(settings, dataset, note)
    if settings.model.pretrained:
        return pretrained_start(settings, dataset, note)
    return (lambda fresh: fresh), ""


def warm_start(settings: Settings, dataset: Dataset, note: Callable[[str], None] = print) -> Start:
    """What a classifier starts from that of the run in `config.model.init_from`.

    Args:
      settings: of the run that is to start.
      dataset: its images.
      note: called with a line for people.

    Returns:
      A function from the fresh `(params, model_state)` to those of the other run, in which a head
      for other classes is fresh; and a hash of the other run's arrays.

    Raises:
      UserError: there is no such run, or, from the function, it is of another network.
    """
    workdir = path_of(settings.model.init_from)
    found = restore_classifier(workdir)
    with CheckpointReader(workdir / "checkpoints") as checkpoints:
        digest = checkpoints.digest() or ""
    there = dict(named((found.params, found.model_state)))
    k = len(found.class_names)
    if _folder_has_changed(settings, found, dataset):
        warn(
            f"The run in {workdir} held out other pictures than this one: test pictures of now may "
            "have been training pictures there, and the test accuracy may be too good."
        )

    def warm(fresh: Any) -> Any:
        taken, left = [], []
        for name, leaf in named(fresh):
            other, shape = there.get(name), None
            if other is not None and other.dtype == leaf.dtype:
                shape = tuple(other.shape)
            if shape == leaf.shape:
                taken.append(other)
                continue
            of_head = shape and tuple(dataset.num_classes if n == k else n for n in shape)
            if k == dataset.num_classes or of_head != leaf.shape:
                has = "has none" if other is None else f"has {other.shape} {other.dtype}"
                raise UserError(
                    f"config.model.init_from = {str(workdir)!r} is a run of another network: this "
                    f"one's {name} is {leaf.shape} {leaf.dtype}, and that of the run {has}. "
                    "Start from a run of the same config.model and the same channels."
                )
            left.append(name)
            taken.append(leaf)
        fresh_head = f"; for its {dataset.num_classes} classes a head of its own" if left else ""
        note(f"the classifier starts from that of {workdir}{fresh_head}")
        return jax.tree.unflatten(jax.tree.structure(fresh), taken)

    return warm, digest


def _folder_has_changed(settings: Settings, found: Classifier, dataset: Dataset) -> bool:
    """Whether a run held out other pictures of the same folder, or of the same classes."""
    now, then = settings.data, found.settings.data
    if (now.name, then.name) != ("folder", "folder"):
        return False
    here, there = (os.path.realpath(path_of(data.dir)) for data in (now, then))
    related = here == there or found.class_names == dataset.class_names
    return related and found.extra.get("test_names_hash") != names_hash(dataset.test)


def pretrained_start(
    settings: Settings, dataset: Dataset, note: Callable[[str], None] = print
) -> Start:
    """What a classifier starts from the weights in `config.model.pretrained`.

    Args:
      settings: of the run that is to start.
      dataset: its images, which must have the channels of the weights.
      note: called with a line for people.

    Returns:
      A function from the fresh `(params, model_state)` to those of the weights, whose head is
      fresh; and the SHA-256 of the weights' file.

    Raises:
      UserError: there are no such weights, they are of another network, or the images are grey.
    """
    name = settings.model.name
    channels = len(ORIGINS[name].mean)
    if dataset.image_shape[-1] != channels:
        raise UserError(
            f"config.model.pretrained is for images of {channels} channels, and those of "
            f"{dataset.name} have {dataset.image_shape[-1]}. Use colour images, or train a network "
            "from scratch: leave config.model.pretrained empty."
        )
    path, digest = weights_file(settings.model.pretrained)
    params, statistics = read_weights(name, path)
    there = {f"0/{key}": value for key, value in params.items()}
    there |= {f"1/model/batch_stats/{key}": value for key, value in statistics.items()}

    def warm(fresh: Any) -> Any:
        taken = []
        for key, leaf in named(fresh):
            ours = key.startswith(f"0/{HEAD}/") or key.startswith("1/standardize/")
            value = leaf if ours else there[key]
            if value.shape != leaf.shape:
                raise UserError(
                    f"{path} does not hold the weights of {name}: {key} has the shape "
                    f"{value.shape}, and the network's has {leaf.shape}."
                )
            taken.append(jnp.asarray(value))
        note(f"the classifier starts from the weights in {path.name}, with a head of its own")
        return jax.tree.unflatten(jax.tree.structure(fresh), taken)

    return warm, digest


class TrainedFlow(NamedTuple):
    """The flow of a run.

    Attributes:
      flow: from `genreg_jax.flows`.
      params: its parameters.
      class_names: of the images that it was trained on.
      image_shape: of the run's images, which `config.flow.image_size` may have made smaller for it.
      subset_hash: of those images.
    """

    flow: flows.Flow
    params: Any
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    subset_hash: str

    def freeze(self) -> Any:
        """The flow with its parameters, for images of `image_shape`."""
        return flows.resized(self.flow.freeze(self.params), self.image_shape)


def restore_flow(workdir: str | Path) -> TrainedFlow:
    """The trained flow of a run.

    Args:
      workdir: of a run whose method needs a flow.

    Raises:
      UserError: there is no trained flow.
    """
    folder = path_of(workdir) / "flow"
    with CheckpointReader(folder, shape=FLOW) as checkpoints:
        extra = checkpoints.extra()
        if extra is None or "images" not in extra:
            raise _no_flow(workdir)
        trained, images = extra["trained_with"], extra["images"]
        settings = from_config({"flow": trained["settings"]}).flow
        names = tuple(images["class_names"])
        height, width, channels = images["image_shape"]
        shape = (height, width, channels)
        flow = flow_of(settings, shape, len(names))
        restored = checkpoints.restore(flow_shapes(flow))
        if restored is None:
            raise _no_flow(workdir)
    return TrainedFlow(flow, restored[1], names, shape, trained["subset_hash"])


def flow_shapes(flow: flows.Flow) -> Any:
    """Shapes and types of a flow's parameters, of which no memory is taken."""
    x = jax.ShapeDtypeStruct((1, *flow.image_shape), jnp.float32)
    y = None if flow.num_classes is None else jax.ShapeDtypeStruct((1,), jnp.int32)
    return jax.eval_shape(flow.init, jax.random.key(0), x, y)


def _no_flow(workdir: str | Path) -> UserError:
    return UserError(
        f"{str(workdir)!r} holds no trained flow: there is no whole checkpoint of one in "
        f"{Path(workdir) / 'flow'}. Name the workdir of a run that trained one, such as `python -m "
        "genreg_jax.main --config=configs/latent_random_digits.py --workdir=DIR`."
    )
