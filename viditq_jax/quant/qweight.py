"""QWeight: a quantized weight in the slot of a linear layer, and what the layer then computes.

    prepare         what is done to x first, in float32: divided by a balance, rotated
    inputs          codes of the prepared x                            product
      dynamic       a scale per row, from the row itself               integers (or fp8)
      static        one scale, from calibration; larger inputs clip    integers (or fp8)
      none          x as it is ("weight-only")                         floats, on the dequantized weight
    branch          a low-rank part of the weight, on the prepared x   bfloat16, float32 sums

Integer products follow `pallas_kernels`: exact int32 sums; scales, branch, bias, GELU, gate and residual in
float32; one rounding to the dtype of x. Without a branch the layer is two ops: one pass over x that
normalizes, modulates, prepares and quantizes it, and the product with all that comes after it.
Weight-only saves memory and no time: the weight is dequantized, in float32 and rounded to the dtype of x, in
each call.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from pallas_kernels.packed_matmul import packed_matmul
from pallas_kernels.scaled_matmul import scaled_matmul
from viditq_jax.nn.linear import NOTHING, After, Modulated, linear
from viditq_jax.quant.columns import ColumnShard
from viditq_jax.quant.inputs import prepared, quantize_input, static_scale
from viditq_jax.quant.low_rank import LowRank
from viditq_jax.quant.qtensor import QTensor
from viditq_jax.quant.ranges import NO_RANGE, ByRange, Chosen, PerRange
from viditq_jax.quant.spec import Spec
from viditq_jax.quant.stats import LayerStats


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QWeight:
    """A quantized weight and how its input is quantized. Made by `quantized_weight`."""

    weight: QTensor  # of the prepared weight
    weight_sum: Any  # [n, 1] or [n, groups] int32, sums that input zero points need; None without them
    prepare: tuple[Any, ...]  # in the order in which they meet the input
    branch: LowRank | None
    act_scale: Any  # [1, 1] float32 where the input is static, or one for each range
    act_zero: Any  # [1, 1] int8 where the input is static and asymmetric, or one for each range
    act: Spec | None = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, int]:
        """[n, k] of the weight."""
        return self.weight.shape

    def linear(
        self, x: Float[Array, "... k"] | Modulated, bias: Float[Array, " n"] | None, after: After = NOTHING
    ) -> Float[Array, "... n"]:
        """after(quantized x @ quantized weight.T + branch + bias), in the dtype of x."""
        if isinstance(self.act_scale, PerRange):
            raise ValueError(NO_RANGE)
        dtype = x.dtype
        if self.act is not None and self.branch is None:
            return self._product(x, self.prepare, bias, after, dtype)
        ready = self.inputs(x)
        if self.act is None:
            y = linear(self.weight.dequantize().astype(dtype), ready.astype(dtype), bias)
        else:
            y = self._product(ready, (), bias, NOTHING, jnp.float32)
        if self.branch is not None:
            part = self.branch.product(ready.reshape(-1, ready.shape[-1]).astype(jnp.float32))
            y = y.astype(jnp.float32) + part.reshape(y.shape)
        return after(y).astype(dtype)

    def _product(
        self,
        x: Float[Array, "... k"] | Modulated,
        prepare: tuple[Any, ...],
        bias: Float[Array, " n"] | None,
        after: After,
        dtype: Any,
    ) -> Float[Array, "... n"]:
        """What is left to do to x, codes of it, the integer product, and what comes after, in two ops."""
        weight, n = self.weight, self.shape[0]
        assert self.act is not None
        rows = quantize_input(
            x,
            self.act,
            self.act_scale,
            self.act_zero,
            prepare=prepare,
            with_sum=weight.zero is not None and not weight.spec.packed and weight.spec.group is None,
        )
        operands: dict[str, Any] = dict(
            x_zero=rows.zero,
            w_zero=weight.zero,
            w_sum=self.weight_sum,
            bias=bias,
            activation="gelu" if after.gelu else None,
            residual=None if after.residual is None else after.residual.reshape(-1, n),
            gate=None if after.gate is None else after.gate.reshape(-1, n),
            out_dtype=dtype,
        )
        if weight.spec.packed:
            y = packed_matmul(rows.codes, weight.values, rows.scale, weight.scale, **operands)
        else:
            y = scaled_matmul(rows.codes, weight.values, rows.scale, weight.scale, x_sum=rows.sum, **operands)
        return y.reshape(*x.shape[:-1], n)

    def inputs(self, x: Float[Array, "... k"] | Modulated) -> Float[Array, "... k"]:
        """x prepared: what is quantized. A balance of a modulated input goes into its modulation."""
        return prepared(x, self.prepare)


def quantized_weight(
    weight: QTensor,
    act: Spec | None,
    stats: LayerStats | None = None,
    *,
    prepare: tuple[Any, ...] = (),
    branch: LowRank | None = None,
) -> QWeight:
    """The object for a weight slot.

    weight: of the prepared weight. act: how inputs are quantized; None leaves them. stats: of the prepared
    inputs; needed where act is static, and only there.
    """
    scale: Any = None
    zero: Any = None
    if act is not None and act.static:
        if stats is None or stats.low is None:
            raise ValueError(
                f"{act} takes its scale from calibration; give the statistics of this layer, whose channels"
                f" no rotation has mixed."
            )
        low, high = stats.low.min(1), stats.high.max(1)
        if act.per_range and len(low) > 1:  # of one range: so is the whole object
            each = [static_scale(act, low[r], high[r]) for r in range(len(low))]
            scale = PerRange.of([scale for scale, _ in each])
            zero = None if act.symmetric else PerRange.of([zero for _, zero in each])
        else:
            scale, zero = static_scale(act, low.min(), high.max())
    weight_sum = None if act is None or act.symmetric else code_sums(weight)
    return QWeight(weight, weight_sum, prepare, branch, scale, zero, act)


def quantized_part(weight: Any) -> QWeight | None:
    """The QWeight of a slot, the first where there are several; None for a float weight."""
    while isinstance(weight, (PerRange, ByRange, Chosen, ColumnShard)):
        if isinstance(weight, (ByRange, Chosen)):
            weight = weight.values[0]
        else:
            weight = weight.stacked if isinstance(weight, PerRange) else weight.part
    return weight if isinstance(weight, QWeight) else None


def code_sums(weight: QTensor) -> Int32[Array, "n groups"]:
    """Sums of the codes of each group of a row; of packed weights of code - zero, as packed_matmul wants."""
    groups = weight.codes().astype(jnp.int32).reshape(weight.shape[0], weight.scale.shape[1], -1)
    shifted = weight.spec.packed and weight.zero is not None
    return (groups - weight.zero[..., None] if shifted else groups).sum(2)
