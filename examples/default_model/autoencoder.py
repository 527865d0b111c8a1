"""The auto-encoder: 64x64 pixels to 16x16x4 latents, trained on emoji over any background."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from default_model.data import COLOURS, Icon, Rows, composite
from default_model.loop import Arrays, Plan, filled, train, values

from viditq_jax.models import autoencoder_kl
from viditq_jax.net import Net, abstract, initialize

CONFIG = autoencoder_kl.Config(
    scaling_factor=1.0, block_out_channels=(16, 32, 64), layers_per_block=1, norm_num_groups=8
)
KL_WEIGHT = 2e-4  # of the mean over latent values; keeps latents smooth at a spread near one


def _slopes(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return x[:, 1:] - x[:, :-1], x[:, :, 1:] - x[:, :, :-1]


def reconstruction_loss(y: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Absolute error of pixels and of their slopes, which keeps edges sharp; the squared error, for PSNR."""
    error = y - x
    edges = sum(jnp.abs(slope).mean() for slope in _slopes(error))
    return jnp.abs(error).mean() + 0.5 * edges + jnp.square(error).mean(), jnp.square(error).mean()


def fresh() -> Net:
    """Fresh weights whose latents begin with little noise: a spread of e^-2.5 instead of 1."""
    net, channels = initialize(autoencoder_kl.build, CONFIG), CONFIG.latent_channels
    arrays = values(net)
    arrays["quant_conv/bias"] = arrays["quant_conv/bias"].at[channels:].set(-5.0)
    kernel = arrays["quant_conv/kernel"]
    arrays["quant_conv/kernel"] = kernel.at[..., channels:].multiply(0.1)
    return filled(net, arrays)


def fit(icons: list[Icon], pictures: np.ndarray, plan: Plan, folder: Path) -> Net:
    """Train; latents are raw, their spread is what it came out as."""
    net = fresh()
    weight = np.array([icon.weight for icon in icons])
    cumulative = np.cumsum(0.5 * weight / weight.sum() + 0.5 / len(icons)).astype(np.float32)
    palette = np.array(list(COLOURS.values()), np.float32)
    data = {
        "pictures": jnp.asarray(pictures),
        "cumulative": jnp.asarray(cumulative),
        "palette": jnp.asarray(palette),
    }

    def draw(data: dict[str, jax.Array], key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, 5)
        icon = jnp.searchsorted(data["cumulative"], jax.random.uniform(keys[0], (plan.batch,)))
        icon = jnp.minimum(icon, len(icons) - 1)
        placement = jax.random.randint(keys[1], (plan.batch,), 0, pictures.shape[1])
        named = data["palette"][jax.random.randint(keys[2], (plan.batch,), 0, len(palette))]
        free = jax.random.uniform(keys[3], (plan.batch, 3), maxval=255.0)
        kind = jax.random.uniform(keys[4], (plan.batch, 1))
        background = jnp.where(kind < 0.5, 255.0, jnp.where(kind < 0.8, named, free))
        rgba = data["pictures"][icon, placement].astype(jnp.float32)
        return (rgba[..., :3] + (1 - rgba[..., 3:] / 255) * background[:, None, None]) / 127.5 - 1

    def loss(params: Arrays, data: dict[str, jax.Array], key: jax.Array) -> tuple[jax.Array, Arrays]:
        pixels = draw(data, jax.random.fold_in(key, 0))
        model = filled(net, params)
        mean, std = model.call("encode", pixels)
        latents = mean + std * jax.random.normal(jax.random.fold_in(key, 1), mean.shape)
        error, mse = reconstruction_loss(model.call("decode", latents), pixels)
        kl = 0.5 * (jnp.square(mean) + jnp.square(std) - 1 - 2 * jnp.log(std + 1e-12)).mean()
        return error + KL_WEIGHT * kl, {
            "mse": mse,
            "kl": kl,
            "latent_std": mean.std(),
            "noise_std": std.mean(),
        }

    check = composite(
        pictures[:: max(1, len(icons) // 64), 1][:64], palette[np.arange(64) % len(palette)][: len(icons)]
    )
    decode = jax.jit(lambda params, x: filled(net, params)(x))

    def watch(params: Arrays, step: int) -> dict[str, float]:
        from default_model.samples import sheet

        again = np.asarray(decode(params, jnp.asarray(check)))
        sheet(np.concatenate([check[:32], again[:32]]), folder / f"step-{step}.png", columns=16)
        return {"psnr": float(10 * np.log10(4 / np.square(again - check).mean()))}

    return filled(net, train(plan, values(net), loss, data, folder, watch=watch, watch_every=240.0))


def encode(net: Net, pictures: np.ndarray, rows: Rows, *, batch: int = 64) -> np.ndarray:
    """Raw latent means of all rows, float16 [rows, 16, 16, 4]."""
    from rich.progress import track

    palette = np.array(list(COLOURS.values()), np.float32)
    step = jax.jit(lambda net, x: net.call("encode", x)[0].astype(jnp.float16))
    latents = []
    for start in track(range(0, len(rows.icon), batch), "encoding"):
        ids = np.minimum(np.arange(start, start + batch), len(rows.icon) - 1)
        pixels = composite(pictures[rows.icon[ids], rows.placement[ids]], palette[rows.colour[ids]])
        latents.append(np.asarray(step(net, jnp.asarray(pixels))))
    return np.concatenate(latents)[: len(rows.icon)]


def scaled(net: Net, latents: np.ndarray) -> tuple[Net, autoencoder_kl.Config]:
    """The model whose latents have unit spread. Their mean stays: not every pipeline knows a shift."""
    sample = latents[:: max(1, len(latents) // 4096)].astype(np.float32)
    config = dataclasses.replace(CONFIG, scaling_factor=round(float(1 / sample.std()), 5))
    return filled(abstract(autoencoder_kl.build, config), values(net)), config
