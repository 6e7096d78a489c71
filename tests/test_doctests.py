"""Every example in the documentation runs, and every public function and class has one."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import genreg_jax as gr

MODULES = ["genreg_jax"] + sorted(
    module.name
    for module in pkgutil.walk_packages(gr.__path__, "genreg_jax.")
    # Its one class is reached, and its example run, through `Flow.as_distrax`.
    if module.name != "genreg_jax.flows.distrax_bijector"
)
PUBLIC = sorted(
    name
    for name in gr.__all__
    if inspect.isclass(getattr(gr, name)) or inspect.isfunction(getattr(gr, name))
)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name):
    if name == "genreg_jax.models.adapters":
        pytest.importorskip("equinox")
        pytest.importorskip("haiku")
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS, report=True)
    assert failed == 0


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_function_and_class_has_an_example(name):
    doc = inspect.getdoc(getattr(gr, name)) or ""
    assert "Example:" in doc and ">>> " in doc, f"genreg_jax.{name} has no example"


def test_the_public_names_are_there_and_nothing_else_is_promised():
    assert sorted(gr.__all__) == gr.__all__ and len(set(gr.__all__)) == len(gr.__all__)
    assert {"Finder", "from_linen", "hypergradient", "pcr_loss", "train_and_evaluate"} <= set(
        gr.__all__
    )
    assert all(hasattr(gr, name) for name in gr.__all__)
    with pytest.raises(AttributeError, match="'genreg_jax' has no attribute 'nothing'"):
        gr.nothing  # noqa: B018
