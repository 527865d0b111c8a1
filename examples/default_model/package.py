"""The package: a folder in the layout of diffusers, with a card, samples and notices."""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from default_model import denoiser as recipe
from default_model.card import write_card
from default_model.samples import sheet
from default_model.text import LENGTH, Tokenizer

from converters import export, save_safetensors
from viditq_jax.files import write_json
from viditq_jax.models import autoencoder_kl
from viditq_jax.net import Net

# The second half of the sheet of samples: styles, backgrounds, and what the demonstrations do not ask for.
MORE_PROMPTS = (
    "red apple, noto style", "red apple, fluent style", "dog face, noto style", "dog face, fluent style",
    "blue heart on a yellow background", "pizza on a green background", "panda on a pink background",
    "lemon on a black background", "banana", "carrot", "tulip", "crying face", "christmas tree", "grapes",
    "birthday cake", "smiling face with sunglasses",
)  # fmt: skip


def write(
    folder: Path, models: recipe.Models, vae: Net, vae_config: autoencoder_kl.Config, tokenizer: Tokenizer,
    run: Path, prompts: list[str], counts: dict[str, int], batches: dict[str, int],
    machine: str, note: str = "",
) -> None:  # fmt: skip
    """Write the three models in bfloat16, their configs, the tokenizer, the scheduler, samples and the card.

    run: the folder of the training, for its tokenizer and logs. counts, batches, machine, note: for the card.
    """
    text_config = dataclasses.replace(recipe.TEXT_CONFIG, vocab_size=tokenizer.size)
    parts = {
        "transformer": (models.denoiser, "pixart", recipe.CONFIG, "diffusers", _transformer()),
        "vae": (vae, "autoencoder_kl", vae_config, "diffusers", _vae(vae_config)),
        "text_encoder": (
            models.text_encoder,
            "t5",
            text_config,
            "transformers",
            _text_encoder(tokenizer.size),
        ),
    }
    stored = {name: net.astype(jnp.bfloat16) for name, (net, *_) in parts.items()}
    for name, (_, model, config, layout, facts) in parts.items():
        file = "model.safetensors" if name == "text_encoder" else "diffusion_pytorch_model.safetensors"
        (folder / name).mkdir(parents=True, exist_ok=True)
        written = save_safetensors(folder / name / file, export(stored[name], model, config, format=layout))
        written.chmod(0o644)
        write_json(folder / name / "config.json", facts, indent=2)
    write_json(folder / "scheduler" / "scheduler_config.json", _scheduler(), indent=2)
    write_json(folder / "model_index.json", MODEL_INDEX, indent=2)
    (folder / "tokenizer").mkdir(exist_ok=True)
    for file in ("spiece.model", "tokenizer_config.json"):
        (folder / "tokenizer" / file).write_bytes((run / "tokenizer" / file).read_bytes())

    asked = [*prompts, *MORE_PROMPTS]
    rounded = recipe.Models(*(stored[name].astype(jnp.float32) for name in ("transformer", "text_encoder")))
    images = recipe.draw(rounded, stored["vae"].astype(jnp.float32), tokenizer, asked)
    sheet(images, folder / "samples.png", columns=8)
    params = {name: net.nbytes() // 2 for name, net in stored.items()}
    write_card(folder, run, asked, params, counts, batches, machine, note)


MODEL_INDEX = {
    "_class_name": "PixArtSigmaPipeline",
    "_diffusers_version": "0.42.1",
    "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
    "text_encoder": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "T5Tokenizer"],
    "transformer": ["diffusers", "PixArtTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def _transformer() -> dict[str, Any]:
    config = recipe.CONFIG
    return {
        "_class_name": "PixArtTransformer2DModel",
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_head_dim": config.width // config.heads,
        "attention_type": "default",
        "caption_channels": config.caption_channels,
        "cross_attention_dim": config.width,
        "dropout": 0.0,
        "in_channels": config.in_channels,
        "interpolation_scale": config.pe_interpolation,
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "norm_num_groups": 32,
        "norm_type": "ada_norm_single",
        "num_attention_heads": config.heads,
        "num_embeds_ada_norm": 1000,
        "num_layers": config.depth,
        "out_channels": config.out_channels,
        "patch_size": config.patch_size,
        "sample_size": config.input_size,
        "upcast_attention": False,
        "use_additional_conditions": config.micro_conditions,
    }


def _vae(config: autoencoder_kl.Config) -> dict[str, Any]:
    stages = len(config.block_out_channels)
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": list(config.block_out_channels),
        "down_block_types": ["DownEncoderBlock2D"] * stages,
        "in_channels": 3,
        "latent_channels": config.latent_channels,
        "layers_per_block": config.layers_per_block,
        "norm_num_groups": config.norm_num_groups,
        "out_channels": 3,
        "sample_size": recipe.CONFIG.input_size * config.downsampling,
        "scaling_factor": config.scaling_factor,
        "up_block_types": ["UpDecoderBlock2D"] * stages,
    }


def _text_encoder(vocabulary: int) -> dict[str, Any]:
    config = dataclasses.asdict(recipe.TEXT_CONFIG) | {"vocab_size": vocabulary}
    return {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "d_ff": config["d_ff"],
        "d_kv": config["d_kv"],
        "d_model": config["d_model"],
        "decoder_start_token_id": 0,
        "dense_act_fn": "gelu_new",
        "dropout_rate": 0.0,
        "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": True,
        "is_gated_act": True,
        "layer_norm_epsilon": config["layer_norm_epsilon"],
        "n_positions": LENGTH,
        "num_decoder_layers": config["num_layers"],
        "num_heads": config["num_heads"],
        "num_layers": config["num_layers"],
        "pad_token_id": 0,
        "relative_attention_max_distance": config["relative_attention_max_distance"],
        "relative_attention_num_buckets": config["relative_attention_num_buckets"],
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": config["vocab_size"],
    }


def _scheduler() -> dict[str, Any]:
    sampler = recipe.SAMPLER
    return {
        "_class_name": "DPMSolverMultistepScheduler",
        "algorithm_type": "dpmsolver++",
        "beta_end": sampler.beta_end,
        "beta_schedule": sampler.beta_schedule,
        "beta_start": sampler.beta_start,
        "final_sigmas_type": sampler.final_sigma,
        "lower_order_final": sampler.lower_order_final,
        "num_train_timesteps": sampler.num_train_timesteps,
        "prediction_type": sampler.prediction,
        "solver_order": 2,
        "solver_type": "midpoint",
        "steps_offset": sampler.steps_offset,
        "thresholding": False,
        "timestep_spacing": sampler.spacing,
    }
