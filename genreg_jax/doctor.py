"""Looks at an installation and says what is wrong with it and what to do.

    python -m genreg_jax.doctor [--data_dir=DIR]

Prints a line a finding: versions, devices, known bad combinations, prepared data sets and a short
self-test. The exit status is 0 where nothing is wrong.
"""

import argparse
import importlib
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from genreg_jax.door import leave, through


class Finding(NamedTuple):
    """One line of the report: `ok`, `note` (works, could be better) or `wrong`."""

    level: str
    text: str


def installed() -> dict[str, str]:
    """Name, in lower case, to version of every distribution of this environment."""
    return {
        dist.name.lower().replace("_", "-"): dist.version
        for dist in metadata.distributions()
        if dist.name
    }


def check_versions(versions: dict[str, str], python: tuple[int, int]) -> Iterator[Finding]:
    """Versions that do not work with each other.

    Args:
      versions: as `installed` returns them.
      python: (major, minor).

    Example:
      >>> from genreg_jax.doctor import check_versions
      >>> found = {"jax": "0.10.2", "jaxlib": "0.10.2", "jax-cuda12-plugin": "0.7.2"}
      >>> [finding.level for finding in check_versions(found, (3, 11))]
      ['ok', 'wrong']
    """
    shown = ("genreg-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    texts = [f"{name} {versions[name]}" for name in shown if name in versions]
    yield Finding("ok", f"Python {python[0]}.{python[1]}, {', '.join(texts)}")
    if python < (3, 11):
        yield Finding("wrong", "Python 3.11 or newer is needed; make an environment with it.")
    jax = versions.get("jax")
    if jax != versions.get("jaxlib", jax):
        yield Finding(
            "wrong",
            f"jax {jax} and jaxlib {versions['jaxlib']} do not belong together: "
            f"python -m pip install jax=={jax} jaxlib=={jax}",
        )
    for name, version in versions.items():
        if name.startswith("jax-") and name.endswith(("-plugin", "-pjrt")) and version != jax:
            extra = name.split("-")[1]
            yield Finding(
                "wrong",
                f"{name} {version} is ignored by jax {jax}, which then runs on the CPU without a "
                f"word: python -m pip install 'jax[{extra}]=={jax}'",
            )
    if "tensorflow-probability" in versions and "tfp-nightly" not in versions:
        yield Finding(
            "wrong",
            f"distrax fails with the stable tensorflow-probability "
            f"{versions['tensorflow-probability']} on this jax; only flow.as_distrax needs it: "
            "python -m pip install tfp-nightly",
        )


def check_devices() -> Iterator[Finding]:
    """The devices that JAX uses, and an accelerator of the machine that it does not."""
    import jax

    devices = jax.devices()
    kinds = sorted({device.device_kind for device in devices})
    yield Finding("ok", f"{len(devices)} {devices[0].platform} device(s): {', '.join(kinds)}")
    if devices[0].platform != "cpu":
        return
    hints = {"/dev/nvidia0": ("an NVIDIA GPU", "cuda12"), "/dev/accel0": ("a TPU", "tpu")}
    for path, (what, extra) in hints.items():
        if Path(path).exists():
            yield Finding(
                "wrong",
                f"The machine has {what} ({path}) but JAX runs on the CPU: "
                f"python -m pip install -e '.[{extra}]', and unset JAX_PLATFORMS if it is set.",
            )


def check_distrax(import_module: Callable[[str], Any] = importlib.import_module):
    """Whether distrax, which `as_distrax` alone needs, can be imported with this jax."""
    try:
        import_module("distrax")
    except Exception as error:
        text = str(error).strip().splitlines()
        yield Finding(
            "note",
            f"distrax cannot be imported ({text[-1] if text else type(error).__name__}); only "
            "flow.as_distrax needs it: python -m pip install -U distrax tfp-nightly",
        )


def check_data(data_dir: str) -> Iterator[Finding]:
    """Data sets prepared in the TFDS data directory."""
    from genreg_jax.data.photographs import SETS, find
    from genreg_jax.data.tfds import tfds_root

    root = tfds_root(data_dir)
    names = sorted(
        {
            path.relative_to(root).parts[0]
            for path in root.glob("*/**/dataset_info.json")
            if path.relative_to(root).parts[0] != "downloads"
        }
        | {name for name in SETS if not find(name, root)[1]}
    )
    if names:
        yield Finding("ok", f"data sets in {root}: {', '.join(names)}")
    else:
        yield Finding(
            "note",
            f"no data set is prepared in {root}; digits needs none, for others see "
            "python -m genreg_jax.data.prepare --help, or give --config.data.dir",
        )


def check_training() -> Iterator[Finding]:
    """Three updates of a small classifier on the embedded digits and an exact flow's round trip."""
    import jax
    import jax.numpy as jnp
    import optax

    import genreg_jax as gr

    start = time.perf_counter()
    split = gr.data.load("digits", per_class=5).train
    batch = gr.Batch(jnp.asarray(split.images), jnp.asarray(split.labels))
    x = batch.images.astype(jnp.float32) / 255.0
    model = gr.models.make("convnet", num_classes=10, widths=(8,))
    params, model_state = model.init(jax.random.key(0), x[:1])
    tx = optax.sgd(0.05)
    step = jax.jit(gr.make_train_step(model, tx, num_classes=10, augment=lambda key, x: x))
    key = jax.random.key(1)
    state = gr.TrainState.create(params, model_state, tx, key)
    losses = []
    for _ in range(3):
        state, metrics = step(state, batch)
        losses.append(float(metrics["train/loss"]))
    flow = gr.flows.realnvp((8, 8, 1), levels=1, steps=2, width=4)

    @jax.jit
    def round_trip(x):
        params = flow.init(key, x)
        return flow.decode(params, flow.encode(params, x)[0])[0]

    error = float(jnp.max(jnp.abs(round_trip(x) - x)))
    seconds = time.perf_counter() - start
    fine = losses[2] < losses[0] and error < 1e-4
    yield Finding(
        "ok" if fine else "wrong",
        f"self-test in {seconds:.1f} s: loss {losses[0]:.3f} -> {losses[2]:.3f} in 3 updates, a "
        f"flow's largest reconstruction error {error:.1e}"
        + ("" if fine else "; the loss should fall and the error stay below 1e-4"),
    )


def main() -> int:
    """Prints the findings; returns 1 if one of them is `wrong`."""
    parser = argparse.ArgumentParser(prog="python -m genreg_jax.doctor", description=__doc__)
    parser.add_argument("--data_dir", default="", help="TFDS data directory")
    args = parser.parse_args()

    def command() -> int:
        versions = installed()
        wrong = 0
        checks: list[Callable[[], Iterator[Finding]]] = [
            lambda: check_versions(versions, sys.version_info[:2]),
            check_devices,
            check_distrax,
            lambda: check_data(args.data_dir),
            check_training,
        ]
        for check in checks:
            try:
                for finding in check():
                    print(f"{finding.level:6}{finding.text}", flush=True)
                    wrong += finding.level == "wrong"
            except Exception as error:
                print(f"wrong {type(error).__name__}: {' '.join(str(error).split())}", flush=True)
                wrong += 1
        print("Nothing is wrong." if not wrong else f"{wrong} thing(s) to put right, see above.")
        return int(wrong > 0)

    return through(command)


if __name__ == "__main__":
    leave(main())
