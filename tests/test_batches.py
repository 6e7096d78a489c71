"""Which images each update sees, checked image by image."""

import numpy as np
import pytest

from genreg_jax.batches import BatchPlan
from genreg_jax.config import from_config
from genreg_jax.errors import UserError

LABELS = np.array([0] * 13 + [1] * 9 + [2] * 11)  # 33 images, in no even number of batches


def make(outer=None, labels=LABELS, seed=0, train=(), **meta):
    config = {"seed": seed, "train": {"batch_size": 4, **dict(train)}}
    if outer is not None:
        config["synthetic"] = {"loss": "pcr"}
        config["meta"] = {"enabled": True, "outer": outer, **meta}
    return BatchPlan(from_config(config), labels)


def counts(indices):
    return np.bincount(np.ravel(indices), minlength=len(LABELS))


def test_an_epoch_is_one_pass_without_repetition():
    plan = make()
    inner, outer = plan.epoch(0)
    assert inner.shape == (8, 4) and inner.dtype == np.int32 and outer is None
    assert plan.steps_per_epoch == 8 and plan.train_examples == 33
    assert counts(inner).max() == 1 and counts(inner).sum() == 32


@pytest.mark.parametrize("steps", [1, 5, 20, 33])
def test_a_longer_epoch_covers_each_image_equally(steps):
    plan = make(train={"steps_per_epoch": steps})
    for epoch in range(3):
        seen = counts(plan.epoch(epoch).inner)
        assert seen.sum() == 4 * steps
        assert seen.max() - seen.min() <= 1


def test_passes_and_epochs_have_different_orders():
    plan = make(train={"steps_per_epoch": 33})
    first = plan.epoch(0).inner.ravel().reshape(4, 33)
    assert all(sorted(row) == list(range(33)) for row in first.tolist())
    assert len({tuple(row) for row in first.tolist()}) == 4
    assert not np.array_equal(plan.epoch(0).inner, plan.epoch(1).inner)


@pytest.mark.parametrize("outer", [None, "train", "holdout", "folds"])
def test_batches_are_a_function_of_seed_and_epoch_alone(outer):
    kwargs = {"folds": 3} if outer == "folds" else {}
    a, b = make(outer, **kwargs), make(outer, **kwargs)
    for epoch in (4, 0, 2):  # in another order, as after a restart
        b_epoch = b.epoch(epoch)
        a.epoch(1)
        for x, y in zip(a.epoch(epoch), b_epoch):
            np.testing.assert_array_equal(x, y)
    other = make(outer, seed=1, **kwargs)
    assert not np.array_equal(a.epoch(0).inner, other.epoch(0).inner)


@pytest.mark.parametrize(("batch", "outer"), [(6, None), (7, "train"), (2, None), (8, "folds")])
def test_balanced_batches_hold_each_class_equally_and_walk_through_each(batch, outer):
    train = {"batch_size": batch, "steps_per_epoch": 20, "balanced": True}
    plan = make(outer, train=train, folds=3) if outer == "folds" else make(outer, train=train)
    for epoch in range(2):
        inner, second = plan.epoch(epoch)
        for rows in (inner, [] if second is None else second):
            for row in rows:
                in_batch = np.bincount(LABELS[row], minlength=3)
                assert in_batch.max() - in_batch.min() <= 1
        seen, outside = counts(inner), set() if outer != "folds" else set(second.ravel().tolist())
        for c in range(3):
            members = [i for i in np.flatnonzero(LABELS == c) if i not in outside]
            assert seen[members].max() - seen[members].min() <= 1
        assert not any(seen[i] for i in outside)
    assert not np.array_equal(plan.epoch(0).inner, plan.epoch(1).inner)


def test_meta_over_the_training_images_leaves_the_real_batches_as_they_were():
    base, meta = make(), make("train")
    for epoch in range(3):
        np.testing.assert_array_equal(base.epoch(epoch).inner, meta.epoch(epoch).inner)
    assert base.train_examples == meta.train_examples == 33


@pytest.mark.parametrize(
    ("images", "batch", "steps"),
    [(100, 10, 0), (100, 10, 5), (100, 10, 1), (64, 16, 1), (64, 16, 2), (40, 4, 3)],
)
def test_outer_batches_of_the_training_images_share_none_with_their_inner_batch(
    images, batch, steps
):
    # Half a pass apart, so within one pass the two never meet, however short the epoch is.
    train = {"batch_size": batch, "steps_per_epoch": steps}
    plan = make("train", labels=np.arange(images) % 4, train=train)
    half = images // 2 // batch  # later steps reach into another permutation
    for epoch in range(3):
        inner, outer = plan.epoch(epoch)
        assert outer.shape == inner.shape
        for i in range(min(half, len(inner))):
            assert not set(inner[i]) & set(outer[i])


