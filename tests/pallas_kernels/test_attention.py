"""Every implementation of attention against NumPy in float64, its reference, and what smoothing promises."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import dispatch
from pallas_kernels.attention import attention as plain_attention
from pallas_kernels.attention import check, cudnn, reference, xla
from pallas_kernels.attention.cases import CASES
from pallas_kernels.devices import Gpu
from pallas_kernels.quantize_rows import quantize_rows
from tests.pallas_kernels.unsupported import skip_unsupported

attention = skip_unsupported(jax.jit(plain_attention, static_argnames=("scale", "qk_bits", "implementation")))
IMPLEMENTATIONS = [*dispatch.implementations("attention"), "reference"]
U = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 0.0}  # roundings of p and of the output
ULP = 2.0**-24


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    return request.param


def operands(case, dtype=jnp.float32, seed=0):
    """Multiples of 1/16, so that every type holds them and the mean of keys is the same in any order."""
    b, n, keys, h, d = CASES.get(case, case)
    rng = np.random.default_rng(seed)
    shapes = [(b, tokens, h, d) for tokens in (n, keys, keys)]
    return [jnp.asarray(np.round(16 * rng.standard_normal(shape)) / 16, dtype) for shape in shapes], rng


def extras(case, rng, *, masked, biased):
    """A mask of keys a sample, as of prompts, that leaves each query a key; and a bias a head."""
    b, n, keys, h, _ = CASES[case]
    mask = rng.random((b, 1, 1, keys)) < 0.5
    mask[..., 0] = True
    bias = rng.standard_normal((1, h, n, keys)).astype(np.float32)
    return {"mask": jnp.asarray(mask) if masked else None, "bias": jnp.asarray(bias) if biased else None}


def exact(q, k, v, *, mask=None, bias=None, scale=None, scores=None):
    """The output in float64; the sums of |p v| / sum(p); and how large scores are before they cancel."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    s = scale * np.einsum("bnhd,blhd->bhnl", q, k) if scores is None else scores
    size = scale * np.einsum("bnhd,blhd->bhnl", abs(q), abs(k)).max()
    if bias is not None:
        s, size = s + np.asarray(bias, np.float64), size + np.abs(np.asarray(bias)).max()
    s = s if mask is None else np.where(np.asarray(mask), s, float(reference.LOWEST))
    p = np.exp(s - s.max(-1, keepdims=True))
    p = p / p.sum(-1, keepdims=True)
    return np.einsum("bhnl,blhd->bnhd", p, v), np.einsum("bhnl,blhd->bnhd", p, abs(v)), size


def allowed(sums, size, q, k):
    """The contract's, with s off by the d products, the scales, bias, maximum and exponential of float32."""
    e = (q.shape[-1] + 8) * ULP * size
    return (2 * e * (1 + e) + 2 * U[q.dtype.name] + (k.shape[1] + 8) * ULP) * sums


@pytest.mark.parametrize(
    ("case", "masked", "biased"),
    [
        *((case, False, False) for case in CASES),
        ("pixart-xl cross_attn, prompt", True, False),
        ("odd everywhere", False, True),
        ("odd everywhere", True, True),
    ],
)
def test_float_attention_is_off_by_the_roundings_of_the_contract_at_most(
    implementation, case, masked, biased
):
    (q, k, v), rng = operands(case)
    options = extras(case, rng, masked=masked, biased=biased)
    y = attention(q, k, v, implementation=implementation, **options)
    expected, sums, size = exact(q, k, v, **options)
    assert np.all(np.abs(np.asarray(y, np.float64) - expected) <= allowed(sums, size, q, k))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("case", ["pixart-xl attn", "odd everywhere"])
def test_half_precision_loses_only_the_roundings_of_probabilities_and_output(implementation, case, dtype):
    (q, k, v), _ = operands(case, dtype)
    y = attention(q, k, v, implementation=implementation)
    assert y.dtype == dtype
    expected, sums, size = exact(q, k, v)
    assert np.all(np.abs(np.asarray(y, np.float64) - expected) <= allowed(sums, size, q, k))


def dequantized(x):
    """The rows of x, [b, n, h, d], through 8-bit codes in float32, as the op `quantize_rows` has them."""
    x = np.asarray(x, np.float32)
    extent = np.maximum(np.abs(x).max(-1, keepdims=True), np.float32(1e-30))
    codes = np.round(x * (np.float32(127) / extent))
    return codes.astype(np.float64) * (extent * np.float32(1 / 127))


