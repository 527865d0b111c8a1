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
from pallas_kernels.scaled_matmul.xla import sums

pytestmark = pytest.mark.skipif(x86.wrong_machine() is not None, reason=f"{x86.wrong_machine()}")
KINDS = pytest.mark.parametrize("packed", [False, True], ids=["int8", "int4"])
SIZES = [  # (m, k, n, groups): rows of tiles are 6, 2 and 1, columns 64, chunks of inputs 64
    (1, 8, 1, 1),
    (2, 8, 63, 2),
    (7, 24, 64, 3),  # the halves of 4-bit codes meet inside of a group
    (9, 72, 65, 1),
    (13, 200, 15, 5),
    (31, 1160, 129, 1),
    (97, 192, 100, 3),
    (200, 128, 80, 32),
]


def operands(m, k, n, groups, packed, seed=0):
    """Scales are powers of two and sums small, so that each float32 step is exact."""
    rng = np.random.default_rng(seed)
    largest = 8 if packed else 128
    x, x_zero = rng.integers(-128, 128, (m, k)), rng.integers(-128, 128, (m, 1))
    w = rng.integers(-largest, largest, (n, k))
    w_zero = rng.integers(-largest, largest, (n, groups))
    w_scale = 2.0 ** rng.integers(-1, 1, (n, groups))
    full = (w - np.repeat(w_zero, k // groups, 1)) * np.repeat(w_scale, k // groups, 1)
    w = jnp.asarray(w, jnp.int8)
    arrays = dict(
        x=jnp.asarray(x, jnp.int8),
        w=pack(w) if packed else w,
        w_scale=jnp.asarray(w_scale, jnp.float32),
        x_zero=jnp.asarray(x_zero, jnp.int8),
        w_zero=jnp.asarray(w_zero, jnp.int8),
    )
    return arrays, (x - x_zero) @ full.T


def product(x, w, w_scale, x_zero, w_zero):
    return x86.product(x, w, w_scale, x_zero=x_zero, w_zero=w_zero, x_sum=sums(x, w_scale.shape[1]))


@KINDS
@pytest.mark.parametrize("sizes", SIZES)
def test_edges_of_tiles_are_exact(packed, sizes):
    """float32 rounds the sum of one group; those of several stay below 2**23, in halves."""
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


@pytest.mark.parametrize("x_zero", [127, -127])
def test_a_group_is_as_large_as_its_sums_allow(x_zero):
    k = x86.MOST_IN_A_GROUP
    x, w, one = jnp.full((1, k), -127, jnp.int8), jnp.full((1, k), 127, jnp.int8), jnp.ones((1, 1))
    zeros = dict(x_zero=jnp.full((1, 1), x_zero, jnp.int8), w_zero=jnp.full((1, 1), -128, jnp.int8))
    for sign in (1, -1):  # of x, whose sums are the smallest and the largest
        y = x86.product(sign * x, w, one, **zeros, x_sum=sums(sign * x, 1))
        np.testing.assert_array_equal(y, [[np.float32((-127 * sign - x_zero) * 255 * k)]])
    more = [jnp.pad(codes, ((0, 0), (0, 4))) for codes in (x, w)]
    assert f"{k} at most" in str(dispatch.explain("scaled_matmul", *more, one, one)["vnni"])


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


def raw_operands(arrays):
    """What the machine code is given, and a result to overwrite."""
    m, (n, groups) = arrays["x"].shape[0], arrays["w_scale"].shape
    z = np.asarray(arrays["x_zero"], np.int32)[:, 0] + 128
    total = np.asarray(sums(arrays["x"], groups)) + 128 * (arrays["x"].shape[1] // groups)
    return [
        np.asarray(arrays["x"]).view(np.uint8) ^ 128,
        np.asarray(arrays["w"]),
        np.ascontiguousarray(np.asarray(arrays["w_scale"]).T),
        z << 23 | z,
        np.ascontiguousarray(np.asarray(arrays["w_zero"], np.int32).T),
        (total >> 7) << 16 | total & 127,
        np.full((m, n), np.nan, np.float32),
    ]


def columns(pointers, sizes, column, start, stop, packed):
    """Call the machine code for some columns and rows; it may write all of its panel, and no more."""
    from pallas_kernels.x86 import _panel

    _, k, n, groups = sizes
    panel = np.zeros((k + 64) * _panel.COLUMNS + groups * 3 * _panel.STEP, np.uint8)
    guarded = Pages(panel, at_end=True)
    types = [ctypes.c_void_p] * 7 + [ctypes.c_int64] * 4 + [ctypes.c_void_p] + [ctypes.c_int64] * 3
    function = ctypes.CFUNCTYPE(None, *types)(x86.functions(packed=packed)["columns"])
    function(*pointers, sizes[0], n, k, groups, guarded.address, column, start, stop)


@KINDS
@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
def test_nothing_outside_of_the_operands_is_touched(packed, at_end, sizes):
    """A read or a write on either side would end the process."""
    arrays, expected = operands(*sizes, packed)
    pages = [Pages(array, at_end) for array in raw_operands(arrays)]
    for column in range(0, sizes[2], 64):
        columns([page.address for page in pages], sizes, column, 0, sizes[0], packed)
    np.testing.assert_array_equal(pages[-1].array, expected.astype(np.float32))


def test_only_the_rows_and_columns_asked_for_are_written():
    sizes = (20, 64, 100, 1)
    arrays, expected = operands(*sizes, packed=False)
    given = raw_operands(arrays)
    y = given[-1]
    columns([array.ctypes.data for array in given], sizes, 0, 3, 16, packed=False)
    np.testing.assert_array_equal(y[3:16, :64], expected[3:16, :64])
    y[3:16, :64] = np.nan
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
    for expected, args in [
        ("no empty product", (x[:0], w, one, one)),
        ("multiple of 4 codes", (x[:, :6], w[:, :6], one, one)),
    ]:
        assert expected in str(dispatch.explain("scaled_matmul", *args)["vnni"])
        assert scaled_matmul(*args).shape == (args[0].shape[0], 3)
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
