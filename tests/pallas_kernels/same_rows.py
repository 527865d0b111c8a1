"""When two results of quantize_rows are the same."""

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.quantize_rows import Rows


def assert_within_the_contract(rows: Rows, expected: Rows) -> None:
    """One in a thousand codes off by one, in float8 to a neighbour; scales within 2**-20."""
    np.testing.assert_allclose(rows.scale, expected.scale, rtol=2.0**-20)
    if rows.codes.dtype == jnp.float8_e4m3fn:
        # Neighbours of one sign are one apart as bytes.
        off = np.asarray(rows.codes).view(np.int8).astype(int) - np.asarray(expected.codes).view(np.int8)
    else:
        zero, wanted = (0 if each.zero is None else np.asarray(each.zero, int) for each in (rows, expected))
        off = np.asarray(rows.codes, int) - zero - (np.asarray(expected.codes, int) - wanted)
    assert np.abs(off).max() <= 1
    assert np.count_nonzero(off) <= off.size / 1000


def assert_same(rows: Rows, expected: Rows) -> None:
    jax.tree.map(np.testing.assert_array_equal, rows, expected)
