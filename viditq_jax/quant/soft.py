"""SoftRounded: a quantized weight whose rounding can be trained, in the weight slot of the layer.

Each number of the weight has two codes to choose from, `below` and the next. What is trained is v: the number
is below + h with h = clip(sigmoid(v) * 1.2 - 0.1, 0, 1), and becomes one code or the other by `hard`. Inputs
are quantized as in use, but as floats, so that gradients pass (straight through the rounding); a static scale
can be trained as well. Source: AdaRound, arXiv 2004.10568; the gradient of a static scale, arXiv 1902.08153.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32

from viditq_jax.nn.linear import NOTHING, After, Modulated, linear
from viditq_jax.quant.inputs import quantize_input
from viditq_jax.quant.qweight import QWeight, code_sums
from viditq_jax.quant.rounding._grid import code_range, columns_of, recoded
from viditq_jax.quant.rounding.adaround import up, v_of


class Learned(NamedTuple):
    """What training changes."""

    v: jax.Array  # [n, k]; above 0 the number is rounded up
    growth: (
        jax.Array | None
    )  # [1, 1], log of the factor on a static input scale; None where it is not trained


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SoftRounded:
    """A QWeight with undecided codes. Made by `soft_rounded`."""

    weight: QWeight
    below: Any  # [n, k] float32, whole numbers: the smaller of the two codes
    learned: Learned

    @property
    def shape(self) -> tuple[int, int]:
        """[n, k] of the weight."""
        return self.weight.shape

    def linear(
        self, x: Float[Array, "... k"] | Modulated, bias: Float[Array, " n"] | None, after: After = NOTHING
    ) -> Float[Array, "... n"]:
        """What the QWeight computes, with the numbers that the weight has now, in float32 throughout."""
        x, dtype = self.weight.inputs(x).astype(jnp.float32), x.dtype
        y = linear(self.matrix(), self._quantized(x), bias)
        if self.weight.branch is not None:
            y = y + self.weight.branch.product(x.reshape(-1, x.shape[-1])).reshape(y.shape)
        return after(y).astype(dtype)

    def up(self) -> Float32[Array, "n k"]:
        """h: how much of the way to the next code each number goes, 0 to 1."""
        return up(self.learned.v)

    def matrix(self) -> Float32[Array, "n k"]:
        """The prepared weight as it is now."""
        q = self.weight.weight
        codes = jnp.clip(self.below + self.up(), *code_range(q.spec))
        codes = codes if q.zero is None else codes - columns_of(q.zero, q.shape)
        return codes * columns_of(q.scale, q.shape)

    def hard(self) -> QWeight:
        """The QWeight with every code decided; the layout is that of the one before."""
        q, old = self.weight.weight, self.weight
        codes = jnp.clip(self.below + (self.learned.v > 0), *code_range(q.spec))
        q = recoded(q, codes.astype(jnp.int8))
        sums = None if old.weight_sum is None else code_sums(q)
        return dataclasses.replace(old, weight=q, weight_sum=sums, act_scale=self._act_scale())

    def _act_scale(self) -> Any:
        growth = self.learned.growth
        return self.weight.act_scale if growth is None else self.weight.act_scale * jnp.exp(growth)

    def _quantized(self, x: Float32[Array, "*batch k"]) -> Float32[Array, "*batch k"]:
        """x as its codes mean it."""
        act, zero = self.weight.act, self.weight.act_zero
        if act is None:
            return x
        if act.static:
            scale, zero = self._act_scale(), 0 if zero is None else zero
            levels = x * (1 / scale)
            codes = levels + lax.stop_gradient(jnp.round(levels) - levels) + zero
            return (jnp.clip(codes, *code_range(act)) - zero) * scale
        rows = quantize_input(lax.stop_gradient(x), act)
        codes = rows.codes.astype(jnp.float32)
        values = (codes if rows.zero is None else codes - rows.zero) * rows.scale
        return x + lax.stop_gradient(values.reshape(x.shape) - x)


def soft_rounded(q: QWeight, weight: Float[Array, "n k"], *, train_scale: bool) -> SoftRounded:
    """A QWeight with undecided codes, each number where the float weight has it.

    The code that a number has now is always one of its two; the other is on the side of the float weight. If
    that is further away than one code, as GPTQ leaves some, the number begins at the nearer end.
    weight: before it was prepared. train_scale: also the scale of the inputs, where it is static.
    """
    for step in q.prepare:
        weight = step.weight(weight)
    if q.branch is not None:
        weight = weight - q.branch.matrix()
    levels = weight.astype(jnp.float32) * (1 / columns_of(q.weight.scale, q.shape))
    if q.weight.zero is not None:
        levels = levels + columns_of(q.weight.zero, q.shape)
    codes = q.weight.codes().astype(jnp.float32)
    below = jnp.where(levels < codes, codes - 1, codes)
    h = jnp.clip(levels - below, 0, 1)
    growth = jnp.zeros((1, 1)) if train_scale and q.act is not None and q.act.static else None
    return SoftRounded(q, below, Learned(v_of(h), growth))
