"""Sampling programs as files: StableHLO by `jax.export`, and the weights beside it.

    program.json           facts of the pipeline, shapes, platforms, versions; size and sha256 of every file
    denoise.jaxexport      noise to latents, the whole trajectory;  decode.jaxexport  latents to pixels
    encode_text.jaxexport  token ids to text features;  encode_null.jaxexport  the same of the one null prompt
    weights/*.safetensors  the arrays of each model, as they are in memory; arguments of the programs
    tokenizer/...          verbatim

A program is for one device, batch size, size, number of frames and steps, with guidance or without. It needs
nothing that this library registers with XLA: kernels and machine code of this project stay out of it, and
products of integers are those that XLA compiles. It knows no frames that are given.
"""

from viditq_jax.export._read import ExportedPipeline, load_exported
from viditq_jax.export._write import export_pipeline

__all__ = ["ExportedPipeline", "export_pipeline", "load_exported"]
