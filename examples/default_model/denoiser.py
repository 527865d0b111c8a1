"""The denoiser and its text encoder, trained together: v-prediction under DiT's noise schedule."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from default_model.data import Rows
from default_model.loop import Arrays, Plan, filled, last_average, train, values
from default_model.samples import sheet
from default_model.text import LENGTH, PAD, Tokenizer

from viditq_jax.models import pixart, t5
from viditq_jax.net import Net, initialize
from viditq_jax.sampling.dpm_solver import DPMSolver
from viditq_jax.sampling.guidance import guided
from viditq_jax.sampling.sample import draw_noise, sample, sample_keys

CONFIG = pixart.Config(
    input_size=16, text_length=LENGTH, depth=6, width=192, heads=6, out_channels=4, caption_channels=128,
    with_null_caption=False,
)  # fmt: skip
TEXT_CONFIG = t5.Config(
    num_layers=2, d_model=128, d_ff=256, num_heads=4, d_kv=32
)  # vocab_size: the tokenizer's
SAMPLER = DPMSolver(grid="integer", spacing="trailing", prediction="v_prediction")
NO_PROMPT = 0.1  # share of captions that are dropped
GUIDANCE, STEPS = 4.5, 20


@dataclasses.dataclass(frozen=True)
class Models:
    """The two models as one thing to train."""

    denoiser: Net
    text_encoder: Net

    @classmethod
    def fresh(cls, vocabulary: int) -> "Models":
        text = dataclasses.replace(TEXT_CONFIG, vocab_size=vocabulary)
        return cls(initialize(pixart.build, CONFIG), initialize(t5.build, text, seed=1))

    def arrays(self) -> Arrays:
        text = {f"text/{name}": value for name, value in values(self.text_encoder).items()}
        return values(self.denoiser) | text

    def filled(self, arrays: Arrays) -> "Models":
        text = {
            name.removeprefix("text/"): value for name, value in arrays.items() if name.startswith("text/")
        }
        return Models(filled(self.denoiser, arrays), filled(self.text_encoder, text))

    def encode(self, ids: jax.Array) -> Any:
        mask = ids != PAD
        return self.denoiser.call("encode_prompt", self.text_encoder(ids, mask), mask)


jax.tree_util.register_dataclass(Models, data_fields=["denoiser", "text_encoder"], meta_fields=[])


def training_times(count: int = 4096, *, shift: float = 0.0) -> np.ndarray:
    """Timesteps, evenly likely, whose log signal-to-noise ratios are spread as in the cosine schedule.

    DiT's schedule by itself spends half of its time on noise in which a 16x16 latent shows nothing.
    shift: how much lower the ratios are.
    """
    alphas = SAMPLER.alphas_cumprod()
    ratio = np.log(alphas / (1 - alphas))
    share = (np.arange(count) + 0.5) / count
    wanted = -2 * np.log(np.tan(np.pi * share / 2)) - shift
    return np.interp(-wanted, -ratio, np.arange(len(ratio))).round().astype(np.int32)


def noised(latents: jax.Array, noise: jax.Array, signal: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The input of the denoiser and its target, the velocity. signal: share of the variance, [b]."""
    signal = signal.reshape(-1, *[1] * (latents.ndim - 1))
    alpha, sigma = jnp.sqrt(signal), jnp.sqrt(1 - signal)
    return alpha * latents + sigma * noise, alpha * noise - sigma * latents


