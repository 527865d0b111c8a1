"""What quantize_rows does to its rows first: every implementation against the steps taken by hand."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import dispatch
from pallas_kernels.hadamard import hadamard, matrix
from pallas_kernels.quantize_rows import quantize_rows
from pallas_kernels.quantize_rows.cases import FUSED
from tests.pallas_kernels.same_rows import assert_same, assert_within_the_contract
from tests.pallas_kernels.unsupported import skip_unsupported
from viditq_jax.nn.linear import Modulated

STATIC = ("eps", "activation", "block", "regular", "bits", "symmetric", "dtype", "with_sum", "implementation")
jitted = jax.jit(quantize_rows, static_argnames=STATIC)
IMPLEMENTATIONS = dispatch.implementations("quantize_rows")
FP8 = jnp.float8_e4m3fn
X = jax.random.normal(jax.random.key(0), (6, 64))
MODULATION = (
    jax.random.normal(jax.random.key(1), (3, 64)),
    jax.random.normal(jax.random.key(2), (3, 64)) / 4,
)
BALANCE = jnp.exp(jax.random.normal(jax.random.key(3), (64,)))
SIGNS = jnp.asarray([0b10000001, 0, 255, 3, 1, 128, 90, 7], jnp.uint8)
STEPS = {
    "modulation": dict(modulation=MODULATION),
    "activation": dict(activation="gelu"),
    "balance": dict(balance=BALANCE),
    "rotation": dict(block=16, signs=SIGNS),
    "all": dict(modulation=MODULATION, activation="gelu", balance=BALANCE, block=64, signs=SIGNS),
}


@pytest.fixture(params=IMPLEMENTATIONS)
def quantize(request):
    return skip_unsupported(functools.partial(jitted, implementation=request.param))


@pytest.fixture(params=STEPS)
def steps(request):
    return STEPS[request.param]


def operands(case):
    """x in bfloat16, as models have it, and the steps of a case."""
    m, k, groups, activation, balanced, block, regular = FUSED[case]
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((m, k)) * 2 + 0.3, jnp.bfloat16)
    options = dict(activation=activation, block=block, regular=regular)
    if groups is not None:
        options["modulation"] = tuple(
            jnp.asarray(rng.standard_normal((groups, k)) * spread, jnp.bfloat16) for spread in (1, 0.3)
        )
    if balanced:
        options["balance"] = jnp.asarray(np.exp(rng.standard_normal(k)), jnp.float32)
    if block is not None:
        options["signs"] = jnp.asarray(rng.integers(0, 256, -(-k // 8)), jnp.uint8)
    return x, options


def by_hand(
    x,
    *,
    modulation=None,
    eps=1e-6,
    activation=None,
    balance=None,
    signs=None,
    block=None,
    regular=False,
):
    """The steps of the contract in float64."""
    x = np.asarray(x, np.float64)
    if modulation is not None:
        rows = len(x) // len(modulation[0])
        shift, scale = (np.repeat(np.asarray(each, np.float64), rows, axis=0) for each in modulation)
        deviation = x - x.mean(1, keepdims=True)
        x = deviation / np.sqrt((deviation**2).mean(1, keepdims=True) + eps) * (1 + scale) + shift
    if activation == "gelu":
        x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    if balance is not None:
        x = x / np.asarray(balance, np.float64)
    if signs is not None:
        x = x * (1 - 2.0 * np.unpackbits(np.asarray(signs), count=x.shape[1]))
    if block is not None:
        h = matrix(block, regular).astype(np.float64)
        x = (x.reshape(-1, block) @ h).reshape(x.shape) / np.sqrt(block)
    return x


def codes_of(x, **options):
    """Of rows after the steps, which test_quantize_rows.py knows."""
    return jitted(jnp.asarray(x, jnp.float32), **options, implementation="reference")


@pytest.mark.parametrize("case", FUSED)
def test_rows_are_those_of_the_steps_taken_by_hand(quantize, case):
    x, options = operands(case)
    rows = quantize(x, **options)
    assert_within_the_contract(rows, codes_of(by_hand(x, **options)))


def test_the_reference_takes_the_steps_too():
    """Of which XLA is given all but the fast rotation."""
    rows = jitted(X, **STEPS["all"], implementation="reference")
    assert_within_the_contract(rows, codes_of(by_hand(X, **STEPS["all"])))


@pytest.mark.parametrize(
    "codes",
    [dict(symmetric=False, with_sum=True), dict(bits=4), dict(bits=6, symmetric=False), dict(dtype=FP8)],
    ids=["int8 asym", "int4", "int6 asym", "fp8"],
)
def test_all_kinds_of_codes_come_after_the_steps(quantize, codes):
    expected = codes_of(by_hand(X, **STEPS["all"]), **codes)
    rows = quantize(X, **STEPS["all"], **codes)
    assert_within_the_contract(rows, expected)
    if codes.get("with_sum"):
        np.testing.assert_array_equal(rows.sum, np.asarray(rows.codes, int).sum(1, keepdims=True))


def test_a_static_scale_is_of_what_the_steps_make(quantize, steps):
    given = dict(scale=jnp.asarray([[0.02]]), zero=jnp.asarray([[-5]], jnp.int8), symmetric=False)
    expected = codes_of(by_hand(X, **steps), **given)
    assert_within_the_contract(quantize(X, **steps, **given), expected)


def test_a_balance_by_powers_of_two_divides_bit_for_bit(quantize):
    balance = 2.0 ** jnp.round(4 * jax.random.normal(jax.random.key(4), (64,)))
    assert_same(quantize(X, balance=balance), codes_of(X / balance))


def test_a_balance_of_one_and_blocks_of_one_channel_change_nothing(quantize):
    assert_same(quantize(X, balance=jnp.ones(64), block=1), quantize(X))


@pytest.mark.parametrize("block", [16, 64])
def test_rotated_integers_are_quantized_bit_for_bit(quantize, block):
    """Sums of 64 integers are exact in any order, and 1 / sqrt(block) is a power of 2."""
    x = np.random.default_rng(0).integers(-100, 101, (6, 64)).astype(np.float32)
    expected = by_hand(x, signs=SIGNS, block=block).astype(np.float32)
    assert_same(
        quantize(jnp.asarray(x), signs=SIGNS, block=block),
        codes_of(expected),
    )


def test_a_rotation_is_that_of_the_hadamard_op(quantize):
    for regular in (False, True):
        rows = quantize(X, block=64, regular=regular)
        expected = codes_of(hadamard(X, block=64, regular=regular))
        assert_within_the_contract(rows, expected)


def test_signs_of_zero_and_signs_of_one_give_opposite_rows(quantize):
    plain = quantize(X, block=16)
    assert_same(quantize(X, block=16, signs=jnp.zeros(8, jnp.uint8)), plain)
    assert_same(quantize(-X, block=16, signs=jnp.full(8, 255, jnp.uint8)), plain)


@pytest.mark.parametrize("balance", [None, BALANCE], ids=["unbalanced", "balanced"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_modulated_rows_are_those_of_the_model_bit_for_bit(dtype, balance):
    """As one program each, which is how both run."""
    x, shift, scale = (each.astype(dtype) for each in (X, *MODULATION))

    @jax.jit
    def of_the_model(x, shift, scale, balance):
        rows = Modulated(x.reshape(3, 2, 64), shift[:, None], scale[:, None]).float32(balance)
        return quantize_rows(rows.reshape(6, 64), implementation="xla")

    expected = of_the_model(x, shift, scale, balance)
    assert_same(jitted(x, modulation=(shift, scale), balance=balance, implementation="xla"), expected)


def test_each_group_of_rows_has_its_own_modulation(quantize):
    together = quantize(X, modulation=MODULATION)
    for i in range(3):
        rows, one = slice(2 * i, 2 * i + 2), tuple(each[i : i + 1] for each in MODULATION)
        assert_within_the_contract(
            jax.tree.map(lambda each, rows=rows: each[rows], together), quantize(X[rows], modulation=one)
        )


def test_the_norm_removes_the_mean_and_the_size_of_a_row(quantize):
    """Up to eps, and by powers of 2, so that float32 sees the same digits."""
    x = jnp.round(X * 256)
    expected = quantize(x, modulation=MODULATION, eps=0.0)
    assert_within_the_contract(quantize(64 * x, modulation=MODULATION, eps=0.0), expected)
    assert_within_the_contract(quantize(x + 2048, modulation=MODULATION, eps=0.0), expected)


def test_a_constant_row_becomes_the_shift(quantize):
    """0 * rsqrt(eps) is 0; of 64 equal powers of 2 the mean is exact."""
    x = jnp.asarray([[0.0], [2.0], [-0.5]]) * jnp.ones((3, 64))
    assert_same(quantize(x, modulation=MODULATION), quantize(MODULATION[0]))


def test_a_zero_row_stays_zero_through_activation_balance_and_rotation(quantize):
    rows = quantize(jnp.zeros((2, 64)), activation="gelu", balance=BALANCE, signs=SIGNS, block=64)
    np.testing.assert_array_equal(rows.codes, 0)
    assert np.all(np.isfinite(rows.scale))


def test_huge_finite_rows_survive_the_activation(quantize):
    """x**3 overflows and tanh of it is 1 or -1: gelu(x) is x or 0."""
    rows = quantize(jnp.asarray([[1e30, -1e30, 5e29, 0.0]]), activation="gelu")
    np.testing.assert_array_equal(rows.codes, [[127, 0, 64, 0]])
    np.testing.assert_allclose(rows.scale, [[1e30 / 127]], rtol=2.0**-20)


@pytest.mark.parametrize("static", [False, True])
def test_a_row_that_is_not_finite_gets_the_scale_nan_and_others_are_untouched(quantize, steps, static):
    given = {"scale": jnp.asarray([[0.02]])} if static else {}
    bad, others = np.asarray([0, 1, 4]), np.asarray([2, 3, 5])
    rows = quantize(X.at[bad, 17].set(jnp.asarray([np.nan, np.inf, -np.inf])), **steps, **given)
    clean = quantize(X, **steps, **given)
    assert np.all(np.isnan(rows.scale[bad]))
    if not static:
        np.testing.assert_array_equal(rows.codes[bad], 0)
    assert_same(*(jax.tree.map(lambda each: each[others], each) for each in (rows, clean)))
    assert np.all(np.isfinite(clean.scale))


def test_steps_that_do_not_fit_are_refused():
    unchecked = inspect.unwrap(quantize_rows)  # without the shapes that only tests check
    shift, scale = MODULATION
    refused = [
        (dict(modulation=(shift[:, :32], scale[:, :32])), r"\[3, 32\].* give shift and scale \[b, 64\]"),
        (dict(modulation=(shift, scale[:1])), r"\[3, 64\] and \[1, 64\]; give"),
        (dict(modulation=(jnp.zeros((4, 64)),) * 2), "b a divisor of 6: a row for each sample"),
        (dict(activation="relu"), "activation 'relu' does not exist here; choose None or 'gelu'"),
        (dict(balance=jnp.ones(32)), r"balance is \[32\]; give a factor for each of 64 channels"),
        (dict(signs=SIGNS), "they go with a rotation: give a block"),
        (dict(regular=True), "they go with a rotation: give a block"),
        (dict(block=24), "blocks of 24 channels do not divide 64 channels; blocks that fit"),
        (dict(block=16, signs=SIGNS[:4]), r"signs are \[4\] bytes; 64 channels need 8"),
    ]
    for options, reason in refused:
        with pytest.raises(ValueError, match=reason):
            unchecked(X, **options)
