"""The fast transform: for H = A x B, one small product with A along one axis and one with B along the other.

Bases of 2 are merged with their neighbors into matrices of order 128 at most: a product costs more additions
than butterflies and is still faster, and few passes over memory matter more than few additions. Measured on
two cores of an Intel Xeon with AVX-512, 1024 rows of float32, in ms, in one process, quietest of 60 runs:

    k = 1152   [24, 48] 2.1    [12, 96] 2.6    [12, 12, 8] 3.1    [144, 8] 3.3
    k = 4608   [48, 96] 9.1    [12, 12, 32] 9.5    [144, 32] 11.0
    blocks     [64] 1.4   [8, 8] 3.4        [128] 2.2   [16, 8] 3.8        [256] 4.2   [16, 16] 3.1

Butterflies took 2 times as long as the merged products at k = 1152, one dense product 7 times.
"""

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.hadamard._matrices import factors, product

LARGEST = 128  # order of a merged matrix


def unsupported(*_: Any, **__: Any) -> str | None:
    """Nothing is."""
    return None


def run(x: jax.Array, *, block: int, regular: bool) -> jax.Array:
    """See the contract. HIGHEST keeps the float32 of x, where a GPU would round it to TF32."""
    y = x.astype(jnp.float32).reshape(-1, block)
    for orders in merged(factors(block, regular)):
        h = jnp.asarray(product(orders, regular), jnp.float32)
        # The first of the remaining axes is summed and its result comes last, so the axes end in order.
        y = y.reshape(-1, len(h), block // len(h))
        y = jax.lax.dot_general(y, h, (((1,), (0,)), ((), ())), precision=jax.lax.Precision.HIGHEST)
    return (y * np.float32(1 / math.sqrt(block))).reshape(x.shape)


@functools.cache
def merged(orders: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Neighbors together, in the fewest groups whose products stay in LARGEST, and of those the most even."""
    largest = max(LARGEST, *orders, 0)
    for groups in range(1, len(orders) + 1):
        splits = []
        for cuts in itertools.combinations(range(1, len(orders)), groups - 1):
            edges = (0, *cuts, len(orders))
            split = tuple(orders[start:end] for start, end in itertools.pairwise(edges))
            if max(map(math.prod, split)) <= largest:
                splits.append(split)
        if splits:
            return min(splits, key=lambda split: sum(map(math.prod, split)))
    return ()
