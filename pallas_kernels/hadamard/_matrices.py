"""Hadamard matrices in code: Sylvester's, Paley's two families, and Kronecker products of them.

A Hadamard matrix H of order n has entries 1 and -1 and H H^T = n I. Here every one is a Kronecker product of
bases; `factors` says of which. A base is [[1, 1], [1, -1]] or a Paley matrix, which exists for each order
q + 1 or 2 (q + 1) with q a prime of the right kind: 12, 20, 28, 36, 44, 60, 68, 72, 76, ... So there is one
for the width of every model that we know, without tables.

The *regular* ones are the Kronecker powers of one symmetric matrix of order 4. All their rows and columns
have the same sum. Sylvester's have a column of ones, on which a mean that all channels share would be
concentrated; these have none. Source: ConvRot, arXiv 2512.03673.
"""

import functools
import math

import numpy as np

_SYLVESTER = np.array([[1, 1], [1, -1]], np.int8)
_REGULAR = (1 - 2 * np.eye(4, dtype=np.int8)[::-1]).astype(np.int8)  # ones, and -1 on the antidiagonal


def matrix(order: int, regular: bool = False) -> np.ndarray:
    """The Hadamard matrix of an order, int8 [order, order]: the Kronecker product of its `factors`.

    Raises ValueError, with orders that exist, where there is none here.
    """
    return product(factors(order, regular), regular)


def product(orders: tuple[int, ...], regular: bool = False) -> np.ndarray:
    """The Kronecker product of bases, int8; of a part of `factors`, say."""
    bases = [_REGULAR if regular else _base(order) for order in orders]
    return functools.reduce(np.kron, bases, np.ones((1, 1), np.int8))


@functools.cache
def factors(order: int, regular: bool = False) -> tuple[int, ...]:
    """Orders of the bases of `matrix(order)`: those of the smallest sum, so of the cheapest transform.

    1152 is (12, 2, 2, 2, 12): one transform of a row takes about 1152 * 30 additions. Large bases stand at
    the two ends, so that neighbors merge into products of like size. Order 1 has no factors.
    Raises ValueError, with orders that exist, where there is none here.
    """
    found = _split(order, regular)
    if found is None:
        raise ValueError(f"{misfit(order, order, regular)}.")
    large = [base for base in found if base > 2]
    return (*large[::2], *[2] * (len(found) - len(large)), *large[1::2])


def misfit(k: int, block: int, regular: bool = False) -> str | None:
    """Why rows of k channels cannot be transformed in blocks of `block`, with near ones that can, or None."""
    divides = block >= 1 and k % block == 0
    if divides and _split(block, regular) is not None:
        return None
    what = f"blocks of {block} channels do not divide {k} channels"
    if divides:
        what = f"no {'regular ' if regular else ''}Hadamard matrix of order {block} is built here"
    fit = [size for size in range(2, k + 1) if k % size == 0 and _split(size, regular) is not None]
    if not fit:
        return f"{what}, and no block of 2 or more fits {k} channels"
    near = sorted(sorted(fit, key=lambda size: abs(math.log(size / max(block, 1))))[:6])
    return f"{what}; blocks that fit {k} channels: {', '.join(map(str, near))}"


@functools.cache
def _split(order: int, regular: bool) -> tuple[int, ...] | None:
    """The factors, falling, or None if there are none: tries every base, not the first that divides."""
    if order == 1:
        return ()
    if regular:
        rest = _split(order // 4, True) if order % 4 == 0 else None
        return None if rest is None else (4, *rest)
    found = []
    for base in range(2, order + 1, 2):
        if order % base == 0 and _is_base(base) and (rest := _split(order // base, False)) is not None:
            found.append(tuple(sorted((base, *rest), reverse=True)))
    return min(found, key=sum, default=None)


def _is_base(order: int) -> bool:
    """2, or an order of Paley's that is no power of 2, where products of 2 are cheaper."""
    if order & (order - 1) == 0:
        return order == 2
    return _paley_one(order) or _paley_two(order)


def _paley_one(order: int) -> bool:
    return order % 4 == 0 and _is_prime(order - 1)


def _paley_two(order: int) -> bool:
    return order % 4 == 0 and order // 2 % 4 == 2 and _is_prime(order // 2 - 1)


def _is_prime(q: int) -> bool:
    return q > 1 and all(q % divisor for divisor in range(2, math.isqrt(q) + 1))


@functools.cache
def _base(order: int) -> np.ndarray:
    """[[1, 1], [1, -1]], or Paley's matrix over the field of a prime q.

    C has 0 on the diagonal, the quadratic characters of i - j inside, and a border of ones. It is skew with
    order q + 1 for q = 3 mod 4, where I + C is Hadamard (the first family), and symmetric for q = 1 mod 4,
    where C x [[1, 1], [1, -1]] + I x [[1, -1], [-1, -1]] is (the second). Source: Paley, 1933.
    """
    if order == 2:
        return _SYLVESTER
    first = _paley_one(order)
    size = order if first else order // 2
    q = size - 1
    character = np.full(q, -1, np.int8)
    character[np.arange(1, q) ** 2 % q] = 1
    character[0] = 0
    c = np.zeros((size, size), np.int8)
    c[0, 1:] = 1
    c[1:, 0] = -1 if first else 1
    c[1:, 1:] = character[np.subtract.outer(np.arange(q), np.arange(q)) % q]
    one = np.eye(size, dtype=np.int8)
    if first:
        return one + c
    return np.kron(c, _SYLVESTER) + np.kron(one, np.array([[1, -1], [-1, -1]], np.int8))
