"""The settings: everything wrong is refused by name, and everything right survives a round trip."""

import dataclasses
import json
import typing

import jax
import ml_collections
import numpy as np
import pytest

from genreg_jax.build import classifier
from genreg_jax.config import (
    config_hash,
    default_config,
    differences,
    from_config,
    identity,
    to_dict,
)
from genreg_jax.errors import ConfigError, UserError
from genreg_jax.settings import Settings


def leaves(cls=Settings, path=()):
    """Every setting as `(path, annotation, default)`."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint, where = hints[field.name], (*path, field.name)
        if dataclasses.is_dataclass(hint):
            yield from leaves(hint, where)
        else:
            yield where, hint, field.default


LEAVES = list(leaves())
NAMES = [".".join(path) for path, _, _ in LEAVES]
UNCONSTRAINED = {  # what a run does not depend on, and may therefore change between its parts
    "data.dir",
    "data.download",
    "data.stream",
    "flow.workdir",  # a flow counts by its own hash
    "train.progress",
    "train.devices",
    "train.nonfinite",
    "train.environment",
}


def nested(path, value):
    for name in reversed(path):
        value = {name: value}
    return value


def wrong_values(hint):
    """Values of another type than the annotation's, close ones first."""
    if typing.get_origin(hint) is typing.Literal:
        return ["nothing like it", 3, None]
    if typing.get_origin(hint) is tuple:
        return [3, "ab", None]
    return {
        int: [1.5, "1", True, None],
        float: ["1.0", True, None, [1.0]],
        str: [1, None, ["a"]],
        bool: [1, "True", None],
    }[hint]


def changed(hint, default):
    """A value of the right type and in range that is not the default."""
    if typing.get_origin(hint) is typing.Literal:
        return typing.get_args(hint)[-1 if default != typing.get_args(hint)[-1] else 0]
    if typing.get_origin(hint) is tuple:
        return (*default, 5)
    return {int: lambda v: v + 2, float: lambda v: v * 0.5 + 0.3, str: lambda v: v + "x"}.get(
        hint, lambda v: not v
    )(default)


@pytest.mark.parametrize(("path", "hint", "default"), LEAVES, ids=NAMES)
def test_a_value_of_another_type_is_refused_with_its_name_and_value(path, hint, default):
    for value in wrong_values(hint):
        with pytest.raises(UserError) as error:
            from_config(nested(path, value))
        assert f"config.{'.'.join(path)} must be" in str(error.value)
        assert repr(value) in str(error.value)


def test_the_elements_of_a_list_are_checked_too():
    with pytest.raises(UserError, match=r"config\.model\.widths must be of type int, got 'a'"):
        from_config({"model": {"widths": [8, "a"]}})
    assert from_config({"model": {"widths": [8, 4]}}).model.widths == (8, 4)


