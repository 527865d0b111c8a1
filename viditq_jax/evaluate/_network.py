"""The packaged metric network: pictures and captions of emoji as points, near each other where they belong.

A convolutional encoder of 64x64 pixels and an encoder of captions over the tokens of the default model,
trained together (CLIP, arXiv 2103.00020). It knows single emoji and nothing else: what it says of other
pictures means nothing. `viditq_jax/assets/metric/CARD.md` says how well it reads them.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, UInt8
from safetensors.flax import load_file

from viditq_jax.conditions import PAD, Tokenizer
from viditq_jax.net import Net, abstract
from viditq_jax.nn.conv import Conv
from viditq_jax.nn.linear import Linear
from viditq_jax.nn.norm import GroupNorm, layer_norm

SIDE = 64
TEXT_LENGTH = 24  # tokens of a caption, the end among them
_GROUPS = 8  # of channels, in GroupNorm
_BATCH = 8  # pictures or captions a compiled call; the last is filled up

Pictures = UInt8[np.ndarray, "n h w 3"] | Sequence[UInt8[np.ndarray, "_ _ 3"]]


@dataclasses.dataclass(frozen=True)
class Config:
    """features: width of the space that pictures and captions share."""

    widths: tuple[int, ...] = (24, 48, 96, 192)  # of layers with 32, 16, 8 and 4 pixels a side
    features: int = 48
    vocab_size: int = 1536
    text_width: int = 96
    text_hidden: int = 192


class Halved(nnx.Module):
    """Two by two pixels to one: a product, GroupNorm but for the largest map, SiLU."""

    def __init__(self, in_channels: int, out_channels: int, *, normalized: bool, rngs: nnx.Rngs):
        self.linear = Linear(4 * in_channels, out_channels, rngs=rngs)
        self.norm = GroupNorm(out_channels, _GROUPS, rngs=rngs) if normalized else None

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j o"]:
        x = self.linear(rearrange(x, "b (h p) (w q) c -> b h w (p q c)", p=2, q=2))
        return nnx.silu(x if self.norm is None else self.norm(x))


class Beside(nnx.Module):
    """A convolution of 3x3 pixels beside a skip."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.conv = Conv(channels, channels, 3, padding=1, rngs=rngs)
        self.norm = GroupNorm(channels, _GROUPS, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return x + nnx.silu(self.norm(self.conv(x)))


class ImageEncoder(nnx.Module):
    """Four halvings; the two smallest maps also look around."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        pairs = zip((3, *cfg.widths[:-1]), cfg.widths, strict=True)
        self.down = nnx.List([Halved(i, o, normalized=i != 3, rngs=rngs) for i, o in pairs])
        self.around: nnx.List[Any] = nnx.List([Beside(width, rngs=rngs) for width in cfg.widths[2:]])
        self.proj = Linear(cfg.widths[-1], cfg.features, rngs=rngs)

    def layers(self, pixels: Float[Array, "b 64 64 3"]) -> list[Float[Array, "b i j c"]]:
        """The maps after each halving, the largest first. pixels: -1 to 1."""
        maps, x = [], pixels
        for i, down in enumerate(self.down):
            x = down(x)
            x = self.around[i - 2](x) if i >= 2 else x
            maps.append(x)
        return maps

    def __call__(self, pixels: Float[Array, "b 64 64 3"]) -> Float[Array, "b f"]:
        """The features of each picture, not normalized."""
        return self.proj(layer_norm(self.layers(pixels)[-1].mean((1, 2))))


class TextEncoder(nnx.Module):
    """The mean over tokens of what each says beside its neighbours: "blue" of a heart or of a background."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        draw = jax.random.normal(rngs.params(), (cfg.vocab_size, cfg.text_width), jnp.float32)
        self.table = nnx.Param(0.5 * draw)
        self.near = Linear(3 * cfg.text_width, cfg.text_hidden, rngs=rngs)
        self.proj = Linear(cfg.text_hidden, cfg.features, rngs=rngs)

    def __call__(self, ids: Int[Array, "b n"]) -> Float[Array, "b f"]:
        """The features of each caption, not normalized. ids: padded with `PAD`, of which nothing is taken."""
        said = (ids != PAD)[..., None]
        x = jnp.where(said, self.table.get_value()[ids], 0)
        edge = jnp.zeros_like(x[:, :1])
        before = jnp.concatenate([edge, x[:, :-1]], axis=1)
        after = jnp.concatenate([x[:, 1:], edge], axis=1)
        x = nnx.silu(self.near(jnp.concatenate([before, x, after], axis=-1)))
        mean = jnp.where(said, x, 0).sum(1) / said.sum(1)  # a caption has at least its end
        return self.proj(layer_norm(mean))


class MetricNetwork(nnx.Module):
    """Both encoders, and the logarithm of what their cosines are multiplied by in training."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.image = ImageEncoder(cfg, rngs=rngs)
        self.text = TextEncoder(cfg, rngs=rngs)
        self.log_scale = nnx.Param(jnp.log(jnp.float32(10.0)))

    def pictures(self, pixels: Float[Array, "b 64 64 3"]) -> Float[Array, "b f"]:
        """Features of pictures, -1 to 1; not normalized."""
        return self.image(pixels)

    def captions(self, ids: Int[Array, "b n"]) -> Float[Array, "b f"]:
        """Features of captions; not normalized."""
        return self.text(ids)

    def perceived(self, pixels: Float[Array, "b 64 64 3"]) -> Float[Array, "b m"]:
        """A vector a picture whose squared distances are the perceptual distance.

        Maps after each halving, every pixel of unit length over its channels, weighted so that the squared
        distance is a mean over pixels and a mean over maps. Source: LPIPS, arXiv 1801.03924, equation 1,
        without its learned weights of channels.
        """
        maps, rows = self.image.layers(pixels), []
        for x in maps:
            unit = x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-10)
            rows.append(unit.reshape(len(x), -1) / (x.shape[1] * x.shape[2] * len(maps)) ** 0.5)
        return jnp.concatenate(rows, axis=1)


def build(config: Config, *, rngs: nnx.Rngs) -> MetricNetwork:
    """The network with freshly drawn weights."""
    return MetricNetwork(config, rngs=rngs)


@functools.cache
def packaged() -> Net:
    """The packaged network, computing in float32. Raises FileNotFoundError if it was left out."""
    folder = resources.files("viditq_jax.assets") / "metric"
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"the metric network is not in this installation ({folder}); install viditq-jax with its "
            f"packaged data, or make it by examples/train_metric.py."
        )
    facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    with resources.as_file(folder / "model.safetensors") as file:
        arrays = load_file(file)
    net = abstract(build, Config(**{**facts, "widths": tuple(facts["widths"])}))
    return net.map_variables(lambda name, _: arrays[name].astype(jnp.float32))


@functools.cache
def tokenizer() -> Tokenizer:
    """That of the packaged default model."""
    return Tokenizer((resources.files("viditq_jax.assets") / "default/tokenizer/spiece.model").read_bytes())


def picture_features(pictures: Pictures) -> Float32[np.ndarray, "n f"]:
    """Features of pictures by the packaged network, not normalized: the space of `fid` and `alignment`."""
    return _in_batches("pictures", pixels(pictures))


def caption_features(captions: Sequence[str]) -> Float32[np.ndarray, "n f"]:
    """Features of captions by the packaged network, not normalized."""
    return _in_batches("captions", tokenizer()(captions, TEXT_LENGTH)[0])


def perceived(pictures: Pictures) -> Float32[np.ndarray, "n m"]:
    """Vectors whose squared distances are the perceptual distance; 190 kB a picture."""
    return _in_batches("perceived", pixels(pictures))


def pixels(pictures: Pictures) -> Float32[np.ndarray, "n 64 64 3"]:
    """Pictures as the network takes them: -1 to 1, sides of 64 pixels, larger ones averaged down.

    Raises ValueError for no pictures, and for sides that are no equal multiples of 64.
    """
    if not len(pictures):
        raise ValueError("there are no pictures to look at; give at least one.")
    x = np.asarray(pictures, np.float32)
    h, w = x.shape[1:3]
    if h != w or h % SIDE:
        raise ValueError(
            f"pictures are {h}x{w} pixels; the packaged metric network reads squares of {SIDE} pixels or a "
            f"multiple, and knows emoji alone. Measure others by official networks, as clip_score."
        )
    factor = h // SIDE
    x = x.reshape(len(x), SIDE, factor, SIDE, factor, 3).mean((2, 4))
    return x / np.float32(127.5) - 1


def _in_batches(method: str, rows: np.ndarray) -> np.ndarray:
    """What a method of the packaged network gives for all rows, in batches of one size."""
    run, net, parts = _compiled(method), packaged(), []
    for start in range(0, len(rows), _BATCH):
        part = rows[start : start + _BATCH]
        full = np.concatenate([part, np.repeat(part[-1:], _BATCH - len(part), axis=0)])
        parts.append(np.asarray(run(net, full))[: len(part)])
    return np.concatenate(parts)


@functools.cache
def _compiled(method: str) -> Callable[[Net, np.ndarray], Array]:
    return jax.jit(lambda net, x: net.call(method, x))
