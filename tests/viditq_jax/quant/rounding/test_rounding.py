"""What is true of every rounding method."""

import dataclasses
from functools import partial
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.viditq_jax.quant.correlated import correlated
from viditq_jax import plugins
from viditq_jax.quant.qtensor import QTensor
from viditq_jax.quant.rounding import _grid
from viditq_jax.quant.spec import Spec

PACKAGE = "viditq_jax.quant.rounding"
METHODS = plugins.names(PACKAGE)
OTHERS = [name for name in METHODS if name != "nearest"]
WEIGHING = [name for name in METHODS if plugins.find(PACKAGE, name).NEEDS_GRAM]
SPECS = ["int8/tensor/asym", "int4/channel", "int2/group32/asym", "int8/group64"]


def method(name: str) -> ModuleType:
    return plugins.find(PACKAGE, name)


def quick(name: str):
    """The default options, with fewer iterations."""
    options = method(name).Options()
    return dataclasses.replace(options, iterations=40) if name == "adaround" else options


def fit(name: str, weight, spec: Spec, gram) -> QTensor:
    return method(name).fit(weight, spec, gram, quick(name))


def assert_valid(q: QTensor, weight: jax.Array, spec: Spec) -> None:
    assert q.spec == spec
    assert q.shape == weight.shape
    low, high = _grid.code_range(spec)
    codes = np.asarray(q.codes())
    assert codes.min() >= low
    assert codes.max() <= high
    assert (q.zero is None) == spec.symmetric
    assert np.all(np.isfinite(q.scale))
    assert np.all(np.asarray(q.scale) > 0)
    assert np.all(np.isfinite(q.dequantize()))


def test_files_with_an_underscore_are_no_methods():
    assert METHODS == ["adaround", "gptq", "nearest", "search"]


@pytest.mark.parametrize("text", SPECS)
@pytest.mark.parametrize("name", METHODS)
def test_codes_scales_and_storage_are_those_of_the_spec(name, text):
    spec = Spec.parse(text)
    weight, gram = correlated()
    q, nearest = fit(name, weight, spec, gram), method("nearest").fit(weight, spec)
    assert_valid(q, weight, spec)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), q) == jax.tree.map(
        lambda x: (x.shape, x.dtype), nearest
    )


@pytest.mark.parametrize("text", ["int2/group32/asym", "int4/channel"])
@pytest.mark.parametrize("name", METHODS)
def test_shapes_alone_give_the_shapes_of_the_result(name, text):
    weight, gram = correlated()
    run = partial(fit, name, spec=Spec.parse(text))
    abstract = jax.eval_shape(run, weight, gram=gram)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), run(weight, gram=gram)) == jax.tree.map(
        lambda x: (x.shape, x.dtype), abstract
    )


def odd_weight(weight: jax.Array) -> jax.Array:
    """A row of zeros, a constant row, one huge outlier, tiny numbers, one sign."""
    weight = weight.at[0].set(0).at[1].set(0.3).at[2, 3].set(1e6)
    return weight.at[3].multiply(1e-12).at[4].set(jnp.abs(weight[4]))


def grams(gram: jax.Array) -> dict[str, jax.Array]:
    few = correlated(k=len(gram), rows=3)[1]
    return {
        "dead inputs": gram.at[5:9].set(0).at[:, 5:9].set(0),
        "fewer rows than inputs": few,
        "a single row": jnp.ones_like(gram),
        "no row": jnp.zeros_like(gram),
        "huge": 1e12 * gram,
        "tiny": 1e-12 * gram,
        "one loud input": gram.at[7].multiply(1e3).at[:, 7].multiply(1e3),
    }


@pytest.mark.parametrize("text", ["int4/channel", "int2/group32/asym", "int8/tensor/asym"])
@pytest.mark.parametrize("name", METHODS)
def test_odd_weights_and_inputs_give_finite_results(name, text):
    spec = Spec.parse(text)
    weight, gram = correlated()
    for case, odd in grams(gram).items():
        q = fit(name, odd_weight(weight), spec, odd)
        assert_valid(q, weight, spec)
        assert np.all(np.asarray(q.dequantize()[0]) == 0), case
    # a row that nothing disturbs is as if the odd ones were not there
    if "tensor" not in text:
        plain, among = (fit(name, w, spec, gram) for w in (weight, odd_weight(weight)))
        np.testing.assert_array_equal(among.dequantize()[5], plain.dequantize()[5])


@pytest.mark.parametrize("text", SPECS)
@pytest.mark.parametrize("name", WEIGHING)
def test_no_row_is_worse_than_by_nearest_rounding(name, text):
    """On the error of the outputs. Both sums are of float32 numbers, 64 x 64 of them: 4096 * 2**-24."""
    spec = Spec.parse(text)
    weight, gram = correlated()
    error = {
        m: _grid.output_error(weight - fit(m, weight, spec, gram).dequantize(), gram)
        for m in (name, "nearest")
    }
    if "tensor" in text:
        error = {m: e.sum(keepdims=True) for m, e in error.items()}
    assert np.all(error[name] <= error["nearest"] * (1 + 2.0**-12))


@pytest.mark.parametrize("name", WEIGHING)
def test_a_method_that_weighs_by_the_inputs_says_when_it_has_none(name):
    with pytest.raises(ValueError, match="Gram matrix"):
        fit(name, jnp.ones((4, 64)), Spec.parse("int8/channel"), None)


@pytest.mark.parametrize("name", METHODS)
def test_a_shape_that_does_not_fit_the_spec_is_refused(name):
    with pytest.raises(ValueError, match="groups of 64 do not divide"):
        fit(name, jnp.ones((4, 96)), Spec.parse("int4/group64"), jnp.eye(96))


@pytest.mark.parametrize("name", OTHERS)
def test_only_nearest_rounds_to_floats(name):
    @dataclasses.dataclass(frozen=True)
    class Floats(Spec):
        kind: str = "fp"

    with pytest.raises(ValueError, match="round floats with nearest"):
        fit(name, jnp.ones((4, 64)), Floats(8, "channel"), jnp.eye(64))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("search", {"steps": 1}),
        ("search", {"smallest": 0.0}),
        ("search", {"smallest": 1.0}),
        ("search", {"norm": 0.5}),
        ("gptq", {"damping": 0.0}),
        ("gptq", {"range": "best"}),
        ("adaround", {"iterations": 0}),
        ("adaround", {"rate": 0.0}),
        ("adaround", {"strength": -1.0}),
        ("adaround", {"warmup": 0.9}),
        ("adaround", {"range": "gptq"}),
    ],
)
def test_impossible_options_are_refused_by_name(name, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        method(name).Options(**options)
