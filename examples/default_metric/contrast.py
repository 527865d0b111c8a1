"""Contrastive training of the metric network, and how well it finds captions of pictures and back."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from default_model.data import COLOURS, Icon, caption, composite
from default_model.loop import Arrays, Plan, filled, train, values
from default_model.text import LENGTH, Tokenizer

from viditq_jax.evaluate import _network
from viditq_jax.net import Net, initialize

WHITE = 0.5  # share of the pictures on white; the others are on a named colour
SHIFT = 3  # pixels by which a batch is moved at most, each way
NOISE, CONTRAST = 0.15, 0.15  # of pixels in -1 to 1, at most
MOST_SCALE = 100.0  # of cosines


def fresh(tokenizer: Tokenizer) -> Net:
    """Fresh weights."""
    return initialize(_network.build, _network.Config(vocab_size=tokenizer.size))


def caption_ids(icons: list[Icon], tokenizer: Tokenizer) -> np.ndarray:
    """Ids of every icon's captions on every colour, without and with its style: int16 [icons, 11, 2, n]."""
    texts = [
        caption(icon, colour, style=style) for icon in icons for colour in COLOURS for style in (False, True)
    ]
    return tokenizer(texts).astype(np.int16).reshape(len(icons), len(COLOURS), 2, LENGTH)


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def contrastive_loss(
    pictures: jax.Array, captions: jax.Array, same: jax.Array, scale: jax.Array
) -> jax.Array:
    """Cross entropy of picture to caption and back, [b, f] each; captions that are the same share the truth.

    same: bool [b, b], whether two captions are the same. Source: CLIP, arXiv 2103.00020, figure 3.
    """
    scores = scale * _unit(pictures) @ _unit(captions).T
    truth = same / same.sum(1, keepdims=True)
    found = [(truth * jax.nn.log_softmax(each, axis=1)).sum(1).mean() for each in (scores, scores.T)]
    return -sum(found) / 2


def altered(pixels: jax.Array, key: jax.Array) -> jax.Array:
    """Pictures mirrored, blurred, brightened and made noisy, each by chance."""
    keys = jax.random.split(key, 6)
    one = (len(pixels), 1, 1, 1)
    x = jnp.where(jax.random.bernoulli(keys[0], 0.5, one), pixels[:, :, ::-1], pixels)
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    across = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    blurred = (across[:, :, :-2] + across[:, :, 1:-1] + across[:, :, 2:]) / 9
    amount = jax.random.uniform(keys[1], one) * jax.random.bernoulli(keys[2], 0.5, one)
    x = x + amount * (blurred - x)
    gain = 1 + CONTRAST * jax.random.uniform(keys[3], one, minval=-1)
    noise = NOISE * jax.random.uniform(keys[4], one) * jax.random.uniform(keys[5], x.shape, minval=-1)
    return (gain * x + noise).clip(-1, 1)


def fit(
    net: Net, icons: list[Icon], pictures: np.ndarray, held_out: np.ndarray, tokenizer: Tokenizer, plan: Plan,
    folder: Path,
) -> Arrays:  # fmt: skip
    """Train; gives the averaged arrays.

    Icons are drawn by the root of the weight with which the default model is shown them: favourites more
    often, but less so. held_out: icons that are never drawn.
    """
    ids = caption_ids(icons, tokenizer)
    weight = np.sqrt([icon.weight for icon in icons])
    weight[held_out] = 0
    inputs = {
        "pictures": jnp.asarray(pictures),
        "ids": jnp.asarray(ids),
        "cumulative": jnp.asarray(np.cumsum(weight / weight.sum()).astype(np.float32)),
        "palette": jnp.asarray(list(COLOURS.values()), jnp.float32),
    }

    def loss(params: Arrays, inputs: Arrays, key: jax.Array) -> tuple[jax.Array, Arrays]:
        keys = jax.random.split(key, 7)
        icon = jnp.searchsorted(inputs["cumulative"], jax.random.uniform(keys[0], (plan.batch,)))
        icon = jnp.minimum(icon, len(icons) - 1)
        placement = jax.random.randint(keys[1], (plan.batch,), 0, pictures.shape[1])
        colour = jax.random.randint(keys[2], (plan.batch,), 1, len(COLOURS))
        colour = jnp.where(jax.random.uniform(keys[3], (plan.batch,)) < WHITE, 0, colour)
        styled = jax.random.bernoulli(keys[4], 0.5, (plan.batch,)).astype(jnp.int32)
        said = inputs["ids"][icon, colour, styled].astype(jnp.int32)
        same = (said[:, None] == said[None]).all(-1)
        rgba = jnp.pad(inputs["pictures"][icon, placement], ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)))
        y, x = jax.random.randint(keys[5], (2,), 0, 2 * SHIFT + 1)
        rgba = jax.lax.dynamic_slice(rgba, (0, y, x, 0), (plan.batch, 64, 64, 4)).astype(jnp.float32)
        background = inputs["palette"][colour][:, None, None]
        pixels = (rgba[..., :3] + (1 - rgba[..., 3:] / 255) * background) / 127.5 - 1
        model = filled(net, params)
        seen = model.call("pictures", altered(pixels, keys[6]))
        scale = jnp.minimum(jnp.exp(params["log_scale"]), MOST_SCALE)
        return contrastive_loss(seen, model.call("captions", said), same, scale), {"scale": scale}

    shown = np.flatnonzero(weight > 0)
    sets = {"held_out": held_out, "seen": np.random.default_rng(0).permutation(shown)[: len(held_out)]}

    def watch(params: Arrays, step: int) -> dict[str, float]:
        now = filled(net, params)
        return {
            f"{name}_{figure}": round(value, 4)
            for name, chosen in sets.items()
            for figure, value in retrieval(now, pictures[chosen, 0], ids[chosen, 0, 1]).items()
        }

    return train(plan, values(net), loss, inputs, folder, watch=watch, watch_every=120.0)


def features(net: Net, pixels: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit features of pictures [b, 64, 64, 3] and of captions [c, n]."""
    parts = [np.asarray(_see(net, pixels[i : i + 64])) for i in range(0, len(pixels), 64)]
    return np.concatenate(parts), np.asarray(_read(net, ids.astype(np.int32)))


_see = jax.jit(lambda net, x: _unit(net.call("pictures", x)))
_read = jax.jit(lambda net, x: _unit(net.call("captions", x)))


def retrieval(net: Net, rgba: np.ndarray, ids: np.ndarray) -> dict[str, float]:
    """How often a picture on white finds its caption among all, and a caption its picture: first, in 5."""
    white = np.full((len(rgba), 3), 255, np.float32)
    seen, said = features(net, composite(rgba, white), ids)
    scores, found = seen @ said.T, {}
    for name, each in (("caption", scores), ("picture", scores.T)):
        rank = (each > np.diagonal(each)[:, None]).sum(1)
        found |= {f"{name}_top{k}": float((rank < k).mean()) for k in (1, 5)}
    return found
