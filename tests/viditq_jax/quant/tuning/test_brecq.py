"""brecq: codes of whole blocks that follow the float blocks better than those before."""

import dataclasses
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.tiny import PIXART, randomized
from tests.viditq_jax.quant.toy import toy
from viditq_jax.models import dit, pixart
from viditq_jax.net import Net, abstract
from viditq_jax.nn.linear import Linear
from viditq_jax.quant.apply import quantize
from viditq_jax.quant.observe import observe
from viditq_jax.quant.qweight import code_sums
from viditq_jax.quant.ranges import PerRange
from viditq_jax.quant.recipe import Recipe, Rule
from viditq_jax.quant.spec import Spec
from viditq_jax.quant.stats import Stats
from viditq_jax.quant.tuning.brecq import Options, tune

QUICK = Options(iterations=60, batch=32)


def recipe(weight: str, act: str | None) -> Recipe:
    return Recipe((Rule(("blocks/*",), Spec.parse(weight), act and Spec.parse(act)),))


class Block(nnx.Module):
    """x + fc2(relu(fc1(x)) * c), repeated; `unused` is never called."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.fc1 = Linear(16, 32, rngs=rngs)
        self.fc2 = Linear(32, 16, rngs=rngs)
        self.unused = Linear(16, 16, rngs=rngs)

    def __call__(self, x: jax.Array, c: jax.Array, times: int) -> jax.Array:
        for _ in range(times):
            x = x + self.fc2(jax.nn.relu(self.fc1(x)) * c)
        return x


class Chain(nnx.Module):
    """Two blocks, which have a number of times beside arrays, and a last layer."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.blocks = nnx.List([Block(rngs=rngs) for _ in range(2)])
        self.last = Linear(16, 4, rngs=rngs)

    def __call__(self, x: jax.Array, c: jax.Array) -> jax.Array:
        for block in self.blocks:
            x = block(x, c, 2)
        return self.last(x)


@cache
def chain() -> Net:
    return Net.of(Chain(rngs=nnx.Rngs(0)))


def pairs(seed: int, count: int = 8) -> list[tuple[jax.Array, jax.Array]]:
    keys = jax.random.split(jax.random.key(seed), 2 * count)
    return [
        (jax.random.normal(keys[2 * i], (64, 16)), jax.random.normal(keys[2 * i + 1], (64, 1)))
        for i in range(count)
    ]


def call(net: Net, batch: Any) -> jax.Array:
    return net(*batch)


def error(run: Any, net: Net, target: Net, batches: list[Any]) -> float:
    """Squared error of the model's output, relative to its size."""
    compiled = jax.jit(run)
    outputs = [(compiled(net, batch), compiled(target, batch)) for batch in batches]
    return float(
        sum(jnp.square(a - b).sum() for a, b in outputs) / sum(jnp.square(b).sum() for _, b in outputs)
    )


def statistics(net: Net, run: Any, batches: list[Any]) -> Stats:
    stats: Stats = {}
    for batch in batches:
        _, stats = observe(net, lambda tapped, batch=batch: run(tapped, batch), stats)
    return stats


def assert_same_layout(a: Net, b: Net) -> None:
    assert a.graphdef == b.graphdef
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)


def changed(a: Net, b: Net) -> set[str]:
    """The layers whose codes differ."""
    old, new = a.weights(), b.weights()
    return {
        path
        for path in old
        if any(
            not np.array_equal(x, y)
            for x, y in zip(jax.tree.leaves(old[path]), jax.tree.leaves(new[path]), strict=True)
        )
    }


@cache
def tuned_chain() -> tuple[Net, Net]:
    """Before and after."""
    small = quantize(chain(), recipe("int4/channel/asym", "int8/token/asym"))
    return small, tune(small, chain(), call, pairs(0), QUICK)


def test_outputs_come_closer_also_on_other_inputs():
    small, tuned = tuned_chain()
    seen, other = pairs(0), pairs(1)
    assert error(call, tuned, chain(), seen) < 0.7 * error(call, small, chain(), seen)
    assert error(call, tuned, chain(), other) < error(call, small, chain(), other)


def test_codes_change_by_one_where_the_block_is_called_and_nowhere_else():
    """In the released code learned rounding changed nothing (D5)."""
    small, tuned = tuned_chain()
    assert changed(small, tuned) == {f"blocks/{i}/{layer}" for i in range(2) for layer in ("fc1", "fc2")}
    for path in changed(small, tuned):
        old, new = small.weights()[path], tuned.weights()[path]
        moved = new.weight.codes().astype(int) - old.weight.codes().astype(int)
        assert set(np.unique(moved)) == {-1, 0, 1}, path
        assert 0.02 < np.mean(moved != 0) < 0.5, path  # few numbers are closer to the middle than to a code


def test_the_layout_stays_and_sums_follow_the_codes():
    small, tuned = tuned_chain()
    assert_same_layout(small, tuned)
    for weight in (tuned.weights()[path] for path in changed(small, tuned)):
        np.testing.assert_array_equal(weight.weight_sum, code_sums(weight.weight))


