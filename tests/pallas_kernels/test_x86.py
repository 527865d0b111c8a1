"""The machine code for x86-64: edges of its tiles, its memory, its threads, and where it is called from.

That it computes what the contracts say is tested with the other implementations of both ops.
"""

import ctypes
import mmap
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import dispatch, x86
from pallas_kernels.packed_matmul import packed_matmul
from pallas_kernels.packing import pack
from pallas_kernels.scaled_matmul import scaled_matmul

pytestmark = pytest.mark.skipif(x86.wrong_machine() is not None, reason=f"{x86.wrong_machine()}")
KINDS = pytest.mark.parametrize("packed", [False, True], ids=["int8", "int4"])
SIZES = [  # (m, k, n, groups): rows of tiles are 8, 4 and 1, columns 48, chunks of inputs 64
    (1, 8, 1, 1),
    (2, 8, 47, 2),
    (7, 24, 48, 3),  # the halves of 4-bit codes meet inside of a group
    (8, 72, 49, 1),
    (13, 200, 15, 5),
    (31, 1160, 97, 1),
    (97, 192, 100, 3),
    (200, 128, 64, 32),
]


def operands(m, k, n, groups, packed, seed=0):
    """Scales are powers of two and sums small, so that each float32 step is exact."""
    rng = np.random.default_rng(seed)
    largest = 8 if packed else 128
    x, x_zero = rng.integers(-128, 128, (m, k)), rng.integers(-128, 128, (m, 1))
    w = rng.integers(-largest, largest, (n, k))
    w_zero = rng.integers(-8, 8, (n, groups)) if packed else np.zeros((n, groups), np.int64)
    w_scale = 2.0 ** rng.integers(-1, 1, (n, groups))
    full = (w - np.repeat(w_zero, k // groups, 1)) * np.repeat(w_scale, k // groups, 1)
    w = jnp.asarray(w, jnp.int8)
    arrays = dict(
        x=jnp.asarray(x, jnp.int8),
        w=pack(w) if packed else w,
        w_scale=jnp.asarray(w_scale, jnp.float32),
        x_zero=jnp.asarray(x_zero, jnp.int8),
        w_zero=jnp.asarray(w_zero, jnp.int8) if packed else None,
    )
    return arrays, (x - x_zero) @ full.T


def product(x, w, w_scale, x_zero, w_zero):
    return x86.product(x, w, w_scale, x_zero=x_zero, w_zero=w_zero)


@KINDS
@pytest.mark.parametrize("sizes", SIZES)
def test_edges_of_tiles_are_exact(packed, sizes):
    """|sum| <= 1160 * 255 * 128 * 1 < 2**26, in halves; float32 rounds what has more than 24 bits."""
    arrays, expected = operands(*sizes, packed)
    y = jax.jit(product)(**arrays)
    if sizes[3] == 1:  # one conversion, which rounds as NumPy does
        np.testing.assert_array_equal(y, expected.astype(np.float32))
    else:
        assert np.max(np.abs(expected)) < 2**23
        np.testing.assert_array_equal(y, expected)


@KINDS
@pytest.mark.parametrize(("x", "x_zero"), [(-128, 127), (127, -128), (-128, -128)])
@pytest.mark.parametrize("highest", [False, True])
def test_the_largest_codes_do_not_overflow(packed, x, x_zero, highest):
    k = 1024
    w = (7 if packed else 127) if highest else (-8 if packed else -128)
    codes = jnp.full((3, k), w, jnp.int8)
    y = x86.product(
        jnp.full((5, k), x, jnp.int8),
        pack(codes) if packed else codes,
        jnp.ones((1, 1)),
        x_zero=jnp.full((1, 1), x_zero, jnp.int8),
    )
    np.testing.assert_array_equal(y, np.full((5, 3), np.float32((x - x_zero) * w * k)))


@pytest.mark.parametrize("k", [32764, 32767])
def test_a_group_is_as_large_as_its_sum_allows(k):
    x, w, one = jnp.full((1, k), 127, jnp.int8), jnp.full((1, k), -128, jnp.int8), jnp.ones((1, 1))
    x_zero = jnp.full((1, 1), 127, jnp.int8)
    reason = dispatch.explain("scaled_matmul", x, w, one, one)["vnni"]
    if k % 4:
        assert "multiple of 4 codes" in str(reason)
    else:
        assert reason is None
        np.testing.assert_array_equal(x86.product(x, w, one, x_zero=x_zero), [[0]])
        np.testing.assert_array_equal(x86.product(x, w, one, x_zero=-x_zero), [[-254 * 128 * k]])


class Pages:
    """An array that ends, or begins, where memory cannot be touched."""

    def __init__(self, array, at_end):
        size = -(-array.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self.memory = mmap.mmap(-1, size + 2 * mmap.PAGESIZE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        for page in (start, start + mmap.PAGESIZE + size):
            assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(page), mmap.PAGESIZE, 0) == 0
        offset = mmap.PAGESIZE + (size - array.nbytes if at_end else 0)
        self.array = np.frombuffer(self.memory, array.dtype, array.size, offset).reshape(array.shape)
        self.array[...] = array
        self.address = start + offset


@KINDS
@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
def test_nothing_outside_of_the_operands_is_touched(packed, at_end, sizes):
    """A read or a write on either side would end the process."""
    m, k, n, groups = sizes
    arrays, expected = operands(*sizes, packed)
    z = np.asarray(arrays["x_zero"], np.int32)[:, 0] + 128
    w_zero = np.zeros((n, groups)) if arrays["w_zero"] is None else np.asarray(arrays["w_zero"])
    given = [
        np.asarray(arrays["x"]).view(np.uint8) ^ 128,
        np.asarray(arrays["w"]),
        np.ascontiguousarray(np.asarray(arrays["w_scale"]).T),
        z << 23 | z,
        np.ascontiguousarray(w_zero.T.astype(np.int32)),
        np.full((m, n), np.nan, np.float32),
    ]
    pages = [Pages(array, at_end) for array in given]
    panel = np.empty((k + 64) * 48 + groups * 2 * 4 * 48, np.uint8)
    columns = ctypes.CFUNCTYPE(
        None, *[ctypes.c_void_p] * 6, *[ctypes.c_int64] * 4, ctypes.c_void_p, *[ctypes.c_int64] * 3
    )(x86.functions(packed=packed)["columns"])
    for column in range(0, n, 48):
        columns(*[page.address for page in pages], m, n, k, groups, panel.ctypes.data, column, 0, m)
    np.testing.assert_array_equal(pages[-1].array, expected.astype(np.float32))


def test_its_rows_alone_are_written():
    arrays, expected = operands(20, 64, 50, 1, packed=False)
    z = np.asarray(arrays["x_zero"], np.int32)[:, 0] + 128
    given = [
        np.asarray(arrays["x"]).view(np.uint8) ^ 128,
        np.asarray(arrays["w"]),
        np.asarray(arrays["w_scale"]).T.copy(),
        z << 23 | z,
    ]
    y = np.full((20, 50), np.nan, np.float32)
    panel = np.empty((64 + 64) * 48 + 2 * 4 * 48, np.uint8)
    pointers = [array.ctypes.data for array in (*given, z, y)]
    columns = ctypes.CFUNCTYPE(
        None, *[ctypes.c_void_p] * 6, *[ctypes.c_int64] * 4, ctypes.c_void_p, *[ctypes.c_int64] * 3
    )(x86.functions(packed=False)["columns"])
    columns(*pointers, 20, 50, 64, 1, panel.ctypes.data, 0, 3, 16)
    np.testing.assert_array_equal(y[3:16, :48], expected[3:16, :48])
    y[3:16, :48] = np.nan
    assert np.all(np.isnan(y))


@KINDS
def test_many_threads_compute_what_one_does(packed):
    """1600 x 192 x 512 is shared among XLA's threads; four callers at once are in each other's way."""
    arrays, expected = operands(1600, 192, 512, 1, packed)
    function, found = jax.jit(product), {}
    function(**arrays).block_until_ready()

    def call(i):
        found[i] = [np.asarray(function(**arrays)) for _ in range(5)]

    callers = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for results in found.values():
        for y in results:
            np.testing.assert_array_equal(y, expected.astype(np.float32))
    assert len(found) == 4


@KINDS
def test_it_computes_inside_of_scans_and_vmap(packed):
    arrays, expected = operands(160, 192, 512, 3, packed)
    shifts = jnp.arange(4, dtype=jnp.int8)

    def one(shift):
        return product(**arrays | {"x_zero": arrays["x_zero"] + shift})

    scanned = jax.jit(lambda: jax.lax.scan(lambda _, s: (None, one(s)), None, shifts)[1])()
    mapped = jax.jit(jax.vmap(one))(shifts)
    np.testing.assert_array_equal(scanned[0], expected)
    np.testing.assert_array_equal(scanned, mapped)
    assert not np.array_equal(scanned[0], scanned[1])


def test_the_default_takes_it_where_it_fits_and_says_why_it_does_not():
    x, w, one = jnp.zeros((4, 64), jnp.int8), jnp.zeros((3, 64), jnp.int8), jnp.ones((1, 1))
    reasons = dispatch.explain("scaled_matmul", x, w, one, one)
    assert reasons["vnni"] is None
    assert "pallas_kernels_x86_int8" in jax.jit(scaled_matmul).lower(x, w, one, one).as_text()
    assert "pallas_kernels_x86_int4" in jax.jit(packed_matmul).lower(x, pack(w), one, one).as_text()
    zero = jnp.zeros((1, 1), jnp.int8)
    for expected, args, options in [
        ("no empty product", (x[:0], w, one, one), {}),
        ("multiple of 4 codes", (x[:, :6], w[:, :6], one, one), {}),
        ("zero points of int8 weights", (x, w, one, one), {"w_zero": zero}),
    ]:
        assert expected in str(dispatch.explain("scaled_matmul", *args, **options)["vnni"])
        assert scaled_matmul(*args, **options).shape == (args[0].shape[0], 3)
    assert "multiple of 8 codes" in str(
        dispatch.explain("packed_matmul", x[:, :12], pack(w[:, :12]), one, one)["vnni"]
    )


def test_a_program_for_another_platform_has_the_product_of_xla():
    x, w, one = jnp.zeros((4, 64), jnp.int8), jnp.zeros((3, 64), jnp.int8), jnp.ones((1, 1))
    text = jax.export.export(jax.jit(scaled_matmul), platforms=["cuda"])(x, w, one, one).mlir_module()
    assert "pallas_kernels_x86" not in text
    assert "dot_general" in text
    with pytest.raises(ValueError, match="custom call"):
        jax.export.export(jax.jit(scaled_matmul), platforms=["cpu"])(x, w, one, one)
