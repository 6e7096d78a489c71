"""Shared settings: CPU with eight fake devices, strict ranks and, where it can be, dtypes."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["GENREG_CACHE"] = ""  # of pictures and programs, but where a test is about it
# Compiling is what these tests spend their time on, so XLA is told to optimise little; without
# optimisation its older emitters take half as long as those of fusions.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    + " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    + " --xla_cpu_use_fusion_emitters=false"
    + " --xla_cpu_parallel_codegen_split_count=1"  # the other core has tests of its own
)

import gc

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
gc.set_threshold(50_000)  # JAX's objects are many and live long: looking through them costs 5 %

# Where float32 must not meet int32 unasked. Not everywhere: optax's own moments and schedules raise
# a float to an int32 power, Flax mixes bfloat16 with float32; such tests are marked `promotes`.
STRICT = """
    test_augment test_chunks test_embeddings test_export test_flows_layers test_hypergradient
    test_latent test_memorisation test_mixing test_models test_objective test_phantom test_samples
    test_synthetic
""".split()


# What takes longest is begun first, so that no worker is left alone with it in the end.
LONGEST = "two_processes eight_devices end_to_end generated_invocations".split()


def pytest_collection_modifyitems(items):
    """Sorts the longest tests to the front."""
    items.sort(key=lambda item: not any(name in item.name for name in LONGEST))


@pytest.fixture(autouse=True)
def strict_dtypes(request):
    """No implicit promotion of dtypes in the modules of `STRICT`."""
    strict = request.module.__name__ in STRICT and not request.node.get_closest_marker("promotes")
    with jax.numpy_dtype_promotion("strict" if strict else "standard"):
        yield


@pytest.fixture
def float64():
    """Computes in float64."""
    if hasattr(jax, "enable_x64"):
        context = jax.enable_x64(True)
    else:  # jax before 0.8
        from jax.experimental import enable_x64

        context = enable_x64()
    with context:
        yield