OUT_OF_RANGE = [
    ("seed", -1), ("seed", 2**31),
    ("data.per_class", -1), ("data.fraction", 0.0), ("data.fraction", 1.5),
    ("data.validation_fraction", -0.1), ("data.validation_fraction", 1.0),
    ("model.widths", ()), ("model.widths", (8, 0)), ("model.depth", 0), ("model.width", 0),
    ("optimizer.learning_rate", -0.1), ("optimizer.learning_rate", float("nan")),
    ("optimizer.momentum", 1.0), ("optimizer.momentum", -0.5), ("optimizer.weight_decay", -1e-4),
    ("optimizer.warmup_epochs", -1.0), ("optimizer.step_factor", 0.0),
    ("optimizer.grad_clip", -1.0),
    ("augment.mix_alpha", -1.0), ("augment.label_smoothing", 1.0),
    ("augment.label_smoothing", -0.1),
    ("synthetic.weight", -1.0), ("synthetic.weight", float("nan")),
    ("synthetic.temperature", 0.0), ("synthetic.batch_size", -1),
    ("meta.outer_fraction", 0.0), ("meta.outer_fraction", 1.0), ("meta.folds", 1),
    ("meta.outer_batch_size", -1), ("meta.learning_rate", -1e-3), ("meta.hidden", (8, 0)),
    ("phantom.weight", -1.0), ("phantom.subset_size", -1), ("phantom.warmup", 1.5),
    ("phantom.ratio", -0.1), ("phantom.temperature", 0.0),
    ("flow.levels", 0), ("flow.steps", 0), ("flow.width", 0), ("flow.updates", 0),
    ("flow.batch_size", 0), ("flow.learning_rate", 0.0), ("flow.grad_clip", 0.0),
    ("flow.ema_decay", 1.0), ("flow.dropout", 1.0), ("flow.dropout", -0.1),
    ("flow.weight_decay", -1.0), ("flow.warmup", -1), ("flow.eval_every", 0),
    ("train.epochs", 0), ("train.steps_per_epoch", -1), ("train.batch_size", 0),
    ("train.eval_batch_size", 0), ("train.patience", -1), ("train.checkpoint_every", 0),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value"), OUT_OF_RANGE)
def test_a_value_out_of_range_is_refused_with_its_name_and_value(path, value):
    with pytest.raises(UserError) as error:
        from_config(nested(path.split("."), value))
    assert f"config.{path} must be " in str(error.value)
    assert f"got {value!r}." in str(error.value)


@pytest.mark.parametrize(
    "path",
    [".".join(path) for path, hint, _ in LEAVES if hint is float],
)
def test_infinity_is_refused_since_json_could_not_keep_it(path):
    with pytest.raises(UserError, match=rf"config\.{path} must be .*got inf"):
        from_config(nested(path.split("."), float("inf")))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"trian": {}}, ["config has no setting 'trian'", "Did you mean 'train'?"]),
        ({"train": {"epoch": 3}}, ["config.train", "'epoch'", "Did you mean 'epochs'?"]),
        ({"flow": {"zzz": 3}}, ["config.flow has no setting 'zzz'", "updates"]),
        ({"train": 3}, ["config.train must be a group of settings, got 3"]),
        (None, ["config must be a group of settings, got None"]),
        (
            {"data": {"per_class": 5, "fraction": 0.5}},
            ["config.data.per_class = 5", "config.data.fraction = 0.5", "leave one"],
        ),
        (
            {"meta": {"enabled": True}},
            ["config.meta.enabled", "config.synthetic.loss", "'pcr'"],
        ),
        (
            {"model": {"name": "none"}, "phantom": {"loss": "attraction"}},
            ["config.model.name = 'none'", "config.phantom.loss = 'attraction'", "to 'none'"],
        ),
        (
            {"model": {"name": "none"}, "latent": {"kind": "pgd"}},
            ["config.model.name = 'none'", "config.latent.kind = 'pgd'", "to 'none'"],
        ),
        (
            {"model": {"name": "none"}, "synthetic": {"loss": "pcr"}},
            ["config.model.name = 'none'", "config.synthetic.loss = 'pcr'", "to 'none'"],
        ),
        (
            {"model": {"name": "wide_resnet", "width": 2}},
            ["config.model.width", "got 2", "config.model.widening"],
        ),
        ({"model": {"name": "vgg"}}, ["config.model.name must be one of none, convnet", "'vgg'"]),
        ({"optimizer": {"momentum": 1.0}}, ["must be at least 0 and below 1, got 1.0"]),
        ({"flow": {"grad_clip": 0}}, ["config.flow.grad_clip must be above 0, got 0.0"]),
    ],
)
def test_unknown_keys_and_contradictions_say_what_to_do(config, words):
    with pytest.raises(UserError) as error:
        from_config(config)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


def test_an_integer_is_a_float_and_a_list_is_a_tuple():
    settings = from_config({"optimizer": {"learning_rate": 1}, "meta": {"hidden": [4]}})
    assert settings.optimizer.learning_rate == 1.0
    assert type(settings.optimizer.learning_rate) is float
    assert settings.meta.hidden == (4,)


def test_the_default_config_is_the_defaults_and_locked():
    config = default_config()
    assert isinstance(config, ml_collections.ConfigDict)
    assert from_config(config) == from_config({}) == Settings()
    with pytest.raises(AttributeError, match="epochs"):
        config.train.epoch = 3


def all_changed():
    config = default_config()
    for path, hint, default in LEAVES:
        group = config
        for name in path[:-1]:
            group = group[name]
        group[path[-1]] = changed(hint, default)
    config.data.per_class, config.data.fraction = 7, 1.0
    config.meta.radius = 0.3
    config.flow.image_size = 2**config.flow.levels
    config.model.name = "resnet18_imagenet"  # of a table, not any string
    config.model.init_from = ""  # or pretrained
    config.tune.learn = "optimizer.weight_decay"  # of a table, too
    return config


def test_every_setting_survives_the_round_trip_through_json():
    settings = from_config(all_changed())
    for path, _, default in LEAVES:
        value = settings
        for name in path:
            value = getattr(value, name)
        assert value != default or path in (("data", "fraction"), ("model", "init_from"))
    again = from_config(json.loads(json.dumps(to_dict(settings))))
    assert again == settings == from_config(settings)
    assert config_hash(again) == config_hash(settings)


@pytest.mark.parametrize(("path", "hint", "default"), LEAVES, ids=NAMES)
def test_the_hash_knows_every_setting_that_decides_the_outcome_and_no_other(path, hint, default):
    groups = [Settings()]
    for name in path[:-1]:
        groups.append(getattr(groups[-1], name))
    value = changed(hint, default)
    for group, name in zip(reversed(groups), reversed(path)):
        value = dataclasses.replace(group, **{name: value})
    same = ".".join(path) in UNCONSTRAINED
    assert (config_hash(value) == config_hash(Settings())) == same
    lines = differences(identity(Settings()), identity(value))
    if same:
        assert lines == []
    else:
        assert len(lines) == 1 and lines[0].startswith(f"config.{'.'.join(path)}: ")


