"""Two-dimensional convolution, channels last."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from viditq_jax.net import draw
from viditq_jax.nn.linear import precision


class Conv(nnx.Module):
    """Convolution of [b, h, w, c] images; `kernel` is [kh, kw, in/groups, out].

    padding: zero rows and columns as ((top, bottom), (left, right)); explicit, because "SAME" pads
        differently.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int,
        *,
        stride: int = 1,
        padding: tuple[tuple[int, int], tuple[int, int]] | int = 0,
        groups: int = 1,
        rngs: nnx.Rngs,
    ):
        self.stride, self.groups = stride, groups
        self.padding = ((padding, padding), (padding, padding)) if isinstance(padding, int) else padding
        init = nnx.initializers.variance_scaling(1.0, "fan_in", "normal")
        self.kernel = nnx.Param(draw(init, (size, size, in_channels // groups, out_channels), rngs))
        self.bias = nnx.Param(jnp.zeros(out_channels, jnp.float32))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j o"]:
        y = jax.lax.conv_general_dilated(
            x,
            self.kernel.get_value(),
            (self.stride, self.stride),
            self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.groups,
            precision=precision(x.dtype),
        )
        return y + self.bias.get_value().astype(y.dtype)
