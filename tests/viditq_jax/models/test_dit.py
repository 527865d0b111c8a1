import functools

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from converters.dit import FORMATS
from tests.checkpoints import convert_state, golden
from tests.torch_params import randomize
from viditq_jax.models.dit import CONFIGS, Config, build
from viditq_jax.net import Net, abstract, initialize

TINY = Config(width=48, depth=2, heads=4, input_size=8, classes=10)
TIMES, LABELS = jnp.array([999.0, 37.0]), jnp.array([3, 10])  # 10 is the null label
forward = jax.jit(Net.__call__)


def latents(height: int = 8, width: int = 8) -> jax.Array:
    return jax.random.normal(jax.random.key(0), (2, height, width, 4))


def golden_net(folder) -> Net:
    return convert_state(build, TINY, golden("dit")[0], FORMATS["original"](TINY), folder)


@pytest.fixture(scope="module")
def diffusers_model() -> diffusers.DiTTransformer2DModel:
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=12,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=10,
    )
    randomize(model)
    first = model.transformer_blocks[0].norm1.emb.state_dict()
    for block in model.transformer_blocks:  # released files repeat one embedder in every block
        block.norm1.emb.load_state_dict(first)
    return model


@pytest.mark.parametrize("flavour", [TINY.diffusers(), TINY], ids=["diffusers", "original"])
@torch.no_grad()
def test_forward_equals_diffusers_in_both_flavours(diffusers_model, flavour, tmp_path):
    for block in diffusers_model.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = flavour.freq_shift
        block.norm3.eps = flavour.mlp_norm_eps
    inputs = (torch.tensor(np.asarray(a)) for a in (latents().transpose(0, 3, 1, 2), TIMES, LABELS))
    expected = diffusers_model(*inputs).sample.numpy().transpose(0, 2, 3, 1)
    table = FORMATS["diffusers"](flavour)
    net = convert_state(build, flavour, diffusers_model.state_dict(), table, tmp_path)
    error = np.abs(forward(net, latents(), TIMES, LABELS) - expected).max()
    assert error <= 1e-5 * np.abs(expected).max()


def test_forward_equals_the_original_model(tmp_path):
    _, facts = golden("dit")
    x, t, y = (jnp.asarray(facts[f"in/{name}"]) for name in "xty")
    out = forward(golden_net(tmp_path), x.transpose(0, 2, 3, 1), t.astype(jnp.float32), y)
    expected = facts["out"].transpose(0, 2, 3, 1)
    assert np.abs(out - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("dit-xl-2-256", 675_129_632),
        ("dit-xl-2-512", 676_014_368),
        ("dit-l-2-256", 458_102_816),
        ("dit-b-2-256", 130_512_416),
        ("dit-s-2-256", 32_963_360),
    ],
)
def test_parameters_and_position_table_are_as_many_as_published(name, count):
    config = CONFIGS[name]
    table = (config.input_size // config.patch_size) ** 2 * config.width  # stored in the files, computed here
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract(build, config))) + table == count


def test_every_size_patch_and_resolution_has_a_config():
    assert len(CONFIGS) == 24
    config = CONFIGS["dit-b-4-512"]
    assert (config.width, config.patch_size, config.input_size) == (768, 4, 64)


def test_bfloat16_weights_give_bfloat16_output_near_that_of_float32(tmp_path):
    net = golden_net(tmp_path)
    exact = forward(net, latents(), TIMES, LABELS)
    rounded = forward(net.astype(jnp.bfloat16), latents().astype(jnp.bfloat16), TIMES, LABELS)
    assert rounded.dtype == jnp.bfloat16
    # About 30 roundings of 2^-9 in a row, which add up as a random walk in the mean over all values.
    assert jnp.abs(rounded - exact).mean() <= 30**0.5 * 2**-9 * jnp.abs(exact).mean() * 2


def test_fresh_model_predicts_zero():
    net = jax.jit(functools.partial(initialize, build, TINY))()
    assert not forward(net, latents(), TIMES, LABELS).any()


def test_patch_size_that_does_not_divide_the_latent_is_refused():
    with pytest.raises(ValueError, match="multiple of the patch size 2"):
        jax.eval_shape(forward, abstract(build, TINY), latents(7, 8), TIMES, LABELS)