def of_codes(q, k, scale):
    """Scores of the codes of queries and of smoothed keys."""
    k = np.asarray(k, np.float32)
    return scale * np.einsum("bnhd,blhd->bhnl", dequantized(q), dequantized(k - k.mean(1, keepdims=True)))


@pytest.mark.parametrize(("masked", "biased"), [(False, False), (True, True)])
@pytest.mark.parametrize("case", ["pixart-small attn", "pixart-xl attn, compressed keys", "odd everywhere"])
def test_the_codes_are_those_of_quantize_rows_and_the_rest_is_float_attention(
    implementation, case, masked, biased
):
    (q, k, v), rng = operands(case)
    options = extras(case, rng, masked=masked, biased=biased)
    y = attention(q, k, v, qk_bits=8, implementation=implementation, **options)
    scores = of_codes(q, k, q.shape[-1] ** -0.5)
    expected, sums, size = exact(q, k, v, scores=scores, **options)
    assert np.all(np.abs(np.asarray(y, np.float64) - expected) <= allowed(sums, size, q, k))


def test_the_codes_of_queries_are_those_of_the_op_quantize_rows():
    (q, _, _), _ = operands("odd everywhere", jnp.bfloat16)
    codes, scale = reference.codes(q)
    rows = quantize_rows(q.reshape(-1, q.shape[-1]))
    np.testing.assert_array_equal(codes.reshape(rows.codes.shape), rows.codes)
    np.testing.assert_array_equal(scale.reshape(rows.scale.shape), rows.scale)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_queries_and_keys_that_are_codes_lose_nothing(implementation, dtype):
    """Integers, 127 in every row, keys whose mean is 0: both scales are 1, and 8 bits are exact.

    The scale is so small that no row is a choice of one key.
    """
    rng = np.random.default_rng(0)
    q, half = (rng.integers(-126, 127, (2, rows, 3, 16)) for rows in (24, 20))
    q[..., 0], half[..., 0] = 127, -127
    q, k = (jnp.asarray(x, dtype) for x in (q, np.concatenate([half, -half], 1)))
    v = jnp.asarray(rng.standard_normal(k.shape), dtype)
    y = attention(q, k, v, qk_bits=8, scale=1e-4, implementation=implementation)
    expected, sums, size = exact(q, k, v, scale=1e-4)
    assert np.all(np.abs(np.asarray(y, np.float64) - expected) <= allowed(sums, size, q, k))


def test_an_outlier_channel_of_the_keys_costs_nothing_as_it_is_smoothed_away(implementation):
    """Keys of trained transformers share a large number in a channel. Without smoothing the 40 of this one
    takes all 127 steps, and what differs between keys, a tenth of it, a tenth of them.
    """
    (q, k, v), _ = operands((2, 64, 64, 2, 64))
    k = k.at[..., 5].add(40.0)
    expected, *_ = exact(q, k, v)
    y = np.asarray(attention(q, k, v, qk_bits=8, implementation=implementation))
    rough, *_ = exact(dequantized(q), dequantized(k), v)
    error, without = (np.linalg.norm(other - expected) for other in (y, rough))
    assert without > 3 * error


def test_smoothing_leaves_float_attention_as_it_is():
    """A shift of all keys is a shift of each row of scores."""
    (q, k, v), _ = operands("pixart-small attn")
    shifted, *_ = exact(q, k + 3, v)
    plain, *_ = exact(q, k, v)
    np.testing.assert_allclose(shifted, plain, atol=1e-5)  # k + 3 was rounded to float32


def test_the_error_of_8_bits_is_that_of_half_a_step_of_each_row():
    """Rows of d normal numbers: a step is max / 127, so scores are off by at most
    scale (|q| . step_k + step_q . |k|) / 2 and the product of both halves, and outputs by twice that."""
    (q, k, v), _ = operands("pixart-small attn")
    y = np.asarray(attention(q, k, v, qk_bits=8), np.float64)
    expected, sums, _ = exact(q, k, v)
    k = k - k.mean(1, keepdims=True)
    a, c = (np.asarray(x, np.float64) for x in (q, k))
    half_a, half_c = (abs(x).max(-1) / 254 for x in (a, c))  # [b n h]
    of_q = abs(a).sum(-1).swapaxes(1, 2)[..., None] * half_c.swapaxes(1, 2)[:, :, None]
    of_k = half_a.swapaxes(1, 2)[..., None] * abs(c).sum(-1).swapaxes(1, 2)[:, :, None]
    both = a.shape[-1] * half_a.swapaxes(1, 2)[..., None] * half_c.swapaxes(1, 2)[:, :, None]
    e = 1.001 * a.shape[-1] ** -0.5 * (of_q + of_k + both).max()  # the scales are rounded themselves
    assert np.all(np.abs(y - expected) <= np.expm1(2 * e) * sums)
    assert np.linalg.norm(y - expected) < 0.02 * np.linalg.norm(expected)


