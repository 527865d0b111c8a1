"""The video denoiser: the image model with attention across frames, trained on clips with its text frozen."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from default_model import denoiser as image
from default_model.loop import Arrays, Plan, filled, last_average, muon, train, values
from default_model.samples import sheet
from default_model.text import LENGTH, PAD, Tokenizer
from default_video.clips import BACKGROUNDS, FILMED, FRAMES, MOTIONS, Films, caption, held_out

from viditq_jax.models import stdit
from viditq_jax.net import Net, initialize
from viditq_jax.nn.embed import sincos_1d
from viditq_jax.sampling.guidance import guided
from viditq_jax.sampling.sample import draw_noise, sample, sample_keys

CONFIG = stdit.Config(
    frames=FRAMES, input_size=image.CONFIG.input_size, text_length=LENGTH, depth=image.CONFIG.depth,
    width=image.CONFIG.width, heads=image.CONFIG.heads, in_channels=image.CONFIG.in_channels,
    out_channels=image.CONFIG.out_channels, caption_channels=image.CONFIG.caption_channels,
    with_null_caption=False,
)  # fmt: skip
SAMPLER, NO_PROMPT = image.SAMPLER, image.NO_PROMPT
GUIDANCE, STEPS = 4.5, 20
# What frames have in common shows through their noise as if there were less of it, and motion is decided
# where no frame shows anything by itself; so training is moved to more noise.
SHIFT = 1.5 * float(np.log(FRAMES))
QUICK = 2.0
NUMBER = 0.4  # how much a frame's number is heard at the start, before the gate of the block


def start(pictures: Net) -> Net:
    """The image model's weights, and fresh attention across frames, which gives zero but in the first block.

    Left and right, up and down, larger and smaller cancel out: a frame's number tells nothing without the
    motion. A model that has to learn to see the number stays where it tells nothing for long, so the first
    block begins by telling it: there each frame looks at itself, and gives what tells frames apart.
    """
    net = initialize(stdit.build, CONFIG)
    arrays = values(net) | values(pictures)
    width, size = CONFIG.width, CONFIG.width // CONFIG.heads
    times = sincos_1d(width, np.arange(FRAMES) / CONFIG.time_scale)
    mean = times.mean(axis=0)
    apart = np.linalg.svd(times - mean)[2][: FRAMES - 1]  # the axes along which frames differ
    channels = np.add.outer(np.arange(CONFIG.heads) * size, np.arange(FRAMES - 1)).ravel()
    spread = np.random.default_rng(0).normal(size=(width, FRAMES - 1)) * (NUMBER / CONFIG.heads)

    first = "blocks/0/attn_temp/"
    query, _, value = np.split(np.array(arrays[f"{first}qkv/weight"]), 3)
    value[channels] = np.tile(apart, (CONFIG.heads, 1))
    bias = np.array(arrays[f"{first}qkv/bias"])
    bias[2 * width + channels] = np.tile(-apart @ mean, CONFIG.heads)
    project = np.zeros((width, width), np.float32)
    project[:, channels] = np.tile(spread, (1, CONFIG.heads))
    new = {"qkv/weight": np.concatenate([2 * query, 2 * query, value]), "qkv/bias": bias}
    new["proj/weight"] = project
    return filled(
        net, arrays | {first + name: jnp.asarray(array, jnp.float32) for name, array in new.items()}
    )


@dataclasses.dataclass(frozen=True)
class Text:
    """The frozen text encoder of the image model."""

    encoder: Net
    tokenizer: Tokenizer

    def __call__(self, prompts: list[str], *, batch: int = 128) -> tuple[jax.Array, jax.Array]:
        """Features [prompts, LENGTH, channels] and the mask [prompts, LENGTH] of their tokens."""
        ids = self.tokenizer(prompts)
        padded = np.concatenate([ids, np.repeat(ids[-1:], -len(ids) % batch, axis=0)])
        encode = jax.jit(lambda net, ids: net(ids, ids != PAD))
        parts = [encode(self.encoder, padded[i : i + batch]) for i in range(0, len(padded), batch)]
        return jnp.concatenate(parts)[: len(ids)], jnp.asarray(ids != PAD)


def caption_table(words: list[str]) -> list[str]:
    """The captions of all subjects, motions and backgrounds, in this order."""
    return [caption(word, motion, colour) for word in words for motion in MOTIONS for colour in BACKGROUNDS]


def fit(
    net: Net, films: Films, words: list[str], text: Text, decoder: Net, prompts: list[str], plan: Plan,
    folder: Path, *, dtype: Any = jnp.float32, watch_every: float = 420.0,
) -> Net:  # fmt: skip
    """Train on the films of the subjects `words`; gives the averaged weights.

    prompts: drawn now and then, to be looked at. dtype: of activations and products; weights and optimizer
    are float32.
    """
    features, mask = text([*caption_table(words), ""])
    hidden = held_out(len(words))
    data = {
        "latents": jnp.asarray(films.latents),
        "colours": jnp.asarray(films.colours),
        "features": features,
        "mask": mask,
        "pairs": jnp.asarray(np.argwhere(~hidden)),
    }
    films_of = list(FILMED)
    backward = {back: name for name, back in FILMED.items() if back}
    film = jnp.asarray([films_of.index(backward.get(motion, motion)) for motion in MOTIONS])
    reverse = jnp.asarray([motion in backward for motion in MOTIONS])
    signal = jnp.asarray(SAMPLER.alphas_cumprod(), jnp.float32)
    times = jnp.asarray(image.training_times(shift=SHIFT))

    def loss(
        params: Arrays, data: Arrays, key: jax.Array, count: int = plan.batch
    ) -> tuple[jax.Array, Arrays]:
        keys = jax.random.split(key, 5)
        subject, motion = data["pairs"][jax.random.randint(keys[0], (count,), 0, len(data["pairs"]))].T
        variant = jax.random.randint(keys[1], (count,), 0, films.latents.shape[2])
        clean = data["latents"][subject, film[motion], variant].astype(jnp.float32)
        clean = jnp.where(reverse[motion][:, None, None, None, None], clean[:, ::-1], clean)
        row = (subject * len(MOTIONS) + motion) * len(BACKGROUNDS)
        row = row + data["colours"][subject, film[motion], variant]
        row = jnp.where(jax.random.bernoulli(keys[2], NO_PROMPT, (count,)), len(data["mask"]) - 1, row)
        # One time from each of `batch` equal parts of the table: less noise in the loss.
        spread = (jnp.arange(count) + jax.random.uniform(keys[3], (count,))) / count
        t = times[(spread * len(times)).astype(jnp.int32)]
        x, target = image.noised(clean, jax.random.normal(keys[4], clean.shape), signal[t])
        now = filled(net, {name: value.astype(dtype) for name, value in params.items()})
        prompt = now.call("encode_prompt", data["features"][row].astype(dtype), data["mask"][row])
        velocity = now(x.astype(dtype), t.astype(jnp.float32), prompt).astype(jnp.float32)
        return jnp.square(velocity - target).mean(), {}

    def watch(params: Arrays, step: int) -> dict[str, float]:
        videos = draw(filled(net, params), decoder, text, prompts, steps=12)
        sheet(videos.reshape(-1, *videos.shape[2:]), folder / f"step-{step}.png", columns=FRAMES)
        return {"loss": round(float(measure(params, data)), 5)}

    # Always the same draw, for a curve with less noise than the losses of steps.
    measure = jax.jit(lambda params, data: loss(params, data, jax.random.key(7), 32)[0])
    arrays = train(
        plan, values(net), loss, data, folder,
        optimizer=optax.chain(muon(plan), _quick()), watch=watch, watch_every=watch_every,
    )  # fmt: skip
    return filled(net, arrays)


def _quick() -> optax.GradientTransformation:
    """Lets attention across frames, which is new, change QUICK times as fast as what was trained before."""

    def scale(updates: Any, params: Any) -> Any:
        return {name: QUICK * u if "attn_temp" in name else u for name, u in updates.items()}

    return optax.stateless(scale)


def latest(net: Net, folder: Path) -> Net:
    """The averaged weights of the last checkpoint, while training goes on."""
    return filled(net, last_average(folder))


@partial(jax.jit, static_argnames="steps")
def _draw(
    net: Net, decoder: Net, features: jax.Array, mask: jax.Array, keys: jax.Array, guidance: jax.Array,
    steps: int,
) -> jax.Array:  # fmt: skip
    prompt = net.call("encode_prompt", features, mask)
    denoise = guided(lambda x, t, i: net(x, t, prompt), guidance)
    shape = (CONFIG.frames, CONFIG.input_size, CONFIG.input_size, CONFIG.in_channels)
    latents = sample(denoise, SAMPLER, draw_noise(keys, shape), keys, steps=steps)
    pixels = decoder.call("decode", latents.reshape(-1, *shape[1:]))
    return pixels.reshape(*latents.shape[:2], *pixels.shape[1:])


def draw(
    net: Net, decoder: Net, text: Text, prompts: list[str], *, seed: int = 0, guidance: float = GUIDANCE,
    steps: int = STEPS, batch: int = 8,
) -> np.ndarray:  # fmt: skip
    """A video a prompt, float32 [b, FRAMES, 64, 64, 3] about in [-1, 1]; `batch` at once."""
    videos = []
    for first in range(0, len(prompts), batch):
        asked = prompts[first : first + batch]
        asked = [*asked, *[""] * (batch - len(asked))]
        features, mask = text([*asked, *[""] * batch], batch=2 * batch)
        keys = sample_keys(seed, first, batch)
        videos.append(np.asarray(_draw(net, decoder, features, mask, keys, jnp.float32(guidance), steps)))
    return np.concatenate(videos)[: len(prompts)]
