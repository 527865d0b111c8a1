"""packed_matmul as scaled_matmul on the unpacked codes; fits every device.

The zero point goes into the unpacked code, which stays an int8; so a weight with zero points needs no sums of
its inputs.
"""

from typing import Any

import jax

from pallas_kernels.packed_matmul._codes import codes
from pallas_kernels.scaled_matmul import xla


def unsupported(*_: Any, **__: Any) -> str | None:
    """Nothing is."""
    return None


def run(
    x: jax.Array,
    w: jax.Array,
    x_scale: jax.Array,
    w_scale: jax.Array,
    *,
    w_zero: jax.Array | None,
    **options: Any,
) -> jax.Array:
    """See the contract."""
    unpacked = codes(w, w_zero, w_scale.shape[1])
    return xla.run(x, unpacked, x_scale, w_scale, w_zero=None, x_sum=None, **options)
