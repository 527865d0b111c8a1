import dataclasses
import functools

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from converters.pixart import FORMATS
from tests.checkpoints import convert_state, golden
from tests.torch_params import load_state_dict, randomize
from viditq_jax.models.pixart import CONFIGS, Config, Prompt, SelfAttention, Size, build
from viditq_jax.net import Net, abstract, initialize

TINY = Config(input_size=16, depth=2, width=48, heads=4, caption_channels=24, text_length=7)
MICRO = dataclasses.replace(TINY, micro_conditions=True, pe_interpolation=2.0)
COMPRESSED = dataclasses.replace(TINY, kv_compress=(1,), pe_interpolation=2.0)
GOLDEN = {
    "pixart_alpha": TINY,
    "pixart_alpha_ms_micro": MICRO,
    "pixart_sigma_ms": dataclasses.replace(TINY, pe_interpolation=0.5),
    "pixart_sigma_kvcompress": COMPRESSED,
}
TIMES = jnp.array([999.0, 37.5])
MASK = jnp.arange(7) < jnp.array([[4], [2]])
SIZE = Size(jnp.array([768.0, 1024.0]), jnp.array([1344.0, 1024.0]), jnp.array([0.57, 1.0]))

forward = jax.jit(Net.__call__)
fresh = jax.jit(functools.partial(initialize, build), static_argnums=0)
encode = jax.jit(lambda net, y, mask: net.call("encode_prompt", y, mask))


def latents(height: int = 12, width: int = 20) -> jax.Array:
    return jax.random.normal(jax.random.key(0), (2, height, width, 4))


def captions(seed: int = 1) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (2, 7, 24))


def nchw(x: jax.Array) -> torch.Tensor:
    return torch.tensor(np.asarray(x.transpose(0, 3, 1, 2)))


def close(out: jax.Array, expected: np.ndarray) -> bool:
    """Equal but for rounding, nearly all of it PyTorch's float32 timestep frequencies.

    One is off by up to 6e-8, its angle at t = 999 by 6e-5. With PyTorch's own table the error is 3e-7.
    """
    return np.abs(out - expected).max() <= 1e-5 * np.abs(expected).max()


def golden_net(name: str, folder) -> Net:
    config = GOLDEN[name]
    return convert_state(build, config, golden(name)[0], FORMATS["original"](config), folder)


@pytest.mark.parametrize("name", GOLDEN)
def test_forward_equals_the_original_model(name, tmp_path):
    _, facts = golden(name)
    net = golden_net(name, tmp_path)
    x, t, y, mask = (jnp.asarray(facts[f"in/{key}"]) for key in ("x", "timestep", "y", "mask"))
    size = None
    if "in/img_hw" in facts:
        size = Size(*jnp.asarray(facts["in/img_hw"]).T, jnp.asarray(facts["in/aspect_ratio"][:, 0]))
    out = forward(net, x.transpose(0, 2, 3, 1), t, encode(net, y[:, 0], mask > 0), size)
    assert close(out, facts["out"].transpose(0, 2, 3, 1))


@pytest.mark.parametrize(
    ("interpolation", "micro", "side"),
    [(0.5, False, (12, 20)), (1.0, False, (16, 16)), (2.0, True, (12, 20))],
)
@torch.no_grad()
def test_forward_equals_diffusers(interpolation, micro, side, tmp_path):
    model = diffusers.PixArtTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=12,
        num_layers=2,
        cross_attention_dim=48,
        sample_size=16,
        caption_channels=24,
        interpolation_scale=interpolation,
        use_additional_conditions=micro,
    )
    randomize(model)
    conditions = {"resolution": None, "aspect_ratio": None}
    if micro:
        height, width, aspect = (torch.tensor(np.asarray(value)) for value in SIZE)
        conditions = {"resolution": torch.stack([height, width], 1), "aspect_ratio": aspect[:, None]}
    expected = model(
        nchw(latents(*side)),
        torch.tensor(np.asarray(captions())),
        torch.tensor(np.asarray(TIMES)),
        conditions,
        encoder_attention_mask=torch.tensor(np.asarray(MASK)).float(),
    ).sample
    config = dataclasses.replace(
        TINY, pe_interpolation=interpolation, micro_conditions=micro, with_null_caption=False
    )
    net = convert_state(build, config, model.state_dict(), FORMATS["diffusers"](config), tmp_path)
    out = forward(net, latents(*side), TIMES, encode(net, captions(), MASK), SIZE if micro else None)
    assert close(out, expected.numpy().transpose(0, 2, 3, 1))


class TorchAttention(torch.nn.Module):
    """PixArt-Sigma's self-attention with both of its options, written from the paper."""

    def __init__(self, width: int):
        super().__init__()
        self.qkv, self.proj = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)
        self.q_norm, self.k_norm, self.norm = (torch.nn.LayerNorm(width) for _ in range(3))
        self.sr = torch.nn.Conv2d(width, width, 2, stride=2, groups=width)

    def forward(self, x: torch.Tensor, height: int, heads: int) -> torch.Tensor:
        def compress(part: torch.Tensor) -> torch.Tensor:
            grid = part.transpose(1, 2).unflatten(2, (height, -1))
            return self.norm(self.sr(grid).flatten(2).transpose(1, 2))

        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k, v = self.q_norm(q), compress(self.k_norm(k)), compress(v)
        q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (q, k, v))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).flatten(2))