@pytest.mark.parametrize("qk_bits", [None, 8])
def test_a_query_without_keys_takes_an_equal_part_of_every_value(implementation, qk_bits):
    (q, k, v), _ = operands("pixart-xl cross_attn, prompt")
    mask = jnp.ones((2, 1, 40, 77), bool).at[0, 0, 7].set(False)
    y = attention(q, k, v, mask=mask, qk_bits=qk_bits, implementation=implementation)
    np.testing.assert_allclose(y[0, 7], v[0].mean(0), atol=77 * ULP * 4)


@pytest.mark.parametrize("qk_bits", [None, 8])
def test_what_is_masked_is_not_seen(implementation, qk_bits):
    """But for the mean of the keys, which takes in all: here the masked keys are a copy of the others."""
    q, k, v = map(np.asarray, operands((1, 24, 20, 2, 32))[0])
    twice = np.concatenate([k, k], 1)
    mask = jnp.asarray(np.arange(40) < 20)[None, None, None]
    options = {"mask": mask, "qk_bits": qk_bits, "implementation": implementation}
    seen = attention(q, twice, np.concatenate([v, v], 1), **options)
    large = np.concatenate([v, np.full_like(v, 1e6)], 1)
    np.testing.assert_array_equal(attention(q, twice, large, **options), seen)
    short = attention(q, k, v, qk_bits=qk_bits, implementation=implementation)
    np.testing.assert_allclose(seen, short, atol=1e-4)  # the mean may be summed in another order


@pytest.mark.parametrize(
    ("case", "heads", "rows", "qk_bits"),
    [
        ("pixart-xl cross_attn, prompt", 3, None, 8),
        ("odd everywhere", 1, None, None),
        ("odd everywhere", 1, 7, 8),
        ("pixart-xl cross_attn, prompt", 1, 1, None),
    ],
)
def test_turns_give_what_is_given_at_once(monkeypatch, case, heads, rows, qk_bits):
    """Turns of some heads, or of some queries of a head, that divide nothing; sums may be in another order.

    The heads that are left over are a turn of their own.
    """
    (q, k, v), rng = operands(case)
    n, keys = q.shape[1], k.shape[1]
    options = extras(case, rng, masked=True, biased=True) | {"qk_bits": qk_bits}
    whole, turns = (jax.jit(partial(xla.run, scale=1.0, **options)) for _ in range(2))
    expected = whole(q, k, v)
    assert "stablehlo.while" not in whole.lower(q, k, v).as_text()
    monkeypatch.setattr(xla, "most_bytes", lambda: 4 * heads * (rows or n) * keys)
    found = turns.lower(q, k, v).as_text().count("stablehlo.while")
    assert found == (1 if rows is None else 2)
    _, sums, size = exact(q, k, v, scale=1.0, mask=options["mask"], bias=options["bias"])
    assert np.all(np.abs(np.asarray(turns(q, k, v) - expected)) <= 2 * allowed(sums, size, q, k))


def test_a_mask_a_query_is_cut_with_its_queries(monkeypatch):
    """Each query sees one key, its own."""
    (q, _, v), _ = operands((1, 9, 9, 1, 8))
    mask = jnp.eye(9, dtype=bool)[None, None]
    monkeypatch.setattr(xla, "most_bytes", lambda: 4 * 9 * 2)
    np.testing.assert_array_equal(attention(q, q, v, mask=mask, implementation="xla"), v)


