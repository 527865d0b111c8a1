"""quantize_rows as XLA compiles the reference, with the fast Hadamard transform; fits every device."""

from typing import Any

import jax

from pallas_kernels.hadamard import xla as hadamard
from pallas_kernels.quantize_rows.reference import Result, coded, grid, prepared, quantized, signed

_STEPS = ("modulation", "eps", "activation", "balance")


def unsupported(*_: Any, **__: Any) -> str | None:
    """Nothing is."""
    return None


def run(
    x: jax.Array, *, signs: jax.Array | None, block: int | None, regular: bool, with_sum: bool, **options: Any
) -> Result:
    """See the contract."""
    steps = {name: options.pop(name) for name in _STEPS}
    if block is not None:
        y = rotated(prepared(x, **steps), signs, block, regular)
        return quantized(y, with_sum=with_sum, **options)
    again = jax.lax.platform_dependent(x, cuda=jax.lax.optimization_barrier, default=lambda x: x)
    return coded(
        prepared(again, **steps), grid(prepared(x, **steps), **options), with_sum=with_sum, **options
    )


def rotated(y: jax.Array, signs: jax.Array | None, block: int, regular: bool) -> jax.Array:
    """Rows with their signs, transformed."""
    return hadamard.run(signed(y, signs), block=block, regular=regular)
