import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from converters.stdit3 import FORMATS
from tests.checkpoints import convert_state, golden
from viditq_jax.models.stdit3 import CONFIGS, Clip, Config, build, places
from viditq_jax.net import Net, abstract, initialize
from viditq_jax.nn.embed import sincos_2d
from viditq_jax.nn.video import Grid, rotate

TINY = Config(depth=2, width=48, heads=4, caption_channels=24, text_length=7)

forward = jax.jit(Net.__call__)
encode = jax.jit(lambda net, y, mask: net.call("encode_prompt", y, mask))


def close(out: jax.Array, expected: np.ndarray) -> bool:
    """Equal but for rounding, nearly all of it PyTorch's float32 timestep frequencies."""
    return np.abs(out - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.fixture(scope="module", params=["stdit3", "stdit3_xmask"])
def passed(request, tmp_path_factory):
    """A net, the inputs of its golden pass (x_mask last, or None), and the output."""
    state, facts = golden(request.param)
    net = convert_state(build, TINY, state, FORMATS["original"](TINY), tmp_path_factory.mktemp("stdit3"))
    x, out = (jnp.asarray(facts[key].transpose(0, 2, 3, 4, 1)) for key in ("in/x", "out"))
    y, mask = jnp.asarray(facts["in/y"][:, 0]), jnp.asarray(facts["in/mask"] > 0)
    clip = Clip(*(jnp.asarray(facts[f"in/{key}"]) for key in ("fps", "height", "width")))
    x_mask = jnp.asarray(facts["in/x_mask"]) if "in/x_mask" in facts else None
    return net, (x, jnp.asarray(facts["in/timestep"]), encode(net, y, mask), clip, x_mask), out


def test_forward_equals_the_original_model(passed):
    net, inputs, out = passed
    assert inputs[0].shape[2:4] == (7, 11)  # patches of 2 do not fill it
    assert close(forward(net, *inputs), np.asarray(out))


def test_a_mask_of_no_given_frames_changes_nothing(passed):
    net, (x, t, prompt, clip, _), _ = passed
    every = forward(net, x, t, prompt, clip, jnp.ones(x.shape[:2], bool))
    assert close(every, np.asarray(forward(net, x, t, prompt, clip, None)))


def test_a_rotation_keeps_lengths_and_what_queries_see_of_keys_that_are_equally_far():
    q, k = np.random.default_rng(0).standard_normal((2, 1, 1, 3, 12), np.float32).repeat(6, axis=2)
    a, b = (np.asarray(rotate(jnp.asarray(x))) for x in (q, k))
    np.testing.assert_allclose(np.linalg.norm(a, axis=-1), np.linalg.norm(q, axis=-1), rtol=1e-6)
    np.testing.assert_allclose(a[:, 0], q[:, 0])
    scores = np.einsum("bthd,blhd->bhtl", a, b)
    for lag in range(6):
        diagonal = np.diagonal(scores, lag, 2, 3)
        np.testing.assert_allclose(diagonal, diagonal[..., :1].repeat(6 - lag, -1), rtol=1e-5, atol=1e-5)


def test_positions_are_those_of_a_square_of_as_many_patches():
    """A grid of 6x24 spans what one of 12x12 does; twice the pixels a side put patches half as far."""
    both = places(48, Grid(3, 6, 24), jnp.array([1.0, 2.0]))
    for found, scale in zip(both, (1, 2), strict=True):
        np.testing.assert_allclose(found, sincos_2d(48, 6, 24, 2 / scale, 0.5 / scale), atol=1e-5)


def test_parameters_are_as_many_as_published():
    """The published count holds the 36 frequencies of the rotation, which are computed here."""
    config = dataclasses.replace(CONFIGS["stdit3-xl-2"], with_null_caption=False)
    one, two = (
        sum(leaf.size for leaf in jax.tree.leaves(abstract(build, dataclasses.replace(config, depth=n))))
        for n in (1, 2)
    )
    assert one + (config.depth - 1) * (two - one) + 36 == 1_207_643_972


def test_fresh_model_predicts_zero():
    config = dataclasses.replace(TINY, depth=1)
    fresh = jax.jit(
        functools.partial(initialize, build, config),
        compiler_options={"xla_backend_optimization_level": 0},
    )()
    weights = fresh.weights()
    zero = {path for path, weight in weights.items() if not weight.any()}
    block = "blocks/0"
    assert zero == {
        "final_layer/linear", f"{block}/spatial/cross_attn/proj", f"{block}/temporal/cross_attn/proj",
        f"{block}/temporal/attn/proj", f"{block}/temporal/mlp/fc2",
    }  # fmt: skip
