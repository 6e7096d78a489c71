"""What a run will cost, said before it begins: parameters, updates, arithmetic beside each other.

FLOPs are XLA's count of a forward pass before its optimisations, three times that for an update;
nothing is compiled or run.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from genreg_jax.build import flow_of
from genreg_jax.contract import Model
from genreg_jax.data import Dataset
from genreg_jax.settings import FlowSettings

MOST_TIMES = 10  # a flow's training, in trainings of the classifier, before that is remarked on


def size(params: Any) -> int:
    """The number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _forward(init: Any, run: Any, *example: Any) -> tuple[int, float]:
    """Parameters, and the FLOPs of `run(parameters, *example)`; NaN where XLA does not count."""
    variables = jax.eval_shape(init, jax.random.key(0), *example)
    counted = jax.jit(run).lower(variables, *example).cost_analysis() or {}
    return size(variables), float(counted.get("flops", float("nan")))


def flow_cost(
    settings: FlowSettings, dataset: Dataset, model: Model, images: int
) -> tuple[int, float]:
    """What the flow of a run costs.

    Args:
      settings: of the flow.
      dataset: of the run.
      model: the classifier.
      images: that the classifier's training sees, one counted as often as it is seen.

    Returns:
      The flow's parameters, and the arithmetic of its training as a multiple of that of the
      classifier's on the real images alone.

    Example:
      >>> import genreg_jax as gr
      >>> dataset = gr.data.load("digits", per_class=10)
      >>> model = gr.models.make("convnet", num_classes=10, widths=(8, 16))
      >>> flow = FlowSettings(levels=1, steps=2, width=8, updates=100, batch_size=32)
      >>> parameters, times = flow_cost(flow, dataset, model, images=6400)
      >>> parameters > 0 and times > 0
      True
    """
    batch = 8
    x = jax.ShapeDtypeStruct((batch, *dataset.image_shape), jnp.float32)
    y = jax.ShapeDtypeStruct((batch,), jnp.int32)
    # Steps unrolled: XLA counts the body of a loop once.
    unrolled = dataclasses.replace(settings, scan=False)
    flow = flow_of(unrolled, dataset.image_shape, dataset.num_classes)
    flow_x = jax.ShapeDtypeStruct((batch, *flow.image_shape), jnp.float32)
    example = (flow_x, y) if settings.conditional else (flow_x,)
    parameters, flops = _forward(flow.init, flow.log_prob, *example)
    _, plain = _forward(
        model.init, lambda v, x: model.apply(*v, x, rng=None, train=False)[0].logits, x
    )
    return parameters, flops * settings.batch_size * settings.updates / (plain * images)


def in_words(settings: FlowSettings, dataset: Dataset, parameters: int, times: float) -> list[str]:
    """The cost of a flow as lines for people, remarks on what is out of proportion among them."""
    lines = [
        f"a flow of {parameters:,} parameters is trained first, {settings.updates:,} updates of "
        f"{settings.batch_size} images: {times:.1f} times the arithmetic of the classifier's "
        "training on real images"
    ]
    pixels = len(dataset.train) * math.prod(settings.shape_of(dataset.image_shape))
    if parameters > pixels:
        lines.append(
            f"  it has more parameters than its {len(dataset.train)} images have pixels "
            f"({pixels:,}): it can learn them by heart; see whether its samples are copies in the "
            "report, or lower config.flow.width or steps"
        )
    if times > MOST_TIMES:
        lines.append(
            f"  that is more than {MOST_TIMES} times; lower config.flow.updates, steps or width, "
            "or share one flow between runs with config.flow.workdir"
        )
    return lines
