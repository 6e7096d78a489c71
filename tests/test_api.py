"""Rules of the public surface: an example that runs, keyword-only settings, the key first."""

import inspect

import pytest

import genreg_jax as gr

MODULES = (gr, gr.augment, gr.data, gr.flows, gr.models)
PUBLIC = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in MODULES
    for name in module.__all__
    if inspect.isfunction(getattr(module, name)) or inspect.isclass(getattr(module, name))
}
FUNCTIONS = {name: f for name, f in PUBLIC.items() if inspect.isfunction(f)}
# Other words for a PRNG key. (`rng` belongs to the contract of a model's apply alone.)
OTHER_KEYS = {"rng", "prng", "prng_key", "rng_key", "random_key", "seed_key", "k"}


def violations(function):
    """What breaks the rules in a signature, in words."""
    parameters = inspect.signature(function).parameters
    found = [f"{name} should be called key" for name in parameters if name in OTHER_KEYS]
    if "key" in parameters and next(iter(parameters)) != "key":
        found.append("key should come first")
    for name, parameter in parameters.items():
        # Optional data (None) may follow the data; everything with a value is a setting.
        positional = parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        if positional and parameter.default not in (parameter.empty, None):
            found.append(f"{name} should be keyword-only")
    return found


@pytest.mark.parametrize("name", FUNCTIONS)
def test_settings_are_keyword_only_and_the_key_comes_first(name):
    assert violations(FUNCTIONS[name]) == []


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_an_example_that_the_tests_execute(name):
    doc = inspect.getdoc(PUBLIC[name]) or ""
    assert "Example" in doc and ">>> " in doc, f"{name} has no example"
    assert PUBLIC[name].__module__.startswith("genreg_jax."), "test_doctests would not run it"


def test_the_rules_are_seen_to_be_broken():
    def good(key, x, y=None, *, weight=1.0): ...
    def late(x, key): ...
    def positional(x, weight=1.0): ...
    def other(rng, x): ...

    assert violations(good) == []
    assert violations(late) == ["key should come first"]
    assert violations(positional) == ["weight should be keyword-only"]
    assert violations(other) == ["rng should be called key"]
