"""scaled_matmul of int8 codes on CPUs with AVX512-VNNI, by the machine code of `pallas_kernels/x86`.

It sums the codes of w itself while it packs them, so a given w_sum goes unread. The epilogue is XLA's. A
program that is exported for several platforms has this product on CPUs, and that of `xla` on others.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels import epilogue, x86
from pallas_kernels.scaled_matmul import xla


def unsupported(x: jax.Array, w: jax.Array, x_scale: jax.Array, w_scale: jax.Array, **_: Any) -> str | None:
    """Why this product is none for the machine code, here."""
    if x.dtype != jnp.int8:
        return f"it takes int8 codes, not {x.dtype}"
    return x86.wrong_machine() or x86.misfit(x.shape, w_scale.shape[1], w.shape[0])


def run(
    x: jax.Array,
    w: jax.Array,
    x_scale: jax.Array,
    w_scale: jax.Array,
    *,
    x_zero: jax.Array | None,
    w_zero: jax.Array | None,
    x_sum: jax.Array | None,
    w_sum: jax.Array | None,
    **after: Any,
) -> jax.Array:
    """See the contract."""
    groups = w_scale.shape[1]
    if w_zero is not None and x_sum is None:
        x_sum = xla.sums(x, groups)
    zeros = dict(x_zero=x_zero, w_zero=w_zero, x_sum=x_sum)

    def here() -> jax.Array:
        return epilogue.finish(x86.product(x, w, w_scale, **zeros), x_scale, **after)

    def elsewhere() -> jax.Array:
        return xla.run(x, w, x_scale, w_scale, **zeros, w_sum=w_sum, **after)

    return lax.platform_dependent(cpu=here, default=elsewhere)
