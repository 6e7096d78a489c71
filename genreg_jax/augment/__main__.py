"""Perturbed copies of images of your own, by the flow of a finished run.

    python -m genreg_jax.augment --flow=WORKDIR --input=IMAGES --output=DIR --kind=random

`IMAGES` is a folder, with a subfolder for each class where labels are needed (by a flow conditioned
on them, which is the default, and by interpolation), or an `.npz` with `images` [N, H, W, C] and
`labels` [N]. Images of a folder come back as PNGs under the same names, those of an `.npz` as
`images.npz` with `images` and, if there were any, `labels`.
"""

import argparse
from collections.abc import Sequence

from genreg_jax.door import leave, through
from genreg_jax.perturb import EPSILON, augment


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line of this module.

    Args:
      argv: Arguments; those of the process by default.

    Returns:
      The exit status: 0, or 1 after a message about what the user gave.
    """
    parser = argparse.ArgumentParser(
        prog="python -m genreg_jax.augment",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--flow", required=True, help="workdir of a finished run")
    parser.add_argument("--input", required=True, help="folder of images, or .npz")
    parser.add_argument("--output", required=True, help="new folder")
    parser.add_argument("--kind", default="random", choices=EPSILON)
    parser.add_argument("--epsilon", type=float, help="radius per dimension")
    parser.add_argument("--norm", default="l2", choices=("l2", "linf"))
    parser.add_argument("--ratio", type=float, default=1.0, help="share of images perturbed")
    parser.add_argument("--clip", type=float, help="largest change of a pixel")
    parser.add_argument(
        "--difference", action="store_true", help="add only what changes, which keeps all detail"
    )
    parser.add_argument("--step_size", type=float, help="of adversarial, per dimension")
    parser.add_argument("--num_steps", type=int, default=3, help="of adversarial")
    parser.add_argument("--copies", type=int, default=1, help="of each image")
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args(argv))
    flow, images, output = (options.pop(name) for name in ("flow", "input", "output"))

    def command() -> None:
        count = augment(flow, images, output, **options)
        print(f"{count} images in {output}")

    return through(command, compiles=True)


if __name__ == "__main__":
    leave(main())
