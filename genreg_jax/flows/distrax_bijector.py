"""A flow as a `distrax.Bijector`. The only module that imports distrax; `Flow.as_distrax` does."""

import distrax
import jax.numpy as jnp


class FlowBijector(distrax.Bijector):
    """From latents to images, over the last three axes; any number of leading ones."""

    def __init__(self, flow, params, y=None):
        super().__init__(event_ndims_in=3, event_ndims_out=3)
        self._flow, self._params, self._y = flow, params, y

    def _apply(self, function, value):
        batch = value.shape[:-3]
        y = self._y
        if y is not None:
            y = jnp.broadcast_to(jnp.asarray(y), batch).reshape(-1)
        out, log_det = function(self._params, value.reshape(-1, *value.shape[-3:]), y)
        return out.reshape(value.shape), log_det.reshape(batch)

    def forward_and_log_det(self, x):
        """`f^-1(z)` and `log |det dx / dz|`: distrax calls the input of `forward` x."""
        return self._apply(self._flow.decode, x)

    def inverse_and_log_det(self, y):
        """`f(x)` and `log |det dz / dx|`."""
        return self._apply(self._flow.encode_decoded, y)

    def same_as(self, other) -> bool:
        """Whether both are the same flow with the same parameters."""
        return (
            type(other) is FlowBijector
            and self._flow == other._flow
            and self._params is other._params
            and self._y is other._y
        )
