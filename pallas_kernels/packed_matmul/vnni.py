"""packed_matmul on CPUs with AVX512-VNNI, by the machine code of `pallas_kernels/x86`.

It takes the codes apart, and the zero points off, while it packs panels of w. Otherwise as `vnni` of
scaled_matmul.
"""

from typing import Any

import jax
from jax import lax

from pallas_kernels import epilogue, x86
from pallas_kernels.packed_matmul import xla


def unsupported(x: jax.Array, w: jax.Array, x_scale: jax.Array, w_scale: jax.Array, **_: Any) -> str | None:
    """Why this product is none for the machine code, here."""
    if w.shape[1] % x86.CODES:
        return f"it needs rows of a multiple of {2 * x86.CODES} codes, got {x.shape[1]}"
    return x86.wrong_machine() or x86.misfit(x.shape, w_scale.shape[1], w.shape[0])


def run(
    x: jax.Array,
    w: jax.Array,
    x_scale: jax.Array,
    w_scale: jax.Array,
    *,
    x_zero: jax.Array | None,
    w_zero: jax.Array | None,
    w_sum: jax.Array | None,
    **options: Any,
) -> jax.Array:
    """See the contract."""

    def here() -> jax.Array:
        y = x86.product(x, w, w_scale, x_zero=x_zero, w_zero=w_zero)
        return epilogue.finish(y, x_scale, **options)

    def elsewhere() -> jax.Array:
        return xla.run(x, w, x_scale, w_scale, x_zero=x_zero, w_zero=w_zero, w_sum=w_sum, **options)

    return lax.platform_dependent(cpu=here, default=elsewhere)
