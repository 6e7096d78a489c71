"""What is said of a run's cost before it begins."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import genreg_jax as gr
from genreg_jax.build import flow_of
from genreg_jax.costs import flow_cost, in_words
from genreg_jax.settings import FlowSettings


def linear(num_classes):
    """A classifier whose arithmetic is known: `2 * pixels * classes` a picture and little else."""

    def init(key, x):
        return jnp.zeros((x[0].size, num_classes)), {}

    def apply(params, state, x, *, rng, train):
        e = x.reshape(len(x), -1)
        return gr.Outputs(e @ params, e), state

    return gr.Model(init, apply)


def count(jaxpr):
    """Multiplications and additions of all products of matrices and convolutions."""
    total = 0
    for equation in jaxpr.eqns:
        shapes = [v.aval.shape for v in equation.invars]
        out = math.prod(equation.outvars[0].aval.shape)
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += 2 * out * math.prod(shapes[0][d] for d in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            spec = equation.params["dimension_numbers"].rhs_spec
            total += 2 * out * math.prod(shapes[1][d] for d in spec[1:])
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += equation.params.get("length", 1) * count(inner)
    return total


@pytest.mark.parametrize("scan", [False, True])
def test_a_flow_is_counted_whole_and_in_trainings_of_the_classifier(scan):
    dataset = gr.data.load("synthetic", per_class=5)
    pixels = dataset.train.images[0].size
    settings = FlowSettings(
        levels=1, steps=5, width=96, updates=70, batch_size=20, conditional=False, scan=scan
    )
    parameters, times = flow_cost(settings, dataset, linear(dataset.num_classes), images=500)
    flow = flow_of(settings, dataset.image_shape, dataset.num_classes)
    x = jnp.zeros((1, *dataset.image_shape))
    leaves = jax.tree.leaves(jax.eval_shape(flow.init, jax.random.key(0), x))
    assert parameters == sum(leaf.size for leaf in leaves)
    plain = FlowSettings(levels=1, steps=5, width=96, conditional=False, scan=False)
    flow = flow_of(plain, dataset.image_shape, dataset.num_classes)
    variables = jax.eval_shape(flow.init, jax.random.key(0), x)
    products = count(jax.make_jaxpr(flow.log_prob)(variables, x).jaxpr)
    expected = products / (2 * pixels * dataset.num_classes) * 70 * 20 / 500
    # What is not a product comes on top.
    assert expected < times < 1.3 * expected


def test_twice_the_updates_cost_twice_and_what_is_out_of_proportion_is_remarked_on():
    dataset = gr.data.load("digits", per_class=2)
    model = linear(10)
    costs = [
        flow_cost(FlowSettings(levels=1, steps=1, width=4, updates=u), dataset, model, images=n)[1]
        for u, n in ((10, 100), (20, 100), (10, 300))
    ]
    np.testing.assert_allclose(costs, [costs[0], 2 * costs[0], costs[0] / 3])
    settings = FlowSettings()
    pixels = dataset.train.images.size
    assert len(in_words(settings, dataset, pixels, 10.0)) == 1
    more, longer = in_words(settings, dataset, pixels + 1, 10.5)[1:]
    assert f"have pixels ({pixels:,})" in more and "more than 10 times" in longer