@torch.no_grad()
def test_queries_and_keys_are_normed_over_all_channels_and_then_compressed():
    config = dataclasses.replace(TINY, qk_norm=True)
    model = randomize(TorchAttention(config.width))
    net = abstract(lambda cfg, rngs: SelfAttention(cfg, compress=True, rngs=rngs), config)
    net = load_state_dict(net, model.state_dict())
    x = jax.random.normal(jax.random.key(0), (2, 6 * 10, config.width))
    expected = model(torch.tensor(np.asarray(x)), 6, config.heads).numpy()
    assert close(net(x, 6), expected)


def test_steps_read_the_prompt_and_never_encode_it_again(tmp_path):
    net = golden_net("pixart_sigma_ms", tmp_path)
    prompt = encode(net, captions(), MASK)
    assert [(k.shape, v.shape) for k, v in prompt.kv] == [((2, 7, 4, 12),) * 2] * TINY.depth
    whole = jax.jit(lambda net, x, t, y, mask: net(x, t, net.call("encode_prompt", y, mask)))
    once = forward(net, latents(), TIMES, prompt)
    assert close(once, np.asarray(whole(net, latents(), TIMES, captions(), MASK)))
    without = net.map_weights(lambda path, w: w * 0 if "kv_linear" in path or "y_embedder" in path else w)
    np.testing.assert_array_equal(forward(without, latents(), TIMES, prompt), once)


def test_masked_tokens_take_no_part(tmp_path):
    net = golden_net("pixart_alpha", tmp_path)
    changed = jnp.where(MASK[..., None], captions(), captions(seed=2))
    outs = [forward(net, latents(), TIMES, encode(net, y, MASK)) for y in (captions(), changed)]
    np.testing.assert_array_equal(*outs)


def test_fewer_masks_than_captions_are_tiled(tmp_path):
    net = abstract(build, TINY)
    four = jax.ShapeDtypeStruct((4, 7, 24), jnp.float32)
    prompt = jax.eval_shape(encode, net, four, MASK)
    assert prompt.mask.shape == (4, 7)
    tiled = encode(golden_net("pixart_alpha", tmp_path), jnp.zeros((4, 7, 24)), MASK).mask
    np.testing.assert_array_equal(tiled, jnp.concatenate([MASK, MASK]))  # [m0, m1, m0, m1]
    with pytest.raises(ValueError, match="3 captions do not share 2 mask rows"):
        jax.eval_shape(encode, net, jax.ShapeDtypeStruct((3, 7, 24), jnp.float32), MASK)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("pixart-sigma-xl-2-1024-ms", 610_856_096),
        ("pixart-alpha-xl-2-1024-ms", 611_349_152),  # embedders of size and aspect ratio
        ("pixart-sigma-xl-2-1024-ms-kv", 610_968_992),  # 14 convolutions and norms
    ],
)
def test_parameters_are_as_many_as_published(name, count):
    config = dataclasses.replace(CONFIGS[name], with_null_caption=False)
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract(build, config))) == count


def test_positions_span_the_training_grid_over_the_interpolation():
    pixels = {"256": 256, "512": 512, "1024": 1024, "2k": 2048}
    for name, config in CONFIGS.items():
        side = pixels[next(part for part in name.split("-") if part in pixels)]
        assert config.base_size == side // 16  # an autoencoder of 8 and patches of 2
        expected = side / 512 if "sigma" in name else max(1, side / 512)
        assert config.pe_interpolation == expected


def test_bfloat16_weights_give_bfloat16_output_near_that_of_float32(tmp_path):
    net = golden_net("pixart_sigma_kvcompress", tmp_path)
    exact = forward(net, latents(), TIMES, encode(net, captions(), MASK))
    half = net.astype(jnp.bfloat16)
    prompt = encode(half, captions().astype(jnp.bfloat16), MASK)
    rounded = forward(half, latents().astype(jnp.bfloat16), TIMES, prompt)
    assert rounded.dtype == jnp.bfloat16
    # About 60 roundings of 2^-9 in a row, which add up as a random walk; twice for those of the weights.
    assert jnp.abs(rounded - exact).mean() <= 2 * 60**0.5 * 2**-9 * jnp.abs(exact).mean()


def test_fresh_model_predicts_zero_and_compresses_by_the_mean():
    net = fresh(dataclasses.replace(COMPRESSED, depth=1, kv_compress=(0,)))
    assert not forward(net, latents(), TIMES, encode(net, captions(), None)).any()
    kernel = dict(net.variables())["blocks/0/attn/sr/kernel"].get_value()
    np.testing.assert_array_equal(kernel, np.full((2, 2, 1, 48), 0.25))


def test_null_caption_is_that_of_the_weights_or_an_error(tmp_path):
    state, _ = golden("pixart_alpha")
    null = golden_net("pixart_alpha", tmp_path).call("null_caption")
    np.testing.assert_array_equal(null, state["y_embedder.y_embedding"])
    with pytest.raises(ValueError, match="hold no null caption"):
        abstract(build, dataclasses.replace(TINY, with_null_caption=False)).call("null_caption")


@pytest.mark.parametrize(("config", "size"), [(MICRO, None), (TINY, SIZE)], ids=["needed", "not taken"])
def test_size_is_given_exactly_where_the_model_was_trained_with_it(config, size):
    key = jax.ShapeDtypeStruct((2, 7, 4, 12), jnp.float32)
    prompt = Prompt(((key, key),) * config.depth, None)
    with pytest.raises(ValueError, match=f"micro_conditions={config.micro_conditions}"):
        jax.eval_shape(forward, abstract(build, config), latents(), TIMES, prompt, size)
