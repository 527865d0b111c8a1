"""CLIP from a local folder of transformers: pictures and captions as points. Source: arXiv 2103.00020.

Modules are named as the tensors of `model.safetensors`. Nothing is downloaded, and torch is not needed.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int

from converters.sources import open_source
from converters.tensor import ConversionError
from viditq_jax.net import Net, abstract
from viditq_jax.nn.attention import merge_heads, split_heads
from viditq_jax.nn.linear import Linear
from viditq_jax.nn.norm import LayerNorm

_EPS = 1e-5
_ACTIVATIONS = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}


@dataclasses.dataclass(frozen=True)
class Tower:
    """One transformer; names are those of transformers. activation: "quick_gelu" or "gelu"."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: str


@dataclasses.dataclass(frozen=True)
class Config:
    """end: the token at which captions are read; None, as in the released files, for the greatest id."""

    text: Tower
    vision: Tower
    projection_dim: int
    vocab_size: int
    positions: int
    image_size: int
    patch_size: int
    end: int | None


class Table(nnx.Module):
    """Learned vectors, [entries, width]."""

    def __init__(self, entries: int, width: int, *, rngs: nnx.Rngs):
        self.weight = nnx.Param(jax.random.normal(rngs.params(), (entries, width), jnp.float32))


class Attention(nnx.Module):
    """Self-attention, of a caption to what was said before."""

    def __init__(self, cfg: Tower, *, causal: bool, rngs: nnx.Rngs):
        d = cfg.hidden_size
        self.heads, self.causal = cfg.num_attention_heads, causal
        self.q_proj, self.k_proj = Linear(d, d, rngs=rngs), Linear(d, d, rngs=rngs)
        self.v_proj, self.out_proj = Linear(d, d, rngs=rngs), Linear(d, d, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        q, k, v = (split_heads(to(x), self.heads) for to in (self.q_proj, self.k_proj, self.v_proj))
        scores = jnp.einsum("bnhd,bmhd->bhnm", q, k, precision="highest") / q.shape[-1] ** 0.5
        if self.causal:
            scores = jnp.where(jnp.tri(x.shape[1], dtype=bool), scores, -jnp.inf)
        mixed = jnp.einsum("bhnm,bmhd->bnhd", jax.nn.softmax(scores, axis=-1), v, precision="highest")
        return self.out_proj(merge_heads(mixed))


class Mlp(nnx.Module):
    """fc2(act(fc1 x))."""

    def __init__(self, cfg: Tower, *, rngs: nnx.Rngs):
        self.activation = cfg.hidden_act
        self.fc1 = Linear(cfg.hidden_size, cfg.intermediate_size, rngs=rngs)
        self.fc2 = Linear(cfg.intermediate_size, cfg.hidden_size, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        return self.fc2(_ACTIVATIONS[self.activation](self.fc1(x)))


class Layer(nnx.Module):
    """One block, normalized first."""

    def __init__(self, cfg: Tower, *, causal: bool, rngs: nnx.Rngs):
        self.layer_norm1 = LayerNorm(cfg.hidden_size, eps=_EPS, rngs=rngs)
        self.self_attn = Attention(cfg, causal=causal, rngs=rngs)
        self.layer_norm2 = LayerNorm(cfg.hidden_size, eps=_EPS, rngs=rngs)
        self.mlp = Mlp(cfg, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nnx.Module):
    """The blocks."""

    def __init__(self, cfg: Tower, *, causal: bool, rngs: nnx.Rngs):
        self.layers = nnx.List([Layer(cfg, causal=causal, rngs=rngs) for _ in range(cfg.num_hidden_layers)])

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        for layer in self.layers:
            x = layer(x)
        return x


class TextEmbeddings(nnx.Module):
    """Tokens and their places."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.token_embedding = Table(cfg.vocab_size, cfg.text.hidden_size, rngs=rngs)
        self.position_embedding = Table(cfg.positions, cfg.text.hidden_size, rngs=rngs)

    def __call__(self, ids: Int[Array, "b n"]) -> Float[Array, "b n d"]:
        places = self.position_embedding.weight.get_value()[: ids.shape[1]]
        return self.token_embedding.weight.get_value()[ids] + places


class TextModel(nnx.Module):
    """What a caption says, read at its end."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.end = cfg.end
        self.embeddings = TextEmbeddings(cfg, rngs=rngs)
        self.encoder = Encoder(cfg.text, causal=True, rngs=rngs)
        self.final_layer_norm = LayerNorm(cfg.text.hidden_size, eps=_EPS, rngs=rngs)

    def __call__(self, ids: Int[Array, "b n"]) -> Float[Array, "b d"]:
        x = self.final_layer_norm(self.encoder(self.embeddings(ids)))
        ends = ids.argmax(1) if self.end is None else (ids == self.end).argmax(1)
        return x[jnp.arange(len(x)), ends]


class VisionEmbeddings(nnx.Module):
    """Patches behind a class token, and their places. The convolution is a linear layer on (c, p, q)."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        d, self.patch = cfg.vision.hidden_size, cfg.patch_size
        self.class_embedding = nnx.Param(jax.random.normal(rngs.params(), (d,), jnp.float32))
        self.patch_embedding = Linear(3 * self.patch**2, d, bias=False, rngs=rngs)
        self.position_embedding = Table((cfg.image_size // self.patch) ** 2 + 1, d, rngs=rngs)

    def __call__(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b n d"]:
        x = rearrange(pixels, "b (h p) (w q) c -> b (h w) (c p q)", p=self.patch, q=self.patch)
        x = self.patch_embedding(x)
        first = jnp.broadcast_to(self.class_embedding.get_value(), (len(x), 1, x.shape[-1]))
        return jnp.concatenate([first, x], axis=1) + self.position_embedding.weight.get_value()


class VisionModel(nnx.Module):
    """What a picture shows, read at the class token."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.embeddings = VisionEmbeddings(cfg, rngs=rngs)
        self.pre_layrnorm = LayerNorm(cfg.vision.hidden_size, eps=_EPS, rngs=rngs)  # so spelled in the files
        self.encoder = Encoder(cfg.vision, causal=False, rngs=rngs)
        self.post_layernorm = LayerNorm(cfg.vision.hidden_size, eps=_EPS, rngs=rngs)

    def __call__(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        x = self.encoder(self.pre_layrnorm(self.embeddings(pixels)))
        return self.post_layernorm(x[:, 0])


class Clip(nnx.Module):
    """Both towers and their projections into one space."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.text_model = TextModel(cfg, rngs=rngs)
        self.vision_model = VisionModel(cfg, rngs=rngs)
        self.text_projection = Linear(cfg.text.hidden_size, cfg.projection_dim, bias=False, rngs=rngs)
        self.visual_projection = Linear(cfg.vision.hidden_size, cfg.projection_dim, bias=False, rngs=rngs)

    def captions(self, ids: Int[Array, "b n"]) -> Float[Array, "b f"]:
        """Features of captions, not normalized."""
        return self.text_projection(self.text_model(ids))

    def pictures(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b f"]:
        """Features of pictures, not normalized."""
        return self.visual_projection(self.vision_model(pixels))


def build(config: Config, *, rngs: nnx.Rngs) -> Clip:
    """The model with freshly drawn weights."""
    return Clip(config, rngs=rngs)


def read_config(facts: dict[str, Any]) -> Config:
    """The config of `config.json`. Raises ValueError for an activation that is not here."""
    # What a file leaves out is what transformers takes then: ViT-B/32.
    text = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8,
            "hidden_act": "quick_gelu", "vocab_size": 49408, "max_position_embeddings": 77,
            "eos_token_id": 49407, **facts.get("text_config", {})}  # fmt: skip
    vision = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
              "num_attention_heads": 12, "hidden_act": "quick_gelu", "image_size": 224, "patch_size": 32,
              **facts.get("vision_config", {})}  # fmt: skip
    names = [field.name for field in dataclasses.fields(Tower)]
    towers = {
        kind: Tower(**{name: each[name] for name in names})
        for kind, each in (("text", text), ("vision", vision))
    }
    for tower in towers.values():
        if tower.hidden_act not in _ACTIVATIONS:
            raise ValueError(
                f"this CLIP has the activation {tower.hidden_act!r}; known are {', '.join(_ACTIVATIONS)}."
            )
    # Released files say 2 for the end of captions, which it is not; transformers takes the greatest id then.
    end = None if text["eos_token_id"] == 2 else text["eos_token_id"]
    return Config(
        text=towers["text"],
        vision=towers["vision"],
        projection_dim=facts.get("projection_dim", 512),
        vocab_size=text["vocab_size"],
        positions=text["max_position_embeddings"],
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        end=end,
    )


def read(folder: Path) -> tuple[Net, Config]:
    """The model of a folder, in float32. Raises ValueError that lists what is missing or of another shape."""
    try:
        source = open_source(folder)
        if source.config is None:
            raise FileNotFoundError(f"there is no config.json beside {source.file.name}")
        config = read_config(source.config)
        arrays = {name: tensor.read() for name, tensor in source.tensors.items()}
    except (OSError, ConversionError, LookupError, TypeError) as error:
        raise ValueError(
            f"{folder} is no CLIP of transformers ({type(error).__name__}: {error}); give a folder with "
            f"config.json, model.safetensors and tokenizer.json."
        ) from error
    faults: list[str] = []

    def take(name: str, variable: nnx.Variable) -> jax.Array:
        key, want = name.replace("/", "."), variable.get_value().shape
        have = arrays.get(key)
        flat = have.reshape(len(have), -1) if have is not None and "patch_embedding" in key else have
        if flat is None or flat.shape != want:
            faults.append(
                f"{key} is {'missing' if flat is None else list(flat.shape)}, expected {list(want)}"
            )
            return jnp.zeros(want)
        return jnp.asarray(flat.astype(np.float32))

    net = abstract(build, config).map_variables(take)
    if faults:
        raise ValueError(f"{folder} does not hold the CLIP of its config.json: {'; '.join(faults[:10])}.")
    return net, config
