"""Does every wrong argument of a library call end in an error that names it? Counts over all pairs.

    python benchmarks/arguments.py                  # a minute or two on one core
    python benchmarks/arguments.py --only=phantom   # functions whose names hold that

Each function below is called with arguments that are right but for one, which is each of `BAD` in
turn. Such a call must raise a `ValueError` that names the argument, or give finite numbers (some of
`BAD` are right for some arguments), within 20 seconds. Embeddings that hold NaN may give NaN.
"""

import argparse
import collections
import math
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np

import genreg_jax as gr

SECONDS = 20
BAD = {
    "None": None,
    "text": "x",
    "-1": -1,
    "0": 0,
    "0.5": 0.5,
    "NaN": math.nan,
    "infinity": math.inf,
    "10**400": 10**400,
    "1e30": 1e30,
    "list": [],
    "object": object(),
    "dict": {},
    "True": True,
    "matrix": np.zeros((2, 3)),
    "integers": np.arange(3),
    "complex": 1j,
    "images of NaN": np.full((4, 8, 8, 1), np.nan, np.float32),
    "images of 7": np.full((4, 8, 8, 1), 7.0, np.float32),
    "images of 16 bits": np.ones((4, 8, 8, 1), np.uint16),
    "no images": np.zeros((0, 8, 8, 1), np.float32),
    "negative labels": np.array([-1, 0, 1, 2]),
    "labels beyond the classes": np.array([0, 1, 2, 99]),
    "labels of 33 bits": np.array([0, 1, 2, 2**32 + 1]),
    "floating labels": np.array([0.0, 1, 2, 0]),
    "column of labels": np.zeros((4, 1), int),
    "several keys": jax.random.split(jax.random.key(0), 2),
}
# Words by which an error may name an argument, besides its own name.
WORDS = {
    ("make_augment", "spec"): "augmentation",
    ("load", "name"): "dataset",
    ("from_arrays", "train_images"): "train",
    ("from_arrays", "test_images"): "test",
    ("interpolated_latents", "z"): "embeddings",
}


def calls():
    """Name to a function and its right arguments."""
    key, rng = jax.random.key(0), np.random.default_rng(0)
    x, y = rng.random((4, 8, 8, 1), np.float32), np.arange(4) % 3
    flow = gr.flows.glow((8, 8, 1), levels=1, steps=1, width=4, num_classes=3)
    params = flow.init(key, x, y)
    frozen = flow.freeze(params)
    z = np.asarray(frozen.encode(x, y))
    e, other = rng.normal(size=(2, 4, 5)).astype(np.float32)
    images = rng.integers(0, 256, (40, 8, 8, 1)).astype(np.uint8)
    labels = np.arange(40) % 2
    sizes = {"image_shape": (8, 8, 1), "levels": 1, "steps": 1, "width": 4, "num_classes": 3}
    shares = {"per_class": 3, "fraction": 1.0, "validation_fraction": 0.1, "seed": 0}
    draw, batch = {"key": key, "x": x}, {"x": x, "y": y}
    latent = {"key": key, "frozen": frozen, **batch, "epsilon": 0.5}
    augment, flows, data = gr.augment, gr.flows, gr.data
    return {
        "glow": (flows.glow, {**sizes, "scale": 2.0, "dropout": 0.1, "num_bins": 256}),
        "realnvp": (flows.realnvp, sizes),
        "init": (flow.init, {"key": key, **batch}),
        "encode": (flow.encode, {"params": params, **batch}),
        "decode": (flow.decode, {"params": params, "z": z, "y": y}),
        "log_prob": (flow.log_prob, {"params": params, **batch, "key": key}),
        "bits_per_dim": (flow.bits_per_dim, {"params": params, **batch, "key": key}),
        "sample": (
            flow.sample,
            {"params": params, "key": key, "n": 2, "y": y[:2], "temperature": 1.0},
        ),
        "interpolate": (
            flow.interpolate,
            {"params": params, "x0": x, "x1": x[::-1], "y": y, "num": 3},
        ),
        "freeze": (flow.freeze, {"params": params, "coupling_dtype": "bfloat16"}),
        "frozen.encode": (frozen.encode, batch),
        "frozen.decode": (frozen.decode, {"z": z, "y": y}),
        "fit": (
            flows.fit,
            {
                **{"key": key, "flow": flow, "images": x, "labels": y, "steps": 1},
                **{"batch_size": 2, "learning_rate": 1e-3, "weight_decay": 0.0, "warmup": 0},
                **{"grad_clip": 1.0, "ema_decay": 0.9, "eval_every": 1},
            },
        ),
        "make_augment": (make_augment, {"spec": "flip", "image_shape": (8, 8, 1)}),
        "flip": (augment.flip, draw),
        "crop": (augment.crop, {**draw, "padding": 1}),
        "cutout": (augment.cutout, {**draw, "size": 2}),
        "affine": (augment.affine, {**draw, "degrees": 5.0, "translate": 0.1, "shear": 0.1}),
        "randaugment": (augment.randaugment, {**draw, "num_ops": 1, "magnitude": 3}),
        "trivialaugment": (augment.trivialaugment, draw),
        "load": (data.load, {"name": "digits", **shares}),
        "from_arrays": (
            data.from_arrays,
            {
                **{"train_images": images, "train_labels": labels},
                **{"test_images": images, "test_labels": labels, **shares},
            },
        ),
        "make_model": (
            gr.models.make,
            {"name": "convnet", "num_classes": 3, "dtype": "float32", "widths": (4,)},
        ),
        "phantom_embeddings": (
            gr.phantom_embeddings,
            {
                **{"key": key, "embeddings": e, "labels": y, "subset_size": 1},
                "weighting": "uniform",
            },
        ),
        "attraction_loss": (
            gr.attraction_loss,
            {"embeddings": e, "phantoms": other, "distance": "l2"},
        ),
        "separation_loss": (
            gr.separation_loss,
            {"key": key, "embeddings": e, "labels": y, "num_classes": 3, "temperature": 1.0},
        ),
        "classification_loss": (gr.classification_loss, {"phantom_logits": e, "labels": y}),
        "combination_loss": (
            gr.combination_loss,
            {"logits": e, "phantom_logits": other, "labels": y, "ratio": 0.5},
        ),
        "pcr_loss": (
            gr.pcr_loss,
            {"embedding_weak": e, "embedding_strong": other, "distance": "cosine"},
        ),
        "renoised_latents": (gr.renoised_latents, {"key": key, "z": z, "low": 0.0, "high": 0.2}),
        "interpolated_latents": (
            gr.interpolated_latents,
            {"key": key, "z": z, "labels": y, "strength": 0.5},
        ),
        "random_latent_perturbation": (gr.random_latent_perturbation, {**latent, "norm": "l2"}),
        "away_latent_perturbation": (gr.away_latent_perturbation, latent),
    }