def test_the_same_seed_gives_the_same_codes():
    small, tuned = tuned_chain()
    assert changed(tuned, tune(small, chain(), call, pairs(0), QUICK)) == set()
    assert changed(tuned, tune(small, chain(), call, pairs(0), dataclasses.replace(QUICK, seed=1)))


def test_a_block_that_would_become_worse_stays():
    """One step of a huge rate rounds every number by the sign of its gradient: worse than to nearest."""
    small = quantize(chain(), recipe("int8/channel", "int8/token"))
    steps: list[int] = []
    wild = Options(iterations=1, batch=32, rate=1e3)
    after = tune(small, chain(), call, pairs(0), wild, advance=steps.append)
    assert changed(small, after) == set()
    assert steps == [1, 1]


def test_static_scales_are_trained_if_asked():
    net, batches = chain(), pairs(0)
    rules = (Rule(("*/fc?",), Spec.parse("int8/channel"), Spec.parse("int3/tensor/asym/static")),)
    small = quantize(net, Recipe(rules), statistics(net, call, batches))
    tuned = tune(small, net, call, batches, dataclasses.replace(QUICK, act_rate=0.01))
    before, after = (n.weights()["blocks/0/fc1"].act_scale for n in (small, tuned))
    # 60 steps of Adam, each at most the rate or little more
    assert 0 < abs(float(np.log(after / before)[0, 0])) < 1.0
    assert error(call, tuned, net, batches) < error(call, small, net, batches)
    assert_same_layout(small, tuned)


def tiny_pixart() -> tuple[Net, Any, list[Any]]:
    def run(net: Net, batch: Any) -> jax.Array:
        x, t, y = batch
        return net(x, t, net.call("encode_prompt", y, jnp.arange(12) < jnp.asarray([[5], [12]])))

    return randomized(abstract(pixart.build, PIXART), 1), run, [calls(seed, (2, 12, 16)) for seed in range(4)]


def tiny_dit() -> tuple[Net, Any, list[Any]]:
    def run(net: Net, batch: Any) -> jax.Array:
        x, t, _ = batch
        return net(x, t, jnp.arange(2))

    config = dit.Config(width=32, depth=2, heads=2, input_size=8, classes=4)
    return randomized(abstract(dit.build, config), 1), run, [calls(seed, (1,)) for seed in range(4)]


def calls(seed: int, features: tuple[int, ...]) -> tuple[jax.Array, ...]:
    x, t, y = jax.random.split(jax.random.key(seed), 3)
    noise = jax.random.normal(x, (2, 8, 8, 4))
    return noise, 999 * jax.random.uniform(t, (2,)), jax.random.normal(y, features)


@pytest.mark.parametrize("model", [tiny_pixart, tiny_dit])
def test_transformers_come_closer(model):
    net, run, batches = model()
    small = quantize(net, recipe("int4/channel/asym", "int8/token"))
    tuned = tune(small, net, run, batches, QUICK)
    assert error(run, tuned, net, batches) < 0.7 * error(run, small, net, batches)
    assert_same_layout(small, tuned)
    once = {
        path for path in net.weights() if path.endswith("kv_linear")
    }  # made once a prompt, not by the block
    assert changed(small, tuned) == {path for path in net.weights() if path.startswith("blocks/")} - once


def test_what_cannot_be_tuned_is_refused_with_its_layers():
    small, _ = tuned_chain()
    ranged = small.map_weights(
        lambda path, weight: PerRange.of([weight, weight]) if path == "blocks/0/fc1" else weight
    )
    with pytest.raises(ValueError, match=r"blocks/0/fc1: changes over the denoising ranges\. Give them"):
        tune(ranged, chain(), call, pairs(0))
    floats = quantize(chain(), recipe("fp8/channel", "fp8/token"))
    with pytest.raises(ValueError, match=r"blocks/0/fc1: fp8/channel is no integer.*and 1 more"):
        tune(floats, chain(), call, pairs(0))
    with pytest.raises(ValueError, match="this model has none"):
        tune(toy(), toy(), call, [])


def test_calls_that_do_not_fit_are_refused():
    small, _ = tuned_chain()
    with pytest.raises(ValueError, match="run called 4 blocks, and the model has 2"):
        tune(small, chain(), lambda net, batch: net(*batch) + net(*batch), pairs(0))
    shared = [(x, c[:1]) for x, c in pairs(0)]
    with pytest.raises(ValueError, match=r"given \(1, 1\) beside 64 samples"):
        tune(small, chain(), call, shared)
    with pytest.raises(ValueError, match="no calls"):
        tune(small, chain(), call, [])


@pytest.mark.parametrize(
    "wrong",
    [
        dict(iterations=0),
        dict(batch=0),
        dict(times=0),
        dict(rate=0.0),
        dict(regularization=-1.0),
        dict(warmup=0.9),
        dict(act_rate=-1e-5),
        dict(seed=-1),
    ],
)
def test_impossible_options_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Options(**wrong)
