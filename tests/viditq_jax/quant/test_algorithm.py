"""Whole plans: integer layers against their simulation, once against twice, one sample against a batch."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import PIXART, randomized
from viditq_jax.models import pixart
from viditq_jax.net import Net, abstract
from viditq_jax.nn.linear import NOTHING, linear, plain
from viditq_jax.quant.apply import quantize
from viditq_jax.quant.inputs import quantize_input
from viditq_jax.quant.observe import observe
from viditq_jax.quant.prepare import hadamard
from viditq_jax.quant.prepare.balance import Options, fit
from viditq_jax.quant.qtensor import quantize_tensor
from viditq_jax.quant.qweight import QWeight
from viditq_jax.quant.ranges import at_range
from viditq_jax.quant.recipe import Recipe, load_recipe
from viditq_jax.quant.spec import Spec
from viditq_jax.quant.stats import LayerStats, Stats

CONFIG = dataclasses.replace(PIXART, width=64, heads=2, depth=1)  # width: groups of 64
KEYS = jax.random.split(jax.random.key(4), 4)


@cache
def float_net() -> Net:
    return randomized(abstract(pixart.build, CONFIG), 1)


def forward(net: Net, y: jax.Array | None = None) -> jax.Array:
    x = jax.random.normal(KEYS[0], (2, 8, 8, 4))
    y = jax.random.normal(KEYS[1], (2, 12, 16)) if y is None else y
    prompt = net.call("encode_prompt", y, jnp.arange(12) < jnp.asarray([[5], [12]]))
    return net(x, jnp.asarray([3.0, 700.0]), prompt)


@cache
def stats(ranges: int) -> Stats:
    net = float_net()
    empty = {
        path: LayerStats.empty(weight.shape[1], ranges, gram=True) for path, weight in net.weights().items()
    }
    return jax.jit(lambda net: observe(net, forward, empty, r=slice(None), initial=True)[1])(net)


def nearest(name: str) -> Recipe:
    """A packaged recipe without its rounding method, whose codes do not matter here and take time."""
    recipe = load_recipe(name)
    rules = tuple(dataclasses.replace(rule, rounding="nearest") for rule in recipe.rules)
    return dataclasses.replace(recipe, rules=rules)


def quantized(name: str) -> Net:
    recipe = nearest(name)
    return at_range(quantize(float_net(), recipe, stats(recipe.range_count)), 0)


@dataclasses.dataclass(frozen=True)
class Simulated:
    """A quantized layer as the field simulates it: floats that were rounded, and a float product."""

    weight: QWeight

    def linear(self, x, bias, after=NOTHING):
        q = self.weight
        prepared = q.inputs(x)
        rows = quantize_input(prepared, q.act, q.act_scale, q.act_zero)
        zero = 0 if rows.zero is None else rows.zero.astype(jnp.float32)
        values = (rows.codes.astype(jnp.float32) - zero) * rows.scale
        y = linear(q.weight.dequantize(), values, bias)
        if q.branch is not None:
            y = y + q.branch.product(prepared.reshape(-1, prepared.shape[-1]))
        return after(y.reshape(*plain(x).shape[:-1], -1))


@pytest.mark.parametrize("name", ["w8a8", "naive-static-w4a8", "w4a8-timestep", "w4a4-plus", "fp8"])
def test_the_integer_path_is_its_simulation(name):
    """Kernels of the release dropped the balancing that its simulation had (D10).

    Sums differ in float32 roundings, so a code may fall to the other side: less than bfloat16 rounds, 2^-8.
    """
    net = quantized(name)
    simulated = net.map_weights(lambda _, w: Simulated(w) if isinstance(w, QWeight) else w)
    y, expected = jax.jit(forward)(net), forward(simulated)
    assert np.linalg.norm(y - expected) <= 2.0**-8 * np.linalg.norm(expected)
    float_output = forward(float_net())
    assert np.linalg.norm(y - float_output) > 1e-3 * np.linalg.norm(float_output)


def test_rounding_once_is_closer_than_rounding_after_each_transform():
    """The release rounds after scaling, and again after rotation (D8)."""
    weight = jax.random.normal(KEYS[2], (48, 64)).at[:, 5].multiply(30)
    x = jax.random.normal(KEYS[3], (1, 100, 64)).at[..., 9].multiply(30)
    balance = fit(weight, LayerStats.empty(64).update(x), Options(0.5))
    rotation = hadamard.fit(weight, None, hadamard.Options(), path="layer")
    spec = Spec.parse("int4/channel/asym")
    wanted = rotation.weight(balance.weight(weight))
    once = quantize_tensor(wanted, spec).dequantize()
    first = quantize_tensor(balance.weight(weight), spec).dequantize()
    twice = quantize_tensor(rotation.weight(first), spec).dequantize()
    assert np.linalg.norm(once - wanted) < 0.8 * np.linalg.norm(twice - wanted)


@pytest.mark.parametrize("name", ["w8a8", "w4a8-plus"])
def test_padding_tokens_of_a_prompt_change_nothing(name):
    net = quantized(name)
    y = jax.random.normal(KEYS[1], (2, 12, 16))
    changed = y.at[0, 5:].multiply(-7)
    run = jax.jit(forward)
    np.testing.assert_array_equal(run(net, y), run(net, changed))


@pytest.mark.parametrize("name", ["w8a8", "w4a8-plus"])
@pytest.mark.parametrize("batch", [4, 16])
def test_an_integer_product_is_the_same_in_every_batch(name, batch):
    """Codes, and so int32 sums, of a row do not depend on the rows beside it; their number may be odd."""
    weight = quantized(name).weights()["blocks/0/mlp/fc2"]
    without_branch = dataclasses.replace(weight, branch=None)
    x = jax.random.normal(KEYS[0], (batch, 7, 256)) * jnp.geomspace(0.1, 10, 256)
    run = jax.jit(lambda w, x: linear(w, w.inputs(x)))
    one_by_one = jnp.concatenate([run(without_branch, row[None]) for row in x])
    np.testing.assert_array_equal(run(without_branch, x), one_by_one)