def make_augment(spec, image_shape):
    gr.augment.make(spec, image_shape=image_shape)


class _Hang(Exception):
    pass


def _alarm(*_):
    raise _Hang


def outcome(name, function, arguments, wrong, value):
    """What a call with one wrong argument comes to, and the error's first line."""
    signal.alarm(SECONDS)
    try:
        result = function(**{**arguments, wrong: value})
    except _Hang:
        return "no end", ""
    except ValueError as error:
        words = {wrong, WORDS.get((name, wrong), wrong)}
        named = any(word in str(error) for word in words)
        return "error names it" if named else "ERROR DOES NOT NAME IT", str(error).split("\n")[0]
    except Exception as error:
        return f"OTHER ERROR {type(error).__name__}", str(error).split("\n")[0]
    finally:
        signal.alarm(0)
    floats = [
        leaf
        for leaf in jax.tree.leaves(result)
        if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    fine = all(np.isfinite(np.asarray(leaf, np.float64)).all() for leaf in floats)
    given = "embeddings" in wrong and np.isnan(np.asarray(value, np.float32)).any()
    return ("finite" if fine or given else "NOT FINITE"), ""


def run(only="", every=1):
    """Counts of outcomes, and a line for each that should not be; each `every`-th call is made."""
    signal.signal(signal.SIGALRM, _alarm)
    counts: collections.Counter = collections.Counter()
    failures, number = [], 0
    for name, (function, arguments) in calls().items():
        if only not in name:
            continue
        for wrong in arguments:
            for what, value in BAD.items():
                number += 1
                if number % every:
                    continue
                found, text = outcome(name, function, arguments, wrong, value)
                counts[found] += 1
                if found not in ("finite", "error names it"):
                    failures.append(f"{name}({wrong}={what}): {found}: {text[:120]}")
    return counts, failures


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="functions whose names hold this")
    args = parser.parse_args()
    counts, failures = run(args.only)
    for line in failures:
        print(line)
    print(f"{sum(counts.values())} calls: " + ", ".join(f"{n} {k}" for k, n in counts.items()))
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
