"""How much do ImageNet's features know already? A linear classifier on them, nothing fine-tuned.

    python -m experiments.fine_tuning.features --data_dir=DIR --seeds 3

CIFAR-10 with 50 labels per class: EfficientNet-Lite0's embedding of images brought to 64x64, and
scikit-learn's logistic regression, its strength chosen on 1,000 validation images. Uses ImageNet's
labels.
"""

import argparse
import json
import pathlib

import jax
import jax.numpy as jnp
from sklearn.linear_model import LogisticRegression

from experiments.lines import mean_and_error
from genreg_jax import data
from genreg_jax.build import model_of
from genreg_jax.config import from_config
from genreg_jax.door import leave, through
from genreg_jax.evaluate import make_evaluate
from genreg_jax.logs import provenance
from genreg_jax.restore import pretrained_start

NAME = "efficientnet_lite0"
STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0)
RESULTS = pathlib.Path(__file__).parent / "results" / "features.jsonl"


def run(settings):
    """Test accuracy of the linear classifier, and what was chosen."""
    dataset = data.from_settings(settings.data, settings.seed)
    model = model_of(settings, dataset)
    warm, _ = pretrained_start(settings, dataset)
    params, state = warm(model.init(jax.random.key(0), jnp.zeros((1, *dataset.image_shape))))

    evaluate = make_evaluate(model, batch_size=250)

    def features(split):
        return evaluate(params, state, split.images, split.labels)["embeddings"]

    train, validation, test = map(features, (dataset.train, dataset.validation, dataset.test))
    mean, std = train.mean(0), train.std(0) + 1e-6
    fitted = {
        strength: LogisticRegression(C=strength, max_iter=3000).fit(
            (train - mean) / std, dataset.train.labels
        )
        for strength in STRENGTHS
    }
    score = lambda c, x, split: c.score((x - mean) / std, split.labels)
    chosen = max(STRENGTHS, key=lambda s: score(fitted[s], validation, dataset.validation))
    return {
        "seed": settings.seed,
        "labels_per_class": settings.data.per_class,
        "image_size": settings.data.image_size,
        "strength": chosen,
        "validation_accuracy": score(fitted[chosen], validation, dataset.validation),
        "test_accuracy": score(fitted[chosen], test, dataset.test),
        **provenance(),
    }


def main():
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--data_dir", default="", help="TFDS data directory")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--per_class", type=int, default=50)
    parser.add_argument("--image_size", type=int, default=64)
    args = parser.parse_args()
    images = {"name": "cifar10", "dir": args.data_dir, "per_class": args.per_class}
    images |= {"image_size": args.image_size, "validation_fraction": 0.02}
    lines = []
    for seed in range(args.seeds):
        config = {"data": images, "model": {"name": NAME, "pretrained": NAME}, "seed": seed}
        lines.append(run(from_config(config)))
        print(json.dumps(lines[-1]), flush=True)
    mean, error = mean_and_error([100 * line["test_accuracy"] for line in lines])
    print(f"test accuracy {mean:.2f} ± {error:.2f} % (n = {len(lines)})")
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    leave(through(main))
