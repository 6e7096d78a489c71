"""Exact image flows: RealNVP and Glow, their layers, freezing and training."""

from genreg_jax.flows.flow import Flow, FrozenFlow, dequantize
from genreg_jax.flows.generator import as_generator
from genreg_jax.flows.glow import glow
from genreg_jax.flows.realnvp import realnvp
from genreg_jax.flows.resized import ResizedFlow, resized
from genreg_jax.flows.training import FlowFit, fit

__all__ = [
    "Flow",
    "FlowFit",
    "FrozenFlow",
    "ResizedFlow",
    "as_generator",
    "dequantize",
    "fit",
    "glow",
    "realnvp",
    "resized",
]
