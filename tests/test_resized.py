"""A flow of one size for images of another, against Pillow, and the difference that it adds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import genreg_jax as gr
from genreg_jax import flows
from genreg_jax.flow_run import trained_flow_generator
from genreg_jax.flows.evaluate import main as evaluate_main
from genreg_jax.perturb import augment
from genreg_jax.restore import restore_flow
from genreg_jax.settings import Settings

SHAPE = (20, 14, 3)
KINDS = ("random", "away", "adversarial", "interpolation")


@pytest.fixture(scope="module")
def small():
    """A flow of 8x8 with weights that are not at their start, and larger images."""
    flow = flows.glow((8, 8, 3), levels=2, steps=1, width=8, num_classes=3)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.random((6, *SHAPE)), jnp.float32)
    y = jnp.asarray([0, 1, 2, 0, 1, 2])
    params = flow.init(jax.random.key(1), x[:, :8, :8], y)
    params = jax.tree.map(lambda p: p + 0.05 * rng.standard_normal(p.shape, np.float32), params)
    return flow.freeze(params), x, y


def pillow(images, size):
    """Each channel resized by Pillow in float32."""
    height, width = size
    out = np.empty((len(images), height, width, images.shape[-1]), np.float32)
    for i, image in enumerate(np.asarray(images)):
        for c in range(image.shape[-1]):
            plane = Image.fromarray(np.ascontiguousarray(image[..., c]), "F")
            out[i, ..., c] = plane.resize((width, height), Image.Resampling.BICUBIC)
    return out


def test_encode_and_decode_are_the_flow_between_pillows_resizings(small):
    frozen, x, y = small
    larger = flows.resized(frozen, SHAPE)
    assert larger.latent_shape == (8, 8, 3) and larger.num_classes == 3
    seen = jnp.asarray(pillow(x, (8, 8)).clip(0, 1))
    np.testing.assert_allclose(larger.encode(x, y), frozen.encode(seen, y), atol=2e-4)
    z = jax.random.normal(jax.random.key(2), (6, 8, 8, 3))
    wanted = pillow(frozen.decode(z, y), SHAPE[:2])
    np.testing.assert_allclose(larger.decode(z, y), wanted, atol=1e-5)


def test_it_is_the_flow_itself_at_its_own_size(small):
    frozen = small[0]
    assert flows.resized(frozen, (8, 8, 3)) is frozen


@pytest.mark.parametrize("shape", [(20, 14), (20, 14, 1), (0, 14, 3), (20, 1.5, 3)])
def test_other_shapes_are_refused(small, shape):
    with pytest.raises(ValueError, match="must be|allowed"):
        flows.resized(small[0], shape)


def perturbed(kind, frozen, x, y, **options):
    perturb = gr.perturbation(kind, norm="none" if kind == "away" else "l2", **options)
    return perturb(jax.random.key(3), frozen, lambda x: x[..., 0].sum((1, 2)), x, y, None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("jit", [False, True])
def test_a_difference_of_radius_zero_is_the_image_bit_for_bit(small, kind, jit):
    frozen, x, y = small
    larger = flows.resized(frozen, SHAPE)
    run = lambda x: perturbed(kind, larger, x, y, epsilon=0.0, difference=True)
    np.testing.assert_array_equal((jax.jit(run) if jit else run)(x), x)


@pytest.mark.parametrize("kind", KINDS)
def test_a_difference_is_what_the_decoded_images_differ_by(small, kind):
    frozen, x, y = small
    larger, x = flows.resized(frozen, SHAPE), 0.3 + 0.4 * x  # nothing comes near 0 or 1
    still = larger.decode(larger.encode(x, y), y)
    options = {"epsilon": 0.3, "step_size": 0.1}
    moved = perturbed(kind, larger, x, y, difference=True, **options)
    if kind != "adversarial":  # which sees other images on its way
        outright = perturbed(kind, larger, x, y, **options)
        inside = (outright > 0) & (outright < 1) & (moved > 0) & (moved < 1)
        assert inside.mean() > 0.9
        wanted = x + outright - still
        np.testing.assert_allclose(moved[inside], wanted[inside], atol=1e-5)
    change = np.asarray(moved - x)
    assert np.abs(change).max() > 1e-3
    # The change has the flow's resolution: made smaller and larger again it is nearly the same.
    again = pillow(pillow(change, (8, 8)), SHAPE[:2])
    assert np.square(again - change).mean() < 0.1 * np.square(change).mean()


def test_an_attack_through_the_difference_raises_the_loss(small):
    frozen, x, y = small
    larger = flows.resized(frozen, SHAPE)
    loss = lambda x: x[..., 0].mean((1, 2))
    moved = gr.adversarial_latent_perturbation(
        jax.random.key(4), larger, loss, x, epsilon=0.5, step_size=0.25, num_steps=2,
        random_start=False, difference=True, y=y,
    )  # fmt: skip
    assert np.all(loss(moved) > loss(x))


def test_relative_radii_are_those_of_the_latents(small):
    frozen, x, y = small
    larger = flows.resized(frozen, SHAPE)
    seen = []

    class Spy:
        image_shape, latent_shape, num_classes = SHAPE, (8, 8, 3), 3
        encode = staticmethod(larger.encode)

        def decode(self, z, y):
            seen.append(z - larger.encode(x, y))
            return larger.decode(z, y)

    gr.random_latent_perturbation(jax.random.key(0), Spy(), x, epsilon=0.5, relative=True, y=y)
    lengths = np.sqrt(np.square(seen[0]).sum((1, 2, 3)))
    np.testing.assert_allclose(lengths, 0.5 * np.sqrt(8 * 8 * 3), rtol=1e-4)


CONFIG = {
    "data": {"name": "synthetic", "per_class": 8},
    "model": {"widths": [4, 8]},
    "flow": {"image_size": 8, "levels": 1, "steps": 1, "width": 4, "updates": 3, "eval_every": 3,
             "batch_size": 8},
    "train": {"epochs": 1, "steps_per_epoch": 2, "batch_size": 8, "progress": False},
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on 16x16 whose samples and perturbations come from a flow of 8x8."""
    workdir = tmp_path_factory.mktemp("run")
    config = {
        **CONFIG,
        "synthetic": {"loss": "pcr", "strong": "flip", "source": "renoised", "batch_size": 8},
        "latent": {"kind": "random", "epsilon": 0.1, "relative": True, "difference": True},
        "meta": {"enabled": True, "outer": "train", "radius": 0.3},
    }
    return workdir, gr.train_and_evaluate(config, workdir)


