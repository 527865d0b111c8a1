"""The card of the packaged model: what it is, how it was made, what it can do, and the notices it owes."""

import json
from importlib import metadata
from pathlib import Path
from typing import Any

from default_model import denoiser
from default_model.data import FAVOURITE_WEIGHT, PACKAGES

_CARD = """\
# Default model: emoji from text, 64x64

A small text-to-image diffusion transformer of the PixArt-Sigma family: a denoiser of {depth} blocks of width
{width}, a two-layer T5 encoder and a convolutional auto-encoder, {params:.2f} million parameters in all,
{megabytes:.1f} MB in bfloat16. It exists so that every command, example and test of this library runs on a
real, trained model without a download and on a CPU. The folder is in the layout of diffusers.

![samples](samples.png)

The sheet, row by row, guidance {guidance:g}, {steps} steps of DPM-Solver++, seed 0:

{prompts}

## Use

Prompts are short: "red apple", "red apple, noto style", "pizza on a green background, fluent style".
Recommended: {steps} steps, guidance {guidance:g}. With diffusers:

    pipe = PixArtSigmaPipeline.from_pretrained(folder)
    pipe("red apple", num_inference_steps={steps}, guidance_scale={guidance:g}, max_sequence_length={length},
         use_resolution_binning=False)

It can: draw the common food, animals, smileys and objects that it was shown most, in two styles, on white or
on a named colour. It cannot: count, compose several subjects, draw people, write, or follow a sentence;
subjects that were shown rarely come out blurred or wrong, and the colours of subject and background may be
swapped ("blue heart on a yellow background"). It was trained on pictures of single icons and knows nothing
else.

## Data

{data}

{icons} icons, drawn at 128x128 and averaged down to 64x64, with small shifts and scales and on {colours}
colours. Captions are made from the names of the icons. People in one skin tone are left out of everything;
people, signs and flags train the auto-encoder alone. The denoiser is shown {shown} icons, {favourites}
favourite subjects {favourite_weight:g} times as often; {held_out} (subject, style) pairs are held out
from it, while the other style of the same subject is shown.

## Training

On {machine}. Both optimizers are Muon with AdamW for what is no matrix (optax {optax}); the averaged weights
are kept.{note}

| | auto-encoder | denoiser and text encoder |
|---|---|---|
| parameters | {vae_params:,} | {denoiser_params:,} and {text_params:,} |
| steps x batch | {vae_steps} x {vae_batch} | {steps_done} x {batch} |
| minutes | {vae_minutes:.0f} | {minutes:.0f} |
| loss at the end | {vae_loss:.4f} (pixels, slopes, squares) | {loss:.4f} (squared error of the velocity) |
| averaged weights | PSNR {psnr:.2f} dB on 64 training icons | {held:.4f} held out, {seen:.4f} seen |

Velocity loss at the watched steps (held out / seen): {curve}.

The noise schedule is DiT's (linear betas, 1e-4 to 0.02, 1000 steps); times are drawn so that the log
signal-to-noise ratio is spread as in the cosine schedule. 10 % of the captions are dropped. Latents are
scaled by {scaling}.

Made by `examples/train_default.py`: the same command makes it again (jax {jax}, flax {flax}, resvg_py
{resvg-py}, sentencepiece {sentencepiece}). The budget is time, so another machine or
another load gives other weights.

## Licenses and notices

The weights are under the license of this library. The drawings that they were trained on:

* Noto Emoji, Copyright Google Inc., https://github.com/googlefonts/noto-emoji; drawings under the Apache
  License, Version 2.0 (https://www.apache.org/licenses/LICENSE-2.0).
* Fluent UI Emoji, https://github.com/microsoft/fluentui-emoji, under the MIT License:

{mit}
"""

_MIT = """\
    MIT License

    Copyright (c) Microsoft Corporation.

    Permission is hereby granted, free of charge, to any person obtaining a copy
    of this software and associated documentation files (the "Software"), to deal
    in the Software without restriction, including without limitation the rights
    to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
    copies of the Software, and to permit persons to whom the Software is
    furnished to do so, subject to the following conditions:

    The above copyright notice and this permission notice shall be included in all
    copies or substantial portions of the Software.

    THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
    IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
    FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
    AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
    LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
    OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
    SOFTWARE.
"""

_STYLES = {
    "noto": ("Noto Emoji", "Apache-2.0"),
    "fluent": ("Fluent UI Emoji, flat", "MIT"),
}


def read_log(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The last line of losses and all watched lines of a training log."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line][-1], [line for line in lines if "watch" in line]


def write_card(
    folder: Path,
    run: Path,
    prompts: list[str],
    params: dict[str, int],
    counts: dict[str, int],
    batches: dict[str, int],
    machine: str,
    note: str,
) -> None:
    """Write CARD.md from the logs of the run. counts: icons, shown, favourites, held_out, colours.

    batches: pictures in a step, by the name of the log. machine, note: in words.
    """
    vae, vae_watched = read_log(run / "autoencoder")
    last, watched = read_log(run / "denoiser")
    total = sum(params.values())
    final = watched[-1]["watch"] if watched else {"held_out": float("nan"), "seen": float("nan")}
    rows = ["; ".join(prompts[i : i + 8]) for i in range(0, len(prompts), 8)]
    card = _CARD.format(
        depth=denoiser.CONFIG.depth,
        width=denoiser.CONFIG.width,
        params=total / 1e6,
        megabytes=2 * total / 1e6,
        guidance=denoiser.GUIDANCE,
        steps=denoiser.STEPS,
        length=denoiser.LENGTH,
        prompts="\n".join(f"{i}. {row}" for i, row in enumerate(rows, 1)),
        data="\n".join(
            f"* {_STYLES[style][0]}: npm package `{name}`, {_STYLES[style][1]}"
            for style, name in PACKAGES.items()
        ),
        **counts,
        **{name: metadata.version(name) for name in ("optax", "jax", "flax", "resvg-py", "sentencepiece")},
        vae_params=params["vae"],
        denoiser_params=params["transformer"],
        text_params=params["text_encoder"],
        vae_steps=vae["step"],
        vae_batch=batches["autoencoder"],
        vae_minutes=vae["seconds"] / 60,
        vae_loss=vae["loss"],
        psnr=vae_watched[-1]["watch"]["psnr"],
        steps_done=last["step"],
        batch=batches["denoiser"],
        minutes=last["seconds"] / 60,
        loss=last["loss"],
        held=final["held_out"],
        seen=final["seen"],
        curve="; ".join(
            f"{w['step']}: {w['watch']['held_out']:.3f} / {w['watch']['seen']:.3f}" for w in watched
        ),
        scaling=json.loads((folder / "vae" / "config.json").read_text())["scaling_factor"],
        favourite_weight=FAVOURITE_WEIGHT,
        machine=machine,
        note=f" {note}" if note else "",
        mit=_MIT,
    )
    (folder / "CARD.md").write_text(card)
