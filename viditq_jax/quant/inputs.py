"""Inputs of a layer to codes, and static scales from what calibration saw."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int8

from pallas_kernels.quantize_rows import Rows, quantize_rows
from viditq_jax.quant.spec import Spec


def quantize_input(
    x: Float[Array, "*batch k"],
    act: Spec,
    scale: Float32[Array, "1 1"] | None = None,
    zero: Int8[Array, "1 1"] | None = None,
    *,
    with_sum: bool = False,
) -> Rows:
    """Codes and scales of x, its leading axes flattened to rows.

    scale, zero: given where `act` is static, from `static_scale`; of the denoising range that x is from where
    they differ. with_sum: also the sums of the codes; not of fp8.
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
    if act.granularity == "position" and x.ndim > 2:
        others = (0, x.ndim - 1)
        scale, zero = static_scale(act, x.min(others).ravel(), x.max(others).ravel())
        repeats = (x.shape[0], 1)
        scale, zero = jnp.tile(scale, repeats), None if zero is None else jnp.tile(zero, repeats)
    return quantize_rows(
        x.reshape(-1, x.shape[-1]),
        bits=act.bits,
        symmetric=act.symmetric,
        dtype=act.dtype,
        scale=scale,
        zero=zero,
        with_sum=with_sum,
    )


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