def test_a_run_of_two_sizes_ends_and_its_flow_is_of_the_smaller(run):
    workdir, summary = run
    assert summary["steps"] == 2 and summary["generator"] is not None
    trained = restore_flow(workdir)
    assert trained.flow.image_shape == (8, 8, 3) and trained.image_shape == (16, 16, 3)
    assert trained.freeze().image_shape == (16, 16, 3)
    sizes = {Image.open(p).size for p in (workdir / "samples").glob("*.png")}
    assert sizes


def test_its_flow_serves_another_run_of_the_same_sizes_and_no_other(run, tmp_path):
    workdir, _ = run
    config = {**CONFIG, "synthetic": {"loss": "cross_entropy", "batch_size": 8}}
    config["flow"] = {**CONFIG["flow"], "workdir": str(workdir)}
    assert gr.train_and_evaluate(config, tmp_path / "a")["steps"] == 2
    config["flow"]["image_size"] = 0
    with pytest.raises(gr.UserError, match="image_size: 8 -> 0"):
        gr.train_and_evaluate(config, tmp_path / "b")


def test_the_flow_of_a_version_without_the_setting_is_taken_as_it_was(run, tmp_path):
    """A record without `image_size` is one of 0."""
    from genreg_jax.flow_run import _same

    found = {"settings": {"levels": 1}, "subset_hash": "a"}
    settings = Settings().flow
    wanted = {"settings": {**dataclasses.asdict(settings), "levels": 1}, "subset_hash": "a"}
    _same(found, wanted, tmp_path)
    wanted["settings"]["image_size"] = 8
    with pytest.raises(gr.UserError, match="image_size: 0 -> 8"):
        _same(found, wanted, tmp_path)


def test_commands_take_images_of_the_runs_size(run, tmp_path, capsys):
    workdir, _ = run
    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, (4, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "in.npz", images=images, labels=[0, 1, 2, 3])
    options = {"kind": "adversarial", "difference": True}
    augment(workdir, tmp_path / "in.npz", tmp_path / "none", epsilon=0.0, **options)
    np.testing.assert_array_equal(np.load(tmp_path / "none" / "images.npz")["images"], images)
    augment(workdir, tmp_path / "in.npz", tmp_path / "some", epsilon=0.5, **options)
    moved = np.load(tmp_path / "some" / "images.npz")["images"]
    assert moved.shape == images.shape and np.any(moved != images)
    assert evaluate_main(["--workdir", str(workdir)]) == 0
    assert "bits/dim" in capsys.readouterr().out


def test_a_flow_alone_can_be_smaller_than_the_data_and_serve_a_classifier(tmp_path):
    config = {**CONFIG, "model": {"name": "none"}}
    assert gr.train_and_evaluate(config, tmp_path / "flow")["test_bits_per_dim"] > 0
    settings = gr.config.from_config(
        {**CONFIG, "flow": {**CONFIG["flow"], "workdir": str(tmp_path / "flow")}}
    )
    dataset = gr.data.from_settings(settings.data, settings.seed)
    generator, _ = trained_flow_generator(
        settings, dataset, tmp_path / "x", augment=lambda key, x: x, note=lambda text: None
    )
    y = jnp.zeros(2, jnp.int32)
    images = generator.apply(generator.params, jnp.zeros((2, *generator.latent_shape)), y)
    assert generator.latent_shape == (8, 8, 3) and images.shape == (2, 16, 16, 3)
