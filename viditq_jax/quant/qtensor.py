"""QTensor: a matrix of integers and the scales that turn it back into numbers. Both maps are here.

    value = (code - zero) * scale

The shape of `scale` says who shares one: [1, 1] the whole matrix, [n, 1] a row, [n, k/g] a group of a row.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

from pallas_kernels.packing import pack, unpack
from pallas_kernels.quantize_rows import quantize_rows
from viditq_jax.quant.spec import Spec


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QTensor:
    """A quantized matrix [n, k]. Made by `quantize_tensor` or by a rounding method."""

    values: Any  # [n, k] int8, or [n, k/2] uint8 with two codes a byte (pallas_kernels.packing)
    scale: Any  # [1, 1], [n, 1] or [n, k/g], float32
    zero: Any  # the shape of scale, int8; None where spec.symmetric
    spec: Spec = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, int]:
        """[n, k], of the numbers that are meant, not of their storage."""
        n, columns = self.values.shape
        return n, columns * (2 if self.spec.packed else 1)

    def codes(self) -> Int8[Array, "n k"]:
        """The integers, one a byte."""
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
    zeros has the codes of zero. An error is at most half a scale. Raises ValueError if the shape does not fit
    the spec.
    """
    if reason := spec.misfit(x.shape):
        raise ValueError(f"{spec}: {reason}.")
    rows = {
        "channel": x,
        "token": x,
        "tensor": x.reshape(1, -1),
        "group": x.reshape(-1, spec.group or x.shape[1]),
    }
    codes, scale, zero, _ = quantize_rows(rows[spec.granularity], bits=spec.bits, symmetric=spec.symmetric)
    per_row = (1, 1) if spec.granularity == "tensor" else (x.shape[0], -1)
    codes = codes.reshape(x.shape)
    return QTensor(
        values=pack(codes) if spec.packed else codes,
        scale=scale.reshape(per_row),
        zero=None if zero is None else zero.reshape(per_row),
        spec=spec,
    )
