"""How good a trained flow is: bits per dimension, how exactly it inverts, and whether it copies.

    python -m genreg_jax.flows.evaluate --workdir=DIR

prints the first two over the whole test set, for the flow of a run of `genreg_jax.main`, and
compares 512 of its samples with the images that it was trained on and with those of the test set.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from genreg_jax.door import leave, through
from genreg_jax.errors import UserError
from genreg_jax.flows.measure import evaluate_flow, print_result, test_key


def _evaluate_workdir(workdir: Path, data_dir: str) -> tuple[int, dict[str, float], str]:
    # Imported here: `--help` needs neither data sets nor checkpoints.
    from genreg_jax import data
    from genreg_jax import workdir as workdirs
    from genreg_jax.checks import path_of
    from genreg_jax.config import from_config
    from genreg_jax.data.pictures import fitted
    from genreg_jax.flow_run import flow_data
    from genreg_jax.flows.generator import as_generator
    from genreg_jax.logs import read_json
    from genreg_jax.memorisation import memorisation_in_words
    from genreg_jax.restore import restore_classifier, restore_flow
    from genreg_jax.samples import about_prior

    workdir = path_of(workdir)
    path = workdir / "config.json"
    if not path.exists():
        raise UserError(
            f"{str(workdir)!r} holds no trained flow. Give the --workdir of a run of `python -m "
            "genreg_jax.main` that trains one, such as --config=configs/glow_digits.py."
        )
    settings = from_config(read_json(path))
    if data_dir:
        data_settings = dataclasses.replace(settings.data, dir=data_dir)
        settings = dataclasses.replace(settings, data=data_settings)
    trained = restore_flow(settings.flow.workdir or workdir)
    dataset = data.from_settings(settings.data, settings.seed)
    workdirs.check_same_data(trained.subset_hash, dataset, workdir)
    dataset, image_shape = flow_data(settings, dataset), dataset.image_shape
    test, key = dataset.test, test_key(settings.seed)
    labels = test.labels if settings.flow.conditional else None
    result = evaluate_flow(trained.flow, trained.params, test.images, labels, key=key)

    classify = None
    if settings.model.name != "none" and (workdir / "summary.json").exists():
        logits = restore_classifier(workdir).logits
        seen = lambda x: jnp.asarray(fitted(x, image_shape) / np.float32(255))
        classify = lambda x: np.asarray(logits(seen(x))).argmax(axis=-1)
    generator = as_generator(trained.flow, trained.params)
    key = jax.random.fold_in(key, 2)
    about = about_prior(key, generator, dataset, settings, test.images, classify)
    return len(test), result, memorisation_in_words(about)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line of this module.

    Args:
      argv: Arguments; those of the process by default.

    Returns:
      The exit status: 0, or 1 after a message about what the user gave.
    """
    parser = argparse.ArgumentParser(prog="python -m genreg_jax.flows.evaluate")
    parser.add_argument("--workdir", required=True, type=Path, help="directory of the run")
    parser.add_argument("--data_dir", default="", help="TFDS data directory, where it has moved")
    args = parser.parse_args(argv)

    def command() -> None:
        count, result, about = _evaluate_workdir(args.workdir, args.data_dir)
        print_result(count, result)
        print(about)

    return through(command, compiles=True)


if __name__ == "__main__":
    leave(main())
