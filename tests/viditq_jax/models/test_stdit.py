import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from converters.stdit import FORMATS
from tests.checkpoints import convert_state, golden
from tests.tiny import randomized
from viditq_jax.models.stdit import CONFIGS, Config, build
from viditq_jax.net import Net, abstract, initialize
from viditq_jax.quant.apply import quantize
from viditq_jax.quant.observe import observe
from viditq_jax.quant.qweight import QWeight
from viditq_jax.quant.recipe import load_recipe
from viditq_jax.quant.stats import LayerStats, Stats

TINY = Config(
    space_scale=0.5, time_scale=2 / 3, depth=2, width=48, heads=4, caption_channels=24, text_length=7
)

forward = jax.jit(Net.__call__)
# Programs that run once: two thirds less to compile.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
encode = jax.jit(lambda net, y, mask: net.call("encode_prompt", y, mask))


def close(out: jax.Array, expected: np.ndarray) -> bool:
    """Equal but for rounding, nearly all of it PyTorch's float32 timestep frequencies."""
    return np.abs(out - expected).max() <= 1e-5 * np.abs(expected).max()


def channels_last(x: np.ndarray) -> jax.Array:
    return jnp.asarray(x.transpose(0, 2, 3, 4, 1))


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> Net:
    state, _ = golden("stdit")
    return convert_state(build, TINY, state, FORMATS["original"](TINY), tmp_path_factory.mktemp("stdit"))


@pytest.fixture(scope="module")
def inputs() -> tuple[jax.Array, ...]:
    """Latents, times, captions and masks of the golden pass; half as many masks as captions."""
    _, facts = golden("stdit")
    x, t, y, mask = (facts[f"in/{key}"] for key in ("x", "timestep", "y", "mask"))
    return channels_last(x), jnp.asarray(t, jnp.float32), jnp.asarray(y[:, 0]), jnp.asarray(mask > 0)


def test_forward_equals_the_original_model(net, inputs):
    x, t, y, mask = inputs
    expected = channels_last(golden("stdit")[1]["out"])
    assert close(forward(net, x, t, encode(net, y, mask)), expected)


def test_frames_at_one_time_are_alike(net, inputs):
    """Without their positions, frames in another order give the same frames in that order."""
    x, t, y, mask = inputs
    timeless = dataclasses.replace(TINY, time_scale=float("inf"))
    still = Net(net.params, abstract(build, timeless).graphdef)
    prompt, order = encode(net, y, mask), jnp.array([2, 0, 5, 1, 4, 3])
    assert close(forward(still, x[:, order], t, prompt), np.asarray(forward(still, x, t, prompt)[:, order]))
    moving = forward(net, x[:, order], t, prompt), np.asarray(forward(net, x, t, prompt)[:, order])
    assert not close(*moving)


def test_fewer_masks_than_captions_are_tiled(net, inputs):
    x, t, y, mask = inputs
    expected = forward(net, x, t, encode(net, y, mask))
    np.testing.assert_array_equal(forward(net, x, t, encode(net, y, jnp.concatenate([mask, mask]))), expected)
    swapped = forward(net, x, t, encode(net, y, jnp.repeat(mask, 2, axis=0)))
    assert not close(swapped, np.asarray(expected))


def test_the_keys_and_values_of_the_prompt_are_made_once(net, inputs):
    x, t, y, mask = inputs
    prompt = encode(net, y, mask)
    assert [(k.shape, v.shape) for k, v in prompt.kv] == [((4, 7, 4, 12),) * 2] * TINY.depth
    without = net.map_weights(lambda path, w: w * 0 if "kv_linear" in path or "y_embedder" in path else w)
    np.testing.assert_array_equal(forward(without, x, t, prompt), forward(net, x, t, prompt))


def test_parameters_are_as_many_as_published():
    config = dataclasses.replace(CONFIGS["stdit-xl-2-16x512x512"], with_null_caption=False)
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract(build, config))) == 759_620_768


def test_positions_are_those_of_512_pixels_and_16_frames():
    """Half as many patches are twice as far from each other; 64 frames, 12 a second, are farther."""
    for name, config in CONFIGS.items():
        frames, height, _ = map(int, name.rpartition("-")[2].split("x"))
        assert (config.frames, config.input_size, config.space_scale) == (frames, height // 8, height / 512)
        assert config.time_scale == (2 / 3 if frames == 64 else 1)


def test_bfloat16_weights_give_bfloat16_output_near_that_of_float32(net, inputs):
    x, t, y, mask = inputs
    exact = forward(net, x, t, encode(net, y, mask))
    half = net.astype(jnp.bfloat16)
    prompt = encode(half, y.astype(jnp.bfloat16), mask)
    rounded = forward(half, x.astype(jnp.bfloat16), t, prompt)
    assert rounded.dtype == jnp.bfloat16
    # About 80 roundings of 2^-9 in a row, which add up as a random walk; twice for those of the weights.
    assert jnp.abs(rounded - exact).mean() <= 2 * 80**0.5 * 2**-9 * jnp.abs(exact).mean()


def test_fresh_model_predicts_zero(inputs):
    x, t, y, mask = inputs
    fresh = quick(functools.partial(initialize, build, dataclasses.replace(TINY, depth=1)))()
    assert not forward(fresh, x, t, encode(fresh, y, mask)).any()
    weights = fresh.weights()
    assert not weights["blocks/0/attn_temp/proj"].any()
    assert weights["blocks/0/attn/proj"].any()


SMALL = dataclasses.replace(TINY, depth=1, width=64)  # of a width that blocks of 32 divide


@pytest.fixture(scope="module")
def small() -> tuple[Net, jax.Array, Stats]:
    """A random net, its output, and the statistics of its layers."""
    net = randomized(abstract(build, SMALL), 0)

    @quick
    def calibrated(net):
        start = {path: LayerStats.empty(w.shape[1], gram=True) for path, w in net.weights().items()}
        return observe(net, step, start)

    return net, *calibrated(net)


def step(net: Net) -> jax.Array:
    x, y = (
        jax.random.normal(jax.random.key(i), shape) for i, shape in ((0, (2, 3, 4, 6, 4)), (1, (2, 7, 24)))
    )
    mask = jnp.arange(7) < jnp.array([[4], [2]])
    return net(x, jnp.array([999.0, 37.0]), net.call("encode_prompt", y, mask))


def test_quantized_steps_err_as_their_steps_are_wide(small):
    """One scale for all tokens, from calibration, costs more than 4 bits that follow what calibration saw."""
    net, exact, stats = small

    @functools.partial(quick, static_argnames="name")
    def run(net, stats, name):
        done = quantize(net, load_recipe(name), stats)
        layers = [path for path, weight in done.weights().items() if isinstance(weight, QWeight)]
        assert len(layers) == 9 * SMALL.depth  # 13 in the release, where q, k and v are three
        return step(done)

    names = ("w8a8", "w8a8-dynamic", "w4a8", "naive-static-w4a8")
    error = {name: jnp.abs(run(net, stats, name) - exact).mean() / jnp.abs(exact).mean() for name in names}
    assert 0 < max(error["w8a8"], error["w8a8-dynamic"]) < error["w4a8"] < error["naive-static-w4a8"]