def test_long_sequences_are_cut_before_their_scores_fill_the_memory():
    """Two samples of 4096 tokens in 16 heads: 2 GiB of scores, of which the program holds little."""
    q = jax.ShapeDtypeStruct((2, 4096, 16, 72), jnp.bfloat16)
    program = jax.jit(plain_attention).lower(q, q, q).compile()
    assert program.memory_analysis().temp_size_in_bytes < 2**28


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": (2, 9, 4, 8)}, "tokens of q alone"),
        ({"v": (2, 8, 3, 8)}, "tokens of q alone"),
        ({"mask": (2, 1, 1, 8)}, r"the mask is \[2, 1, 1, 8\]; give \[2, 3, 5, 9\]"),
        ({"bias": (3, 3, 5, 9)}, r"the bias is \[3, 3, 5, 9\]"),
    ],
)
def test_shapes_that_do_not_fit_are_errors_that_say_what_would(change, message):
    given = {"q": (2, 5, 3, 8), "k": (2, 9, 3, 8), "v": (2, 9, 3, 8)} | change
    arrays = {name: jnp.ones(shape) for name, shape in given.items()}
    with pytest.raises(ValueError, match=message):
        check(**{"mask": None, "bias": None, "qk_bits": None} | arrays)


def test_bits_and_types_that_do_not_exist_are_errors_with_a_way_out():
    (q, k, v), _ = operands("one query")
    with pytest.raises(ValueError, match="of 4 bits do not exist here; choose None or 8"):
        plain_attention(q, k, v, qk_bits=4)
    with pytest.raises(ValueError, match="k bfloat16, v float32; cast them to one type"):
        plain_attention(q, k.astype(jnp.bfloat16), v)


HOPPER, AMPERE, TURING = Gpu("H100", (9, 0), 132), Gpu("A100", (8, 0), 108), Gpu("T4", (7, 5), 40)
NONE = {"mask": None, "bias": None, "qk_bits": None}


@pytest.mark.parametrize(
    ("size", "dtype", "gpu", "options", "reason"),
    [
        (72, jnp.bfloat16, HOPPER, {}, None),
        (13, jnp.float16, AMPERE, {}, None),  # filled up to 16
        (256, jnp.bfloat16, HOPPER, {}, None),
        (256, jnp.bfloat16, AMPERE, {}, "at most 128 numbers a head"),
        (72, jnp.float32, HOPPER, {}, "bfloat16 or float16, not float32"),
        (72, jnp.bfloat16, HOPPER, {"qk_bits": 8}, "codes of 8 bits were asked for"),
        (72, jnp.bfloat16, HOPPER, {"mask": jnp.ones((1, 1, 1, 5), bool)}, None),
        (72, jnp.float16, HOPPER, {"mask": jnp.ones((1, 1, 1, 5), bool)}, "no number low enough"),
        (72, jnp.bfloat16, HOPPER, {"bias": jnp.ones((1, 2, 4, 5), jnp.bfloat16)}, None),
        (72, jnp.bfloat16, HOPPER, {"bias": jnp.ones((1, 2, 4, 5))}, "of the type of q, bfloat16"),
    ],
)
def test_cudnn_says_what_it_does_not_take(size, dtype, gpu, options, reason):
    q = jnp.ones((1, 4, 2, size), dtype)
    found = cudnn.misfit(q, gpu, **NONE | options)
    assert (found is None) if reason is None else (reason in found)


def test_cudnn_is_for_nvidia_gpus_from_ampere_on():
    assert cudnn.wrong_device(HOPPER) is None
    assert "needs compute capability 8.0, and T4 has 7.5" in cudnn.wrong_device(TURING)
    assert "needs an NVIDIA GPU" in cudnn.wrong_device(None)


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("size", [72, 13])
def test_cudnn_attention_lowers_to_one_call_that_keeps_no_scores(monkeypatch, size, with_mask):
    """Without cuDNN on this machine JAX refuses to trace its call, though it only compares the version."""
    jax_calls_cudnn = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(jax_calls_cudnn, "check_cudnn_version", lambda: 91000)
    q = jnp.ones((2, 40, 4, size), jnp.bfloat16)
    k = jnp.ones((2, 77, 4, size), jnp.bfloat16)
    mask = jnp.ones((2, 1, 1, 77), bool) if with_mask else None
    options = {"mask": mask, "bias": None, "scale": 0.1, "qk_bits": None}
    program = jax.jit(lambda q, k: cudnn.run(q, k, k, **options))
    text = program.trace(q, k).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("stablehlo.custom_call @__cudnn$fmha") == 1
    assert ("ScaleBiasSoftmax" in text) == with_mask
    assert "dot_general" not in text
