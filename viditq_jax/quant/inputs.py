"""Inputs of a layer to codes, and static scales from what calibration saw."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int8

from pallas_kernels.quantize_rows import Rows, quantize_rows
from viditq_jax.nn.linear import Modulated
from viditq_jax.quant.prepare.balance import Balance
from viditq_jax.quant.prepare.hadamard import Rotation
from viditq_jax.quant.spec import Spec


def quantize_input(
    x: Float[Array, "*batch k"] | Modulated,
    act: Spec,
    scale: Float32[Array, "1 1"] | None = None,
    zero: Int8[Array, "1 1"] | None = None,
    *,
    prepare: tuple[Any, ...] = (),
    with_sum: bool = False,
) -> Rows:
    """Codes and scales of the prepared x, its leading axes flattened to rows.

    scale, zero: given where `act` is static, from `static_scale`; of the denoising range that x is from where
    they differ. prepare: steps of quant/prepare; the last ones, and the norm and modulation of x, are done in
    the same pass as the codes. with_sum: also the sums of the codes; not of fp8.
    A position: x [b, ..., k] has one scale, and zero point, for each of its "...", over b and k. An x of two
    axes, or one, has no positions, and each row has its own.
    Raises ValueError if `act` is not for inputs, or a scale is missing or superfluous.
    """
    if not act.for_input:
        raise ValueError(
            f"{act} is for weights; inputs are int8/token, fp8/token, int8/tensor/static or the like."
        )
    if act.static != (scale is not None):
        raise ValueError(
            f"{act}: a scale was {'needed and not given' if act.static else 'given and is not used'};"
            f" static inputs have one, and only they."
        )
    if act.granularity == "position" and len(x.shape) > 2:
        x, prepare = prepared(x, prepare), ()
        others = (0, x.ndim - 1)
        scale, zero = static_scale(act, x.min(others).ravel(), x.max(others).ravel())
        repeats = (x.shape[0], 1)
        scale, zero = jnp.tile(scale, repeats), None if zero is None else jnp.tile(zero, repeats)
    x, operands = _left_to_do(x, prepare)
    return quantize_rows(
        x.reshape(-1, x.shape[-1]),
        bits=act.bits,
        symmetric=act.symmetric,
        dtype=act.dtype,
        scale=scale,
        zero=zero,
        with_sum=with_sum,
        **operands,
    )


def prepared(x: Float[Array, "... k"] | Modulated, steps: tuple[Any, ...]) -> Float[Array, "... k"]:
    """x after these steps of quant/prepare. A balance of a modulated input goes into its modulation."""
    if isinstance(x, Modulated):
        first = bool(steps) and isinstance(steps[0], Balance)
        x, steps = x.float32(steps[0].scale if first else None), steps[first:]
    y: Any = x
    for step in steps:
        y = step.inputs(y)
    return y


def _left_to_do(
    x: Float[Array, "... k"] | Modulated, steps: tuple[Any, ...]
) -> tuple[Float[Array, "... k"], dict[str, Any]]:
    """x after the steps that `quantize_rows` cannot do, and its operands for those that it can."""
    operands: dict[str, Any] = {}
    if steps and isinstance(rotation := steps[-1], Rotation):
        operands |= {"signs": rotation.signs, "block": rotation.block, "regular": rotation.regular}
        steps = steps[:-1]
    if steps and isinstance(balance := steps[-1], Balance):
        operands["balance"] = balance.scale
        steps = steps[:-1]
    if steps or not isinstance(x, Modulated) or x.shift.shape[-2] != 1 or x.scale.shape[-2] != 1:
        return prepared(x, steps), operands
    k = x.shape[-1]
    operands |= {"modulation": (x.shift.reshape(-1, k), x.scale.reshape(-1, k)), "eps": x.eps}
    return x.x, operands


def static_scale(
    act: Spec, low: Float[Array, "*r"], high: Float[Array, "*r"]
) -> tuple[Float32[Array, "rows 1"], Int8[Array, "rows 1"] | None]:
    """The scale, and zero point if asymmetric, with which numbers from low to high use all codes.

    low, high: the smallest and the largest input; [] gives [1, 1], [r] gives [r, 1]. NaN where they are not
    finite, as when no input was seen.
    """
    extremes = jnp.stack([jnp.ravel(low), jnp.ravel(high)], axis=1)
    rows = quantize_rows(extremes, bits=act.bits, symmetric=act.symmetric, dtype=act.dtype)
    return rows.scale, rows.zero
