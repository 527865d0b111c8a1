"""QWeight: a quantized weight in the slot of a linear layer, and what the layer then computes.

    inputs          codes of x                                         product
    dynamic         a scale per row, from the row itself               integers
    static          one scale, from calibration; larger inputs clip    integers
    none            x as it is ("weight-only")                         floats, on the dequantized weight

Integer products follow `pallas_kernels`: exact int32 sums, scales and bias in float32, one rounding to the
dtype of x. Weight-only saves memory and no time: the weight is dequantized, in float32 and rounded to the
dtype of x, in each call.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.packed_matmul import packed_matmul
from pallas_kernels.quantize_rows import quantize_rows
from pallas_kernels.scaled_matmul import scaled_matmul
from viditq_jax.nn.linear import linear
from viditq_jax.quant.qtensor import QTensor
from viditq_jax.quant.spec import Spec
from viditq_jax.quant.stats import LayerStats


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QWeight:
    """A quantized weight and how its input is quantized. Made by `quantized_weight`."""

    weight: QTensor
    weight_sum: Any  # [n, 1] or [n, groups] int32, sums that input zero points need; None without them
    act_scale: Any  # [1, 1] float32 where the input is static
    act_zero: Any  # [1, 1] int8 where the input is static and asymmetric
    act: Spec | None = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, int]:
        """[n, k] of the weight."""
        return self.weight.shape

    def linear(self, x: Float[Array, "... k"], bias: Float[Array, " n"] | None) -> Float[Array, "... n"]:
        """y = quantized x @ quantized weight.T + bias, in the dtype of x."""
        weight = self.weight
        if self.act is None:
            return linear(weight.dequantize().astype(x.dtype), x, bias)
        rows = quantize_rows(
            x.reshape(-1, x.shape[-1]),
            bits=self.act.bits,
            symmetric=self.act.symmetric,
            scale=self.act_scale,
            zero=self.act_zero,
            with_sum=weight.zero is not None and not weight.spec.packed,
        )
        common: dict[str, Any] = dict(
            x_zero=rows.zero, w_zero=weight.zero, w_sum=self.weight_sum, bias=bias, out_dtype=x.dtype
        )
        if weight.spec.packed:
            y = packed_matmul(rows.codes, weight.values, rows.scale, weight.scale, **common)
        else:
            y = scaled_matmul(rows.codes, weight.values, rows.scale, weight.scale, x_sum=rows.sum, **common)
        return y.reshape(*x.shape[:-1], -1)


def quantized_weight(weight: QTensor, act: Spec | None, stats: LayerStats | None = None) -> QWeight:
    """The object for a weight slot.

    act: how inputs are quantized; None leaves them. stats: of the inputs; needed where act is static, and
    only there.
    """
    scale = zero = None
    if act is not None and act.static:
        if stats is None:
            raise ValueError(f"{act} takes its scale from calibration; give the statistics of this layer.")
        extremes = jnp.stack([stats.low.min(), stats.high.max()])[None]
        _, scale, zero, _ = quantize_rows(extremes, bits=act.bits, symmetric=act.symmetric)
    weight_sum = None if act is None or act.symmetric else _code_sums(weight)
    return QWeight(weight, weight_sum, scale, zero, act)


def _code_sums(weight: QTensor) -> jax.Array:
    """Sums of the codes of a row; of packed weights, of code - zero of each group, as packed_matmul wants."""
    codes = weight.codes().astype(jnp.int32)
    if not weight.spec.packed:
        return codes.sum(1, keepdims=True)
    groups = codes.reshape(codes.shape[0], weight.scale.shape[1], -1)
    return (groups if weight.zero is None else groups - weight.zero[..., None]).sum(2)
