"""A trained classifier as an object, and predictions of pictures from the command line.

    python -m genreg_jax.predict --workdir=RUN --input=FOLDER --output=predictions.csv

writes a table with a line for each picture: its file, its label, and the probability of each class.
Where the pictures lie in folders named as the classes, accuracy and confusion are printed too.

The table's first columns are `file` and `label`, with an underscore behind where a class is called
so. A name that begins with = + - @, a tab or a line break, which spreadsheets take for a formula,
has an apostrophe before it, as they write text.
"""

import argparse
import csv
import dataclasses
import functools
import html
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from genreg_jax import data
from genreg_jax import workdir as workdirs
from genreg_jax.checks import check_folder, path_of, short
from genreg_jax.contract import Model
from genreg_jax.data import validate_images
from genreg_jax.data.dataset import composed
from genreg_jax.data.files import Images, read_images
from genreg_jax.data.folders import find
from genreg_jax.data.pictures import fit_array, fitted, shown
from genreg_jax.door import leave, say, through
from genreg_jax.errors import UserError
from genreg_jax.evaluate import make_evaluate
from genreg_jax.logs import read_summary, write_atomically
from genreg_jax.restore import TrainedFlow, how_to_continue, restore_classifier, restore_flow
from genreg_jax.settings import Settings