def test_an_outer_batch_of_another_size_is_drawn_from_the_training_images():
    inner, outer = make("train", outer_batch_size=6).epoch(0)
    assert inner.shape == (8, 4) and outer.shape == (8, 6)
    seen = counts(outer)
    assert seen.max() - seen.min() <= 1


def test_held_out_images_are_never_trained_on_and_are_all_that_the_outer_loss_sees():
    plan = make("holdout", outer_fraction=0.2, train={"steps_per_epoch": 30})
    held = set(plan.epoch(0).outer.ravel().tolist())
    # A fifth of 13, 9 and 11, rounded.
    assert np.bincount(LABELS[sorted(held)]).tolist() == [3, 2, 2]
    assert plan.train_examples == 33 - 7
    for epoch in range(4):
        inner, outer = plan.epoch(epoch)
        assert not held & set(inner.ravel().tolist())
        assert set(outer.ravel().tolist()) == held
        seen = counts(inner)[sorted(set(range(33)) - held)]
        assert seen.max() - seen.min() <= 1 and seen.min() > 0


def test_a_holdout_takes_at_least_one_image_of_every_class_and_leaves_one():
    tiny = make("holdout", labels=np.array([0, 0, 1, 1, 1]), outer_fraction=0.01,
                train={"batch_size": 2})  # fmt: skip
    assert tiny.train_examples == 3
    greedy = make("holdout", labels=np.array([0, 0, 1, 1, 1]), outer_fraction=0.99,
                  train={"batch_size": 2})  # fmt: skip
    assert greedy.train_examples == 2


def test_each_fold_is_left_out_in_its_epoch_and_takes_its_turn():
    plan = make("folds", folds=3, train={"steps_per_epoch": 30})
    assert plan.train_examples == 33
    outside = []
    for epoch in range(6):
        inner, outer = plan.epoch(epoch)
        inner, outer = set(inner.ravel().tolist()), set(outer.ravel().tolist())
        assert not inner & outer and inner | outer == set(range(33))
        outside.append(outer)
        per_class = np.bincount(LABELS[sorted(outer)], minlength=3)
        assert np.all(np.abs(per_class - np.array([13, 9, 11]) / 3) < 1)
    assert outside[:3] == outside[3:]
    assert set.union(*outside[:3]) == set(range(33))
    assert sum(map(len, outside[:3])) == 33


def test_an_outer_batch_is_never_larger_than_the_images_it_is_drawn_from():
    assert make("holdout", outer_fraction=0.1).epoch(0).outer.shape == (7, 3)
    inner, outer = make("folds", folds=5, outer_batch_size=100).epoch(0)
    assert len(outer) == len(inner) and outer.shape[1] == len(set(outer[0].tolist()))
    # Folds of 8, 7, 7, 6 and 5 images, and one shape for the compiled step.
    plan = make("folds", folds=5, outer_batch_size=100)
    assert {plan.epoch(epoch).outer.shape[1] for epoch in range(5)} == {5}


def test_nothing_is_held_out_while_meta_is_off():
    settings = from_config({"train": {"batch_size": 4}, "meta": {"outer": "holdout"}})
    plan = BatchPlan(settings, LABELS)
    assert plan.train_examples == 33
    np.testing.assert_array_equal(plan.epoch(0).inner, make().epoch(0).inner)


def test_a_batch_larger_than_the_images_is_refused():
    with pytest.raises(
        UserError, match=r"config\.train\.batch_size = 34 .* 33 training .* most 33"
    ):
        make(train={"batch_size": 34})
    assert make(train={"batch_size": 33}).steps_per_epoch == 1
    with pytest.raises(UserError, match=r"config\.train\.batch_size = 33 is larger than the 30"):
        make("holdout", train={"batch_size": 33})


@pytest.mark.parametrize(("outer", "needed"), [("folds", 5), ("holdout", 2)])
def test_a_class_too_small_to_be_split_is_named(outer, needed):
    labels = np.array([0] * 10 + [1] * (needed - 1) + [2] * 10)
    with pytest.raises(UserError) as error:
        make(outer, labels=labels)
    message = str(error.value)
    assert f"Class 1 has {needed - 1} training images" in message
    assert f"'{outer}' needs at least {needed}" in message and "config.meta.outer" in message
