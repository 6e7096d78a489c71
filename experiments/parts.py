"""The parts of a run on random images, with an untrained flow: what its programs are made of."""

import jax
import jax.numpy as jnp
import numpy as np

import genreg_jax as gr
from genreg_jax import build, flows
from genreg_jax.batches import BatchPlan

CLASSES = 10


def parts_of(settings, shape, *, images, validation_fraction):
    """The parts of a run of `settings`, and the indices of its first epoch.

    Args:
      settings: of the run.
      shape: of the images.
      images: how many there are to train with, and to test with.
      validation_fraction: of the former.
    """
    train, test = np.random.default_rng(0).integers(0, 256, (2, images, *shape)).astype(np.uint8)
    labels = (np.arange(images) % CLASSES).astype(np.int32)
    dataset = gr.data.from_arrays(
        train, labels, test, labels, validation_fraction=validation_fraction
    )
    flow = build.flow_of(settings.flow, shape, CLASSES)
    x, y = np.ones((CLASSES, *flow.image_shape), np.float32), np.arange(CLASSES)
    params = jax.eval_shape(flow.init, jax.random.key(0), x, y if flow.num_classes else None)
    params = jax.tree.map(lambda p: jnp.zeros(p.shape, p.dtype), params)
    generator = flows.as_generator(flow, params)
    frozen = flows.resized(generator.params, shape)
    plan = BatchPlan(settings, dataset.train.labels, dataset.validation.labels)
    parts = build.parts(
        settings,
        dataset,
        plan=plan,
        views=build.views_of(settings, shape),
        generator=generator._replace(params=frozen),
        flow=frozen,
    )
    return parts, plan.epoch(0)