def fit(
    latents: np.ndarray,
    ids: np.ndarray,
    rows: Rows,
    tokenizer: Tokenizer,
    decoder: Net,
    prompts: list[str],
    plan: Plan,
    folder: Path,
    *,
    dtype: Any = jnp.float32,
) -> Models:
    """Train on scaled latents [rows, 16, 16, 4] and ids [rows, 2, LENGTH]; gives the averaged weights.

    dtype: of activations and products; weights and optimizer are float32.
    """
    models = Models.fresh(tokenizer.size)
    signal = jnp.asarray(SAMPLER.alphas_cumprod(), jnp.float32)
    times = jnp.asarray(training_times())
    data = {
        "latents": jnp.asarray(latents),
        "ids": jnp.asarray(ids),
        "cumulative": jnp.asarray(np.cumsum(rows.weight).astype(np.float32)),
        "empty": jnp.asarray(tokenizer([""])[0]),
    }

    def velocity(params: Arrays, x: jax.Array, t: jax.Array, ids: jax.Array) -> jax.Array:
        now = models.filled({name: value.astype(dtype) for name, value in params.items()})
        return now.denoiser(x.astype(dtype), t.astype(jnp.float32), now.encode(ids)).astype(jnp.float32)

    def loss(params: Arrays, data: Arrays, key: jax.Array) -> tuple[jax.Array, Arrays]:
        keys = jax.random.split(key, 5)
        row = jnp.searchsorted(data["cumulative"], jax.random.uniform(keys[0], (plan.batch,)))
        row = jnp.minimum(row, len(data["latents"]) - 1)
        styled = jax.random.bernoulli(keys[1], 0.5, (plan.batch,)).astype(jnp.int32)
        ids = jnp.where(
            jax.random.bernoulli(keys[2], NO_PROMPT, (plan.batch, 1)), data["empty"], data["ids"][row, styled]
        )
        # One time from each of `batch` equal parts of the table: less noise in the loss than independent
        # draws.
        spread = (jnp.arange(plan.batch) + jax.random.uniform(keys[3], (plan.batch,))) / plan.batch
        t = times[(spread * len(times)).astype(jnp.int32)]
        clean = data["latents"][row].astype(jnp.float32)
        x, target = noised(clean, jax.random.normal(keys[4], clean.shape), signal[t])
        return jnp.square(velocity(params, x, t, ids) - target).mean(), {}

    def check(chosen: np.ndarray) -> dict[str, jax.Array]:
        chosen = np.resize(np.random.default_rng(0).permutation(chosen), 256)
        t = times[np.arange(256) * len(times) // 256]
        clean = jnp.asarray(latents[chosen], jnp.float32)
        x, target = noised(clean, jax.random.normal(jax.random.key(7), clean.shape), signal[t])
        return {"x": x, "t": t, "ids": jnp.asarray(ids[chosen, 1]), "target": target}

    seen = np.flatnonzero(~rows.held_out & (rows.placement == 0) & (rows.colour == 0))
    sets = {"held_out": check(np.flatnonzero(rows.held_out)), "seen": check(seen)}
    measure = jax.jit(
        lambda params, c: jnp.square(velocity(params, c["x"], c["t"], c["ids"]) - c["target"]).mean()
    )

    def watch(params: Arrays, step: int) -> dict[str, float]:
        images = draw(models.filled(params), decoder, tokenizer, prompts)
        sheet(images, folder / f"step-{step}.png", columns=8)
        return {name: round(float(measure(params, c)), 5) for name, c in sets.items()}

    return models.filled(train(plan, models.arrays(), loss, data, folder, watch=watch, watch_every=480.0))


def latest(vocabulary: int, folder: Path) -> Models:
    """The averaged weights of the last checkpoint, while training goes on."""
    models = Models.fresh(vocabulary)
    return models.filled(last_average(folder))


@partial(jax.jit, static_argnames="steps")
def _draw(
    models: Models, decoder: Net, ids: jax.Array, keys: jax.Array, guidance: jax.Array, steps: int
) -> jax.Array:
    prompt = models.encode(ids)
    denoise = guided(lambda x, t, i: models.denoiser(x, t, prompt), guidance)
    shape = (CONFIG.input_size, CONFIG.input_size, CONFIG.in_channels)
    latents = sample(denoise, SAMPLER, draw_noise(keys, shape), keys, steps=steps)
    return decoder.call("decode", latents)


def draw(
    models: Models, decoder: Net, tokenizer: Tokenizer, prompts: list[str], *, seed: int = 0,
    guidance: float = GUIDANCE, steps: int = STEPS,
) -> np.ndarray:  # fmt: skip
    """A picture a prompt, float32 [b, 64, 64, 3] about in [-1, 1]."""
    ids = jnp.asarray(tokenizer([*prompts, *([""] * len(prompts))]))
    keys = sample_keys(seed, 0, len(prompts))
    return np.asarray(_draw(models, decoder, ids, keys, jnp.float32(guidance), steps))
