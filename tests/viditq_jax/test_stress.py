"""The stressed model is the same function, and its layers meet outliers that quantization feels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from viditq_jax.evaluate.psnr import psnr
from viditq_jax.load import load_pipeline
from viditq_jax.models import dit, pixart
from viditq_jax.net import Net, abstract
from viditq_jax.nn.linear import NOTHING, After, Modulated, plain
from viditq_jax.quant.apply import quantize
from viditq_jax.quant.recipe import Recipe, Rule
from viditq_jax.quant.spec import Spec
from viditq_jax.stress import outliers, stress

X = jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
T = jnp.array([3.0, 800.0])
PIXARTS = {
    "alpha": dataclasses.replace(tiny.PIXART, micro_conditions=True, width=48),
    "sigma": tiny.PIXART,
    "kv-compress": dataclasses.replace(tiny.PIXART, kv_compress=(1,), qk_norm=True),
}
DIT = dit.Config(width=32, depth=2, heads=2, input_size=8, classes=10)
CASES = (*PIXARTS, "dit")
W8A8 = Recipe((Rule(("blocks/*",), Spec.parse("int8/channel"), Spec.parse("int8/token")),))


def model(case: str) -> Net:
    config = DIT if case == "dit" else PIXARTS[case]
    return tiny.randomized(abstract(dit.build if case == "dit" else pixart.build, config), 5)


def run(net: Net, case: str, t: jax.Array = T) -> jax.Array:
    if case == "dit":
        return net(X, t, jnp.array([3, 10]))
    y = jax.random.normal(jax.random.key(1), (2, 5, 16))
    side = jnp.full(2, 64.0)
    size = pixart.Size(side, side, jnp.ones(2)) if case == "alpha" else None
    return net(X, t, net.call("encode_prompt", y, jnp.array([[True] * 5, [True] * 3 + [False] * 2])), size)


@dataclasses.dataclass(frozen=True, eq=False)
class Listening:
    """A weight that keeps its input; a plain list stands outside of every transform."""

    weight: jax.Array
    heard: list

    def linear(self, x: jax.Array | Modulated, bias: jax.Array | None, after: After = NOTHING) -> jax.Array:
        x = plain(x)
        self.heard.append(np.asarray(x, np.float32).reshape(-1, x.shape[-1]))
        return after(x @ self.weight.T + (0 if bias is None else bias))


def inputs(net: Net, case: str, t: jax.Array = T) -> dict[str, np.ndarray]:
    """What each layer is given, as rows."""
    heard: dict[str, list] = {path: [] for path in net.weights()}
    run(net.map_weights(lambda path, weight: Listening(weight, heard[path])), case, t)
    return {path: np.concatenate(each) for path, each in heard.items() if each}


@pytest.mark.parametrize("case", CASES)
def test_the_output_is_unchanged(case: str) -> None:
    net = model(case)
    before, after = run(net, case), run(stress(net), case)
    # float32 keeps 2^-24 of each sum; some thousand roundings of like size in a row stay far below 1e-4.
    assert jnp.linalg.norm(after - before) <= 1e-4 * jnp.linalg.norm(before)


@pytest.mark.parametrize("case", CASES)
def test_the_planned_channels_are_the_outliers_and_no_others(case: str) -> None:
    net = model(case)
    before, after = inputs(net, case), inputs(stress(net), case)
    planned = {item.layer: item for item in outliers(net)}
    changed = {path for path in before if not np.allclose(before[path], after[path], rtol=1e-3, atol=1e-3)}
    assert changed == planned.keys()
    for path, item in planned.items():
        gain = np.ones(before[path].shape[1])
        gain[list(item.channels)] = item.gains
        np.testing.assert_allclose(after[path], before[path] * gain, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("case", CASES)
def test_outliers_are_as_large_as_asked_where_they_are_loudest(case: str) -> None:
    found = outliers(model(case), factor=50.0, channels=3)
    for item in found:
        assert len(item.channels) == len(set(item.channels)) == 3
        assert all(np.log2(item.gains) % 1 == 0)
        if case == "dit" or item.layer.endswith("proj"):  # not shared by blocks
            assert min(item.loud) >= 50
            assert max(item.loud) < 100
    modulated = [item for item in found if not item.layer.endswith("proj")]
    assert np.mean([item.loud for item in modulated]) > 50


def test_layers_whose_values_pass_a_norm_are_left_alone() -> None:
    layers = {item.layer for item in outliers(model("kv-compress"))}
    assert "blocks/0/attn/proj" in layers
    assert "blocks/1/attn/proj" not in layers
    assert "blocks/1/cross_attn/proj" in layers


def test_the_packaged_model_meets_outliers_that_come_and_go_with_time() -> None:
    net = load_pipeline(dtype=jnp.float32).denoiser
    for item in outliers(net):
        if item.layer.endswith(("qkv", "fc1")):
            assert max(item.loud) > 50
            assert np.min(np.array(item.quiet) / item.loud) < 0.6


def test_the_packaged_model_paints_the_same_pictures() -> None:
    pipeline = load_pipeline(dtype=jnp.float32)
    stressed = dataclasses.replace(pipeline, denoiser=stress(pipeline.denoiser))
    before, after = (each(["red apple"], seed=0, steps=4)[0] for each in (pipeline, stressed))
    # 8-bit pictures differ by rounding alone where latents do by 1e-4: an even half step is 59 dB.
    assert psnr(after, before) > 55


def test_int8_inputs_lose_much_more_on_the_stressed_model() -> None:
    net, recipe = model("sigma"), W8A8
    exact, hard = inputs(net, "sigma"), inputs(stress(net), "sigma")
    stressed = stress(net)
    errors = []
    for each, rows in ((net, exact), (stressed, hard)):
        weights, quantized = each.weights(), quantize(each, recipe).weights()
        path = "blocks/0/attn/qkv"
        x = jnp.asarray(rows[path])
        y = x @ weights[path].T
        errors.append(float(jnp.linalg.norm(quantized[path].linear(x, None) - y) / jnp.linalg.norm(y)))
    assert errors[1] > 10 * errors[0]


def test_what_cannot_be_stressed_is_refused() -> None:
    with pytest.raises(ValueError, match="modulates its blocks in no way that is known"):
        stress(tiny.pipeline().decoder)
    with pytest.raises(ValueError, match="hold no float weights"):
        stress(quantize(model("sigma"), W8A8))
    with pytest.raises(ValueError, match="33 outlier channels"):
        stress(model("sigma"), channels=33)
    with pytest.raises(ValueError, match="factor from 1"):
        stress(model("sigma"), factor=0.5)
