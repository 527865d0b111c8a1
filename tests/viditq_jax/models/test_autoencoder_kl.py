import dataclasses

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.torch_params import load_state_dict, randomize
from viditq_jax.models.autoencoder_kl import CONFIGS, Config, build
from viditq_jax.net import Net, abstract

SD = Config(block_out_channels=(8, 16, 32, 32), norm_num_groups=4)
SHALLOW = dataclasses.replace(SD, block_out_channels=(8, 16, 16), layers_per_block=1)
FLUX = dataclasses.replace(
    SHALLOW,
    latent_channels=6,
    scaling_factor=0.3611,
    shift_factor=0.1159,
    use_quant_conv=False,
    use_post_quant_conv=False,
)
NO_ATTENTION = dataclasses.replace(SHALLOW, mid_block_add_attention=False)
CASES = {"sd": SD, "three stages": SHALLOW, "shift, no quant convs": FLUX, "no attention": NO_ATTENTION}


def reference(config: Config) -> diffusers.AutoencoderKL:
    stages = len(config.block_out_channels)
    model = diffusers.AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * stages,
        up_block_types=["UpDecoderBlock2D"] * stages,
        **dataclasses.asdict(config),
    )
    return randomize(model)


def pixels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (2, 32, 48, 3)).astype(np.float32)


def nchw(x: np.ndarray) -> torch.Tensor:
    return torch.tensor(x.transpose(0, 3, 1, 2))


def nhwc(x: torch.Tensor) -> np.ndarray:
    return x.numpy().transpose(0, 2, 3, 1)


@pytest.fixture(params=CASES, scope="module")
def pair(request) -> tuple[Config, Net, diffusers.AutoencoderKL]:
    config = CASES[request.param]
    model = reference(config)
    return config, load_state_dict(abstract(build, config), model.state_dict()), model


@torch.no_grad()
def test_encode_equals_diffusers_in_the_units_of_the_denoiser(pair):
    config, net, model = pair
    mean, std = jax.jit(lambda x: net.call("encode", x))(pixels())
    expected = model.encode(nchw(pixels())).latent_dist
    np.testing.assert_allclose(
        mean, (nhwc(expected.mean) - config.shift_factor) * config.scaling_factor, rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(std, nhwc(expected.std) * config.scaling_factor, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_decode_equals_diffusers_in_the_units_of_the_denoiser(pair):
    config, net, model = pair
    factor = config.downsampling
    shape = (2, 32 // factor, 48 // factor, config.latent_channels)
    latents = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    expected = model.decode(nchw(latents / config.scaling_factor + config.shift_factor)).sample
    # Raw latents are up to 20 here, and pixels grow with them: the error is relative to the peak.
    error = np.abs(jax.jit(lambda z: net.call("decode", z))(latents) - nhwc(expected)).max()
    assert error <= 1e-5 * expected.abs().max().item()


def test_parameters_are_those_of_the_released_checkpoint():
    """Counts of sd-vae-ft: 83,653,863 numbers in 248 tensors."""
    sizes = [leaf.size for leaf in jax.tree.leaves(abstract(build, CONFIGS["sd-vae-ft"]).params)]
    assert (sum(sizes), len(sizes)) == (83_653_863, 248)


@pytest.fixture(scope="module")
def shallow() -> Net:
    return load_state_dict(abstract(build, SHALLOW), reference(SHALLOW).state_dict())


@pytest.mark.parametrize(("bias", "log_std"), [(-1000.0, -15.0), (1000.0, 10.0)])
def test_the_log_variance_is_kept_between_minus_30_and_20(shallow, bias, log_std):
    net = shallow.map_variables(
        lambda name, variable: variable.get_value() + (bias if name == "quant_conv/bias" else 0.0)
    )
    _, std = jax.jit(lambda x: net.call("encode", x))(jnp.zeros((1, 8, 8, 3)))
    np.testing.assert_allclose(std, np.exp(log_std) * SHALLOW.scaling_factor, rtol=1e-6)


@torch.no_grad()
def test_bfloat16_loses_no_more_than_the_bfloat16_of_pytorch(shallow):
    """Both round inputs and weights alike; the order of sums and the place of a few roundings differ: 50%."""
    net, x, model = shallow.astype(jnp.bfloat16), pixels(), reference(SHALLOW)
    exact = model(nchw(x), return_dict=False)[0]
    torch_error = (model.bfloat16()(nchw(x).bfloat16(), return_dict=False)[0] - exact).norm()
    pixels_out = jax.jit(lambda x: net(x))(jnp.asarray(x, jnp.bfloat16))
    assert pixels_out.dtype == jnp.bfloat16
    assert np.linalg.norm(pixels_out.astype(jnp.float32) - nhwc(exact)) < 1.5 * torch_error.item()


def test_drawn_latents_depend_on_the_key_alone(shallow):
    forward = jax.jit(lambda x, key: shallow(x, key))
    first, again, other = (forward(pixels(), jax.random.key(seed)) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).all(axis=-1).any()


def test_an_image_that_is_not_a_multiple_of_the_downsampling_is_refused():
    with pytest.raises(ValueError, match="34x48 is not a multiple of 4"):
        abstract(build, SHALLOW).call("encode", jnp.zeros((1, 34, 48, 3)))
