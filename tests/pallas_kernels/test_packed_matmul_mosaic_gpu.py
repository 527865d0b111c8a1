"""packed_matmul on Hopper as far as a machine without one can tell: interpreted, and lowered for CUDA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import dispatch
from pallas_kernels.compat import interpreted, races_found
from pallas_kernels.packed_matmul import packed_matmul
from pallas_kernels.packed_matmul.mosaic_gpu import launch, misfit
from pallas_kernels.packing import pack
from pallas_kernels.scaled_matmul._sm90 import Tiles
from tests.pallas_kernels.interpretation import limited, lowered_for_cuda


def test_sums_of_packed_codes_less_their_zero_points_are_exact():
    m, k, n = 136, 256, 64
    rng = np.random.default_rng(0)
    x, codes = rng.integers(-128, 128, (m, k)), rng.integers(-8, 8, (n, k))
    x_zero, w_zero = rng.integers(-128, 128, (m, 1)), rng.integers(-8, 8, (n, 1))
    one = jnp.ones((1, 1))
    with limited():
        y = launch(
            jnp.asarray(x, jnp.int8), pack(jnp.asarray(codes, jnp.int8)), one, one,
            x_zero=jnp.asarray(x_zero, jnp.int8), w_zero=jnp.asarray(w_zero, jnp.int8),
            w_sum=jnp.asarray((codes - w_zero).sum(1, keepdims=True), jnp.int32), out_dtype=jnp.float32,
            cores=1, tiles=Tiles(128, 64, 1, 2), target=interpreted(detect_races=True, clips=True),
        )  # fmt: skip
    np.testing.assert_array_equal(y, (x - x_zero) @ (codes - w_zero).T)
    assert not races_found()


@pytest.mark.parametrize(
    ("k", "n", "groups"),
    [(1152, 3456, 1), (1152, 1152, 9), (1152, 1152, 18), (1152, 1152, 36), (1152, 4608, 1), (4608, 1152, 1)],
)
def test_the_layers_of_pixart_lower_for_cuda(k, n, groups):
    given = {
        "x": jax.ShapeDtypeStruct((8192, k), jnp.int8),
        "w": jax.ShapeDtypeStruct((n, k // 2), jnp.uint8),
        "x_scale": jax.ShapeDtypeStruct((8192, 1), jnp.float32),
        "w_scale": jax.ShapeDtypeStruct((n, groups), jnp.float32),
        "w_zero": jax.ShapeDtypeStruct((n, groups), jnp.int8),
    }
    assert misfit(**given) is None
    text = lowered_for_cuda(lambda given: launch(**given, cores=132), given)
    assert text.count("@mosaic_gpu") == 1
    assert "dot_general" not in text


def test_on_a_cpu_the_kernel_says_why_not_and_cannot_be_had_by_name():
    if jax.default_backend() != "cpu":
        pytest.skip(f"the default device is a {jax.default_backend()}")
    x, w, one = jnp.ones((8, 128), jnp.int8), jnp.ones((64, 64), jnp.uint8), jnp.ones((1, 1))
    with pytest.raises(
        dispatch.UnsupportedError, match="'mosaic_gpu' was asked for, but it needs an NVIDIA GPU"
    ):
        packed_matmul(x, w, one, one, implementation="mosaic_gpu")
    assert "groups" in (misfit(x, w, one, jnp.ones((1, 8))) or "")