def test_a_setting_that_came_later_leaves_published_hashes_alone():
    assert config_hash(Settings()) == "12c8caec116c"  # as before config.model.widening
    assert "widening" not in identity(Settings())["model"]
    wider = from_config({"model": {"widening": 2}})
    assert identity(wider)["model"]["widening"] == 2
    assert config_hash(wider) != config_hash(Settings())


def test_a_classifier_to_start_from_counts_by_its_hash_and_by_being_there():
    plain, here, there = (from_config({"model": {"init_from": name}}) for name in ("", "a", "b/c"))
    assert identity(here) == identity(there) != identity(plain)
    hashes = [config_hash(here, init_hash=h) for h in ("", "123", "124")]
    assert len({*hashes, config_hash(plain)}) == 4


def test_a_flow_of_another_run_counts_by_its_own_hash():
    here, there = (from_config({"flow": {"workdir": name}}) for name in ("a", "b/c"))
    assert config_hash(here) == config_hash(there) == config_hash(Settings())
    first, second = (config_hash(here, flow_hash=h) for h in ("0123456789ab", "ba9876543210"))
    assert len({first, second, config_hash(here)}) == 3
    assert config_hash(there, flow_hash="0123456789ab") == first


def test_whether_a_flow_is_another_runs_is_known_without_its_hash():
    used = {"latent": {"kind": "random"}}
    own, other = (from_config({**used, "flow": {"workdir": name}}) for name in ("", "a"))
    assert differences(identity(own), identity(other)) == [
        "config.flow.workdir: '' -> 'another run'"
    ]
    assert identity(from_config({"flow": {"workdir": "a"}})) == identity(Settings()), "none is used"


def test_a_wide_resnet_alone_is_the_usual_one():
    settings = from_config({"model": {"name": "wide_resnet"}})
    model = classifier(settings, 10, [0.0] * 3, [1.0] * 3)
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    params, _ = jax.eval_shape(model.init, jax.random.key(0), x)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 36_479_194  # WRN-28-10


def test_the_error_knows_its_setting():
    for values, key in (
        ({"train": {"epochs": 0}}, "config.train.epochs"),
        ({"train": {"epochs": "1"}}, "config.train.epochs"),
        ({"train": {"epoch": 1}}, "config.train.epoch"),
        ({"model": {"name": "vgg"}}, "config.model.name"),
    ):
        with pytest.raises(ConfigError) as error:
            from_config(values)
        assert error.value.key == key


def test_the_hash_is_the_same_in_every_process():
    # Twelve digits of SHA-256 over sorted JSON, so independent of Python's own hash seed.
    assert len(config_hash(Settings())) == 12
    assert int(config_hash(Settings()), 16) >= 0
    shuffled = dict(reversed(to_dict(Settings()).items()))
    assert config_hash(from_config(shuffled)) == config_hash(Settings())


def test_differences_name_both_values_and_absent_keys():
    old = {"a": {"b": 1, "c": 2}, "d": [1, 2]}
    new = {"a": {"b": 1, "c": 3}, "e": 4}
    assert differences(old, new) == [
        "config.a.c: 2 -> 3",
        "config.d: [1, 2] -> 'absent'",
        "config.e: 'absent' -> 4",
    ]
    assert differences(old, old) == []


def test_what_one_side_lacks_has_its_default():
    defaults = {"data": {"test_fraction": 0.2, "dir": ""}, "seed": 0}
    old, new = {"data": {}, "seed": 1}, {"data": {"test_fraction": 0.001, "seed": 3}}
    assert differences(old, new, defaults=defaults) == [
        "config.data.seed: 'absent' -> 3",
        "config.data.test_fraction: 0.2 -> 0.001",
        "config.seed: 1 -> 0",
    ]


def test_numbers_of_numpy_are_numbers():
    config = {
        "seed": np.int64(3),
        "optimizer": {"learning_rate": np.float32(0.5)},
        "model": {"widths": np.array([4, 8])},
        "phantom": {"stop_gradient": np.bool_(True)},
    }
    s = from_config(config)
    assert (s.seed, s.optimizer.learning_rate, s.model.widths) == (3, 0.5, (4, 8))
    assert s.phantom.stop_gradient is True and type(s.seed) is int


@pytest.mark.parametrize(
    ("key", "value", "limit"),
    [("flow.levels", 9, 8), ("latent.num_steps", 2000, 200), ("train.batch_size", 2**21, 2**20)],
)
def test_what_only_a_slip_can_have_meant_is_refused_with_its_limit(key, value, limit):
    group, name = key.split(".")
    with pytest.raises(ConfigError, match=rf"config.{key} must be at most {limit}, got {value}"):
        from_config({group: {name: value}})


@pytest.mark.parametrize(("size", "levels"), [(33, 2), (34, 2), (7, 1)])
def test_a_flow_of_a_size_that_it_cannot_halve_is_refused_with_the_rule(size, levels):
    flow = {"image_size": size, "levels": levels}
    rule = rf"config\.flow\.image_size must be a multiple of {2**levels}.* got {size}"
    with pytest.raises(ConfigError, match=rule):
        from_config({"flow": flow, "latent": {"kind": "random"}})
    from_config({"flow": flow})  # no flow in use