class Prediction(NamedTuple):
    """What a classifier makes of N images.

    Attributes:
      labels: int `[N]`, places in the run's `class_names`.
      probabilities: float32 `[N, K]`.
      embedding: float32 `[N, D]`, the head's input.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    embedding: np.ndarray


@dataclasses.dataclass(frozen=True, repr=False)
class Run:
    """A run, read only: its best classifier, and what is known of it.

    Attributes:
      workdir: where it lies.
      config: its settings.
      summary: its result; None where it is not finished.
      class_names: K names.
      image_shape: `(H, W, C)` of what the classifier sees.
      model: for images in [0, 1], behind the contract of `genreg_jax.contract`.
      params: of the model that validation chose.
      model_state: the same.
      updates: made so far, and of how many; None where an earlier version did not note that.
      images: what is known of those it was given: `dataset`, `subset_hash`, `fingerprint`.
    """

    workdir: Path
    config: Settings
    summary: dict[str, Any] | None
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    model: Model
    params: Any
    model_state: Any
    updates: tuple[int, int | None]
    images: dict[str, Any]

    def __repr__(self) -> str:
        """One line for people."""
        accuracy = (self.summary or {}).get("test_accuracy")
        shown = "not finished" if self.summary is None else f"test accuracy {accuracy}"
        return (
            f"Run({str(self.workdir)!r}: {self.config.name}, {len(self.class_names)} classes, "
            f"images {self.image_shape}, {shown})"
        )

    def _repr_html_(self) -> str:
        """The run's report, in a notebook."""
        page = self.workdir / "report.html"
        if not page.is_file():
            return f"<code>{html.escape(repr(self))}</code>"
        content = html.escape(page.read_text(encoding="utf-8"), quote=True)
        return f'<iframe sandbox srcdoc="{content}" width="100%" height="700"></iframe>'

    @functools.cached_property
    def flow(self) -> TrainedFlow:
        """The flow that the run trained or used, with its parameters.

        Raises:
          UserError: it has none.
        """
        return restore_flow(self.config.flow.workdir or self.workdir)

    def predict(self, images: Any) -> Prediction:
        """Labels, probabilities and embeddings of images.

        Args:
          images: `[N, H, W, C]`, `[N, H, W]` or one image, uint8 or floating point in [0, 1]; or a
            list of images of any sizes; or `gr.data.Stored` ones, which are read as they are
            needed. What has another size or other channels than the run's images is brought to
            them as `config.data.resize` says.

        Raises:
          UserError: these are no images.

        Example:
          >>> import tempfile
          >>> import genreg_jax as gr
          >>> config = {"data": {"name": "digits", "per_class": 10},
          ...           "model": {"widths": [8, 16]},
          ...           "train": {"epochs": 1, "steps_per_epoch": 2, "progress": False}}
          >>> workdir = tempfile.mkdtemp()
          >>> _ = gr.train_and_evaluate(config, workdir)
          >>> run = gr.load(workdir)
          >>> run.predict(np.zeros((2, 50, 40), np.uint8)).probabilities.shape
          (2, 10)
        """
        x = self._as_batch(images)
        result = self._evaluate(self.params, self.model_state, x, np.zeros(len(x), np.int32))
        return Prediction(result["predictions"], result["probabilities"], result["embeddings"])

    def evaluate(self, split: str | data.Split = "test") -> dict[str, Any]:
        """Accuracy and mean cross-entropy.

        Args:
          split: `train`, `validation` or `test` of the run's data, which are read again; or a
            `gr.data.Split` of one's own: images as `predict` takes them, which are brought to the
            size of the run's as there, and integer labels `[N]`, places in `class_names`.

        Returns:
          `accuracy` in [0, 1], `loss` in nats, `predictions` `[N]`, `probabilities` `[N, K]` and
          `embeddings` `[N, D]`.

        Raises:
          UserError: the run's data are not to be had, or are others than it was trained on, or
            there are none in that split; or these are no images with labels of its classes.
        """
        if isinstance(split, str):
            split = self._own_split(split)
        if not isinstance(split, data.Split):
            raise UserError(
                f"split is {short(split)}; it must be train, validation or test, or images and "
                "labels of your own: gr.data.Split(images, labels). Without labels: run.predict."
            )
        x = self._as_batch(split.images)
        labels = self._as_labels(split.labels, len(x))
        return self._evaluate(self.params, self.model_state, x, labels)

    def _own_split(self, name: str) -> data.Split:
        """A split of the run's data, which are read again."""
        if name not in ("train", "validation", "test"):
            raise UserError(f"split is {name!r}; allowed: train, validation and test.")
        given = "run.evaluate(dataset.test), with the same dataset, evaluates"
        if self.images.get("dataset") not in (None, self.config.data.name):
            raise UserError(
                f"The run in {self.workdir} was given its images as a dataset in memory, "
                f"{self.images['dataset']!r}, and its config.data does not lead to them; {given}."
            )
        dataset = data.from_settings(self.config.data, self.config.seed)
        known = self.images
        try:
            workdirs.check_same_data(
                known.get("subset_hash") or "", dataset, self.workdir, known.get("fingerprint")
            )
        except UserError as error:
            raise UserError(
                f"{error} Where it was given its images as a dataset in memory, {given}."
            ) from None
        split = getattr(dataset, name)
        if not len(split):
            raise UserError(f"The run in {self.workdir} has no {name} images; take another split.")
        return split

    @functools.cached_property
    def _evaluate(self) -> Any:
        # The batches of the run's own evaluation, so that its predictions come back bit for bit.
        known = self.summary or {}
        sizes = [known.get(f"{split}_examples") or 0 for split in ("validation", "test")]
        most = self.config.train.eval_batch_size
        size = min(most, max(sizes)) if max(sizes) else most
        return make_evaluate(self.model, batch_size=size, probabilities=True)

    def _as_batch(self, images: Any) -> Any:
        if isinstance(images, data.Stored) and len(images):
            return fitted(images, self.image_shape, self.config.data.resize)
        if isinstance(images, (list, tuple)):
            many = list(images)
        else:
            array = np.asarray(images)
            one = array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (1, 3, 4))
            if array.ndim == 4 and array.shape[1:] == self.image_shape:
                return validate_images(array)
            many = [array] if one else list(array) if array.ndim in (3, 4) else []
        if not many:
            raise UserError(
                "images must be [N, H, W, C], [N, H, W], one image, or a list of images, with at "
                f"least one of them; got {type(images).__name__} of shape {np.shape(images)}."
            )
        return np.stack([self._as_image(image) for image in many])

    def _as_labels(self, labels: Any, count: int) -> np.ndarray:
        k = len(self.class_names)
        try:
            found = np.asarray(labels)
        except ValueError:  # of lists of different lengths
            found = np.zeros((), object)
        if found.shape != (count,) or not np.issubdtype(found.dtype, np.integer):
            raise UserError(
                f"split.labels has the shape {found.shape} and the type {found.dtype}; it must be "
                f"one integer for each of the {count} images. One-hot labels: labels.argmax(-1)."
            )
        if found.min() < 0 or found.max() >= k:
            raise UserError(
                f"split.labels has labels from {found.min()} to {found.max()}; they must be places "
                f"in the run's {k} class_names, from 0 to {k - 1}."
            )
        return found.astype(np.int32)

    def _as_image(self, image: Any) -> np.ndarray:
        array = np.asarray(image)
        array = array[..., None] if array.ndim == 2 else array
        if array.ndim != 3 or array.shape[-1] not in (1, 3, 4):
            raise UserError(
                f"An image must be [H, W] or [H, W, C] with C = 1 or 3, got shape {array.shape}."
            )
        return fit_array(validate_images(array[None])[0], self.image_shape, self.config.data.resize)


