"""Shared settings of the tests: CPU with eight fake devices, strict dtypes and ranks."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling is what these tests spend their time on, so XLA is told to optimise little.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    + " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
