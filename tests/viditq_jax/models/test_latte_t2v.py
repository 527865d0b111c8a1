import dataclasses

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from converters.latte_t2v import FORMATS
from tests.checkpoints import convert_state
from tests.torch_params import randomize
from viditq_jax.models.latte_t2v import CONFIGS, Config, build
from viditq_jax.net import Net, abstract

TINY = Config(frames=5, input_size=8, text_length=7, depth=2, width=48, heads=4, caption_channels=24)
TIMES = jnp.array([999.0, 37.0])

forward = jax.jit(Net.__call__)
encode = jax.jit(lambda net, y, mask: net.call("encode_prompt", y, mask))


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def close(out: jax.Array, expected: np.ndarray) -> bool:
    """Equal but for rounding, nearly all of it PyTorch's float32 timestep frequencies."""
    return np.abs(out - expected).max() <= 1e-5 * np.abs(expected).max()


def tensor(x: jax.Array) -> torch.Tensor:
    return torch.tensor(np.asarray(x))


@pytest.fixture(scope="module")
def reference() -> torch.nn.Module:
    return randomize(
        diffusers.LatteTransformer3DModel(
            num_attention_heads=4,
            attention_head_dim=12,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            cross_attention_dim=48,
            attention_bias=True,
            sample_size=8,
            patch_size=2,
            activation_fn="gelu-approximate",
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            norm_eps=1e-6,
            caption_channels=24,
            video_length=5,
        )
    )


@pytest.fixture(scope="module")
def net(reference, tmp_path_factory) -> Net:
    state = {name: value.numpy() for name, value in reference.state_dict().items()}
    return convert_state(build, TINY, state, FORMATS["diffusers"](TINY), tmp_path_factory.mktemp("latte"))


@pytest.mark.parametrize(("frames", "length"), [(5, 7), (1, 7), (5, 3)], ids=["video", "picture", "short"])
@torch.no_grad()
def test_forward_equals_diffusers(reference, net, frames, length):
    """A prompt is as long as its real tokens there, where here the others are masked."""
    x, y = normal(0, 2, frames, 8, 8, 4), normal(1, 2, 7, 24)
    expected = reference(
        tensor(x.transpose(0, 4, 1, 2, 3)),
        timestep=tensor(TIMES),
        encoder_hidden_states=tensor(y[:, :length]),
        enable_temporal_attentions=True,
    ).sample
    mask = jnp.broadcast_to(jnp.arange(7) < length, (1, 7))
    out = forward(net, x, TIMES, encode(net, y, mask))
    assert close(out, expected.numpy().transpose(0, 2, 3, 4, 1))


def test_the_keys_and_values_of_the_prompt_are_made_once_for_all_frames(net):
    prompt = jax.eval_shape(lambda net, y: net.call("encode_prompt", y), net, normal(1, 2, 7, 24))
    assert [(k.shape, v.shape) for k, v in prompt.kv] == [((2, 7, 4, 12),) * 2] * TINY.depth


def test_parameters_are_as_many_as_published():
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract(build, CONFIGS["latte-1"]))) == 1_057_246_880


@pytest.mark.parametrize(("size", "interpolation"), [(32, 1), (64, 1), (128, 2)])
def test_positions_are_those_of_512_pixels_or_more(size, interpolation):
    assert dataclasses.replace(TINY, input_size=size).pe_interpolation == interpolation