def load(workdir: str | Path, model: Model | None = None) -> Run:
    """A finished or running run, read only.

    Args:
      workdir: of a run that trains a classifier.
      model: that it was trained with, where `train_and_evaluate` was given one.

    Raises:
      TypeError: `workdir` is no path.
      UserError: there is no trained classifier.

    Example:
      >>> import genreg_jax as gr
      >>> try:
      ...     gr.load("no/such/run")
      ... except gr.UserError as error:
      ...     print(str(error)[:41])
      'no/such/run' holds no trained classifier
    """
    check_folder(workdir)
    workdir = path_of(workdir)
    found = restore_classifier(workdir, model)
    finished = (workdir / "summary.json").exists()
    summary = read_summary(workdir) if finished else None
    height, width, channels = found.image_shape
    about = found.extra["run"]
    steps = about.get("steps_per_epoch") or found.settings.train.steps_per_epoch
    known = {"dataset": about.get("dataset"), **found.extra, **(summary or {})}
    return Run(
        workdir=workdir,
        config=found.settings,
        summary=summary,
        class_names=found.class_names,
        image_shape=(height, width, channels),
        model=found.model,
        params=found.params,
        model_state=found.model_state,
        updates=(found.updates, found.settings.train.epochs * steps or None),
        images={name: known.get(name) for name in ("dataset", "subset_hash", "fingerprint")},
    )


def say_if_unfinished(run: Run) -> None:
    """Says on stderr that a run has not come to its end, and what continues it."""
    if run.summary is None:
        made, total = run.updates
        of = "" if total is None else f" of {total}"
        say(
            f"The run in {str(run.workdir)!r} is not finished: its classifier is the best one after"
            f" {made}{of} updates. {how_to_continue(run.workdir)}"
        )


def _table(run: Run, files: Sequence[str], found: Prediction) -> str:
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    classes = [_as_text(name) for name in run.class_names]
    lines.writerow([*(_free(name, classes) for name in ("file", "label")), *classes])
    for file, label, row in zip(files, found.labels, found.probabilities, strict=True):
        lines.writerow([_as_text(file), classes[label], *(f"{p:.6f}" for p in row)])
    return text.getvalue()


def _as_text(name: str) -> str:
    """A name in UTF-8, whatever a file's is in, that no spreadsheet takes for a formula."""
    name = name.encode("utf-8", "backslashreplace").decode()
    return f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else name


def _free(name: str, taken: Sequence[str]) -> str:
    """A name, or what is not taken of it with underscores."""
    while name in taken:
        name += "_"
    return name


def _read(path: Path, run: Run, unreadable: str) -> Images:
    """What is to be predicted; says where there is nothing to compare with."""
    if path.suffix.lower() == ".csv" and path.is_file():
        raise UserError(
            f"{str(path)!r} is a table, which only config.data.dir of a run takes; give --input "
            "the folder of the pictures, the pictures themselves, or an .npz."
        )
    if path.is_dir():
        _check_folders(path, run.class_names)
    try:
        return read_images(
            path,
            run.image_shape,
            run.class_names,
            resize=run.config.data.resize,
            unreadable=unreadable,
        )
    except UserError as error:
        option = "repeat the command with --unreadable=skip"
        text = str(error).replace("set config.data.unreadable to 'skip'", option)
        raise UserError(text) from None


