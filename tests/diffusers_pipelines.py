"""Tiny diffusers pipelines with random weights in every part, saved as diffusers itself saves them."""

from pathlib import Path

from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    LattePipeline,
    LatteTransformer3DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
)
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from tests.tiny import spiece_model
from tests.torch_params import randomize

PROMPTS = ["a red apple", "two blue dogs on a table, looking at a small green pizza"]


def vae(seed: int = 1) -> AutoencoderKL:
    model = AutoencoderKL(
        block_out_channels=[8, 16], down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2, layers_per_block=1, latent_channels=4,
        norm_num_groups=4, sample_size=32, scaling_factor=0.13025,
    )  # fmt: skip
    randomize(model, seed)
    return model.eval()


def pixart_sigma(folder: Path) -> PixArtSigmaPipeline:
    """Save a tiny PixArt-Sigma pipeline to `folder` and return it."""
    transformer = PixArtTransformer2DModel(
        num_attention_heads=4, attention_head_dim=12, in_channels=4, out_channels=8, num_layers=3,
        cross_attention_dim=48, sample_size=16, patch_size=2, caption_channels=24, interpolation_scale=2,
        use_additional_conditions=False,
    )  # fmt: skip
    randomize(transformer, 2)
    scheduler = DPMSolverMultistepScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02)
    pipeline = PixArtSigmaPipeline(*text(folder.parent), vae(), transformer.eval(), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    return pipeline


def latte(folder: Path) -> LattePipeline:
    """Save a tiny Latte-1 pipeline to `folder` and return it."""
    transformer = LatteTransformer3DModel(
        num_attention_heads=4, attention_head_dim=12, in_channels=4, out_channels=8, num_layers=2,
        cross_attention_dim=48, attention_bias=True, sample_size=16, patch_size=2,
        activation_fn="gelu-approximate", norm_type="ada_norm_single", norm_elementwise_affine=False,
        norm_eps=1e-6, caption_channels=24, video_length=5,
    )  # fmt: skip
    randomize(transformer, 5)
    scheduler = DDIMScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02, clip_sample=False)
    pipeline = LattePipeline(*text(folder.parent), vae(), transformer.eval(), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    return pipeline


def text(folder: Path) -> tuple[T5Tokenizer, T5EncoderModel]:
    """A tokenizer and a text encoder of 24 channels."""
    pieces = folder / "spiece"
    pieces.mkdir(exist_ok=True)
    (pieces / "spiece.model").write_bytes(spiece_model())
    config = T5Config(
        vocab_size=100, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=3,
        feed_forward_proj="gated-gelu", is_encoder_decoder=False,
    )  # fmt: skip
    encoder = T5EncoderModel(config)
    randomize(encoder, 3)
    return T5Tokenizer.from_pretrained(pieces), encoder.eval()


def dit(folder: Path) -> DiTPipeline:
    """Save a tiny class-conditional DiT pipeline to `folder` and return it."""
    transformer = DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=12, in_channels=4, out_channels=8, num_layers=2,
        sample_size=8, patch_size=2, num_embeds_ada_norm=1000, norm_type="ada_norm_zero",
        activation_fn="gelu-approximate",
    )  # fmt: skip
    randomize(transformer, 4)
    first, *others = transformer.transformer_blocks
    for block in others:  # published files repeat one embedding in every block
        block.norm1.emb.load_state_dict(first.norm1.emb.state_dict())
    scheduler = DDIMScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02, clip_sample=False)
    pipeline = DiTPipeline(transformer.eval(), vae(), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    return pipeline
