"""QTensor: a matrix of codes and the scales that turn it back into numbers. Both maps are here.

    value = (code - zero) * scale

The shape of `scale` says who shares one: [1, 1] the whole matrix, [n, 1] a row, [n, k/g] a group of a row.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float8e4m3fn, Int8

from pallas_kernels.packing import pack, unpack
from pallas_kernels.quantize_rows import quantize_rows
from viditq_jax.quant.spec import Spec


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QTensor:
    """A quantized matrix [n, k]. Made by `quantize_tensor` or by a rounding method."""

    values: Any  # [n, k] int8 or float8_e4m3fn; [n, k/2] uint8 where packed: see pallas_kernels.packing
    scale: Any  # [1, 1], [n, 1] or [n, k/g], float32
    zero: Any  # the shape of scale, int8; None where spec.symmetric
    spec: Spec = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, int]:
        """[n, k], of the numbers that are meant, not of their storage."""
        n, columns = self.values.shape
        return n, columns * (2 if self.spec.packed else 1)

    def codes(self) -> Int8[Array, "n k"] | Float8e4m3fn[Array, "n k"]:
        """The codes, one a byte."""
        return unpack(self.values) if self.spec.packed else self.values

    def dequantize(self) -> Float[Array, "n k"]:
        """The numbers, in float32."""
        # the last axis: those who share a scale
        codes = self.codes().astype(jnp.float32).reshape(*self.scale.shape, -1)
        zero = 0 if self.zero is None else self.zero[..., None]
        return ((codes - zero) * self.scale[..., None]).reshape(self.shape)


def quantize_tensor(x: Float[Array, "n k"], spec: Spec) -> QTensor:
    """Round to the nearest code, scaled by the smallest and largest number of each channel, group or tensor.

    The arithmetic is that of `pallas_kernels.quantize_rows`: ranges contain 0, scales are never 0, a group of
    zeros has the codes of zero; a NaN or an infinity gives its group, and no other, the scale NaN. An error
    is at most half a scale; of fp8, a 16th of the number, or a 1024th of the scale where that is larger.
    Raises ValueError if the spec is not for weights, or the shape does not fit it.
    """
    if not spec.for_weight:
        raise ValueError(f"{spec} is for inputs; a weight is int8/channel, fp8/channel or the like.")
    if reason := spec.misfit(x.shape):
        raise ValueError(f"{spec}: {reason}.")
    rows = {"channel": x, "tensor": x.reshape(1, -1), "group": x.reshape(-1, spec.group or x.shape[1])}
    codes, scale, zero, _ = quantize_rows(
        rows[spec.granularity], bits=spec.bits, symmetric=spec.symmetric, dtype=spec.dtype
    )
    per_row = (1, 1) if spec.granularity == "tensor" else (x.shape[0], -1)
    codes = codes.reshape(x.shape)
    return QTensor(
        values=pack(codes) if spec.packed else codes,
        scale=scale.reshape(per_row),
        zero=None if zero is None else zero.reshape(per_row),
        spec=spec,
    )