def _check_folders(path: Path, class_names: Sequence[str]) -> None:
    """Refuses a folder of which a part is in folders of classes; says where nothing is."""
    names = [file.relative_to(path) for file in find(path)[0]]
    known = {composed(name) for name in class_names}
    wrong = [name for name in names if len(name.parts) == 1 or composed(name.parts[0]) not in known]
    folders = list(dict.fromkeys(name.parts[0] for name in names if len(name.parts) > 1))
    classes = f"the run's classes ({shown(list(class_names), 20)})"
    if wrong and len(wrong) == len(names):
        if folders:
            say(
                f"no subfolder of {path} is one of {classes}; it has {shown(folders)}. Predicted "
                "without comparing."
            )
    elif wrong:
        raise UserError(
            f"{str(path)!r} has pictures in folders of {classes}, to be compared with, and "
            f"{len(wrong)} that are in none: {shown([str(name) for name in wrong])}. Move them "
            "into folders of classes or out, or give --input the folders and pictures one by one."
        )


def _confusion(run: Run, truth: np.ndarray, predicted: np.ndarray) -> str:
    """Accuracy, and how often each class was taken for which other one."""
    k = len(run.class_names)
    right = int(np.sum(truth == predicted))
    lines = [f"accuracy: {100 * right / len(truth):.2f} % ({right} of {len(truth)})"]
    if k > 20:
        return lines[0]
    counts = np.zeros((k, k), int)
    np.add.at(counts, (truth, predicted), 1)
    names = [name if len(name) <= 16 else f"{name[:15]}…" for name in run.class_names]
    wide = max(map(len, names))
    cell = max(3, len(str(counts.max())), *(len(str(i)) for i in range(k))) + 1
    lines.append(f"{'true':>{wide + 4}}  predicted")
    lines.append(" " * (wide + 4) + "".join(f"{i:>{cell}}" for i in range(k)))
    for i, name in enumerate(names):
        lines.append(f"{i:>3} {name:<{wide}}" + "".join(f"{n:>{cell}}" for n in counts[i]))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line of this module.

    Args:
      argv: Arguments; those of the process by default.

    Returns:
      The exit status: 0, or 1 after a message about what the user gave.
    """
    parser = argparse.ArgumentParser(
        prog="python -m genreg_jax.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", required=True, help="of a run that trained a classifier")
    parser.add_argument(
        "--input", required=True, nargs="+", type=path_of, help="folders, pictures or .npz files"
    )
    parser.add_argument("--output", type=path_of, help="the table, a .csv; printed if not given")
    parser.add_argument(
        "--unreadable", choices=("refuse", "skip"), default="refuse", help="pictures that are"
    )
    args = parser.parse_args(argv)

    def command() -> None:
        run = load(args.workdir)
        say_if_unfinished(run)
        if args.output is not None and args.output.is_dir():
            raise UserError(f"--output={args.output} is a folder; name a .csv file.")
        files, images, labels = [], [], []
        for path in args.input:
            given = _read(path, run, args.unreadable)
            names = given.names or [f"{path.name}[{i}]" for i in range(len(given.images))]
            root = path if path.is_dir() else path.parent
            files += [str(root / name) if len(args.input) > 1 else str(name) for name in names]
            images.append(given.images)
            labels.append(given.labels)
        found = run.predict(np.concatenate(images))
        table = _table(run, files, found)
        if args.output is None:
            sys.stdout.write(table)
        else:
            try:
                args.output.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(args.output, table)
            except OSError as error:
                raise UserError(f"{args.output} could not be written ({error.strerror}).") from None
            print(f"{len(files)} predictions in {args.output}")
        if all(given is not None for given in labels):
            text = _confusion(run, np.concatenate(labels), found.labels)
            print(text, file=sys.stdout if args.output is not None else sys.stderr)

    return through(command, compiles=True, product=True)


if __name__ == "__main__":
    leave(main())
