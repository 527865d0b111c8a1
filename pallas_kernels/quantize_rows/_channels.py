"""What belongs to channels and not to rows, as kernels are given it: XLA prepares it, in float32."""

import jax
import jax.numpy as jnp

from pallas_kernels.quantize_rows.reference import folded, signed


def of_channels(
    modulation: tuple[jax.Array, jax.Array] | None,
    activation: str | None,
    balance: jax.Array | None,
    signs: jax.Array | None,
    k: int,
) -> dict[str, jax.Array]:
    """shift and factor of each group, [b, k], and a multiplier, [k]; balance and signs are in one of them."""
    if modulation is not None and activation is None:
        shift, factor = (signed(each, signs) for each in folded(modulation, balance))
        return {"shift": shift, "factor": factor}
    operands: dict[str, jax.Array] = {}
    if modulation is not None:
        operands["shift"], operands["factor"] = folded(modulation, None)
    if balance is not None or signs is not None:
        inverse = jnp.ones(k) if balance is None else 1 / balance.astype(jnp.float32)
        operands["multiplier"] = signed(inverse[None], signs)[0]
    return operands
