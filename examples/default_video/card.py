"""The card of the packaged video model: what it is, how it was made, what it can do, and its notices."""

import textwrap
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from default_model.card import read_log
from default_model.data import PACKAGES
from default_video.clips import BACKGROUNDS, FILMED, FRAMES, MOTIONS, STYLE, SUBJECTS, WHITE
from default_video.denoiser import CONFIG, GUIDANCE, NO_PROMPT, SHIFT, STEPS

_CARD = """\
# Default video model: emoji in motion from text, {frames} frames of 64x64

A small text-to-video diffusion transformer of the STDiT family (Open-Sora 1.0): {depth} blocks of width
{width} with attention within frames, across frames and to the prompt; {params:,} parameters,
{megabytes:.1f} MB in bfloat16, in the original layout of STDiT. Autoencoder, text encoder, tokenizer and
scheduler are those of the default image model beside it: `model_index.json` says where they lie. It exists so
that every command, example and test about videos runs on a real, trained model without a download and on a
CPU.

![samples](samples.png)

The sheet, a row a prompt, the {frames} frames from left to right; guidance {guidance:g}, {steps} steps of
DPM-Solver++, seed 0:

{prompts}

## Use

A prompt is a subject, a motion and, unless it is white, a background: "red apple moving left", "pizza
spinning on a yellow background". Recommended: {steps} steps, guidance {guidance:g}.

{subjects}
{motions}
{backgrounds}

It can: show these subjects in these motions. It cannot: do anything else. Other subjects of the image model
are drawn as far as its weights still know them, details of small objects are blurred, and the colours of
subject and background may be swapped.

## Does the motion follow the prompt?

Measured on drawn videos by `examples/default_video/motion.py`, which names one of the motions or none from
the place, size and turn of what differs from the background; one clip of the training data for each subject
and motion, on changing backgrounds, it named all 128 right.

| | right | of |
|---|---|---|
| subjects in motions that training had, the sheet among them | {seen_right} | {seen} |
| held-out pairs of subject and motion | {held_right} | {held} |

{by_motion}{wrong}

## Data

Icons of npm package `{package}` (Apache-2.0), {subject_count} subjects that the image model
draws well. An icon is drawn at 192x192, moved, scaled and turned by less than pixels along a random track,
and averaged down to 64x64. {variants} films of each subject in each of {filmed} filmed motions; run
backwards, they also show the opposite motions. {white:.0%} of the films are on white, the others on one of
{colour_count} colours. {held} pairs of subject and motion, one a subject at most, are never shown.

## Training

On {machine}. {steps_done} steps of {batch} clips, {minutes:.0f} minutes; loss at the end {loss:.4f} (squared
error of the velocity). It starts from the weights of the image model; attention across frames begins as zero,
but for the first block, which tells frames apart from the start. Muon with AdamW for what is no matrix (optax
{optax}), peak rate {rate:g}; the averaged weights are kept. The
noise schedule is that of the image model; times are drawn as there, with log signal-to-noise ratios lower by
{shift:.2f}; {no_prompt:.0%} of the captions are dropped. The text encoder is frozen.{note}

Made by `examples/train_default_video.py`: the same command makes it again (jax {jax}, flax {flax}, resvg_py
{resvg-py}).

## Licenses and notices

The weights are under the license of this library. The drawings that they were trained on: Noto Emoji,
Copyright Google Inc., https://github.com/googlefonts/noto-emoji, under the Apache License, Version 2.0
(https://www.apache.org/licenses/LICENSE-2.0). The image model, from which it starts, was also trained on
Fluent UI Emoji, Copyright (c) Microsoft Corporation, under the MIT License; its card has the notice.
"""


def write_card(
    folder: Path, run: Path, prompts: list[str], asked: Sequence[Any], found: list[str], nbytes: int,
    facts: dict[str, object],
) -> None:  # fmt: skip
    """Write CARD.md from the log of the run.

    asked: with a motion each, and whether it was shown in training. found: the motions that were read. facts:
    machine, batch, rate, variants and note.
    """
    last, _ = read_log(run / "denoiser")
    right = [each.motion == motion for each, motion in zip(asked, found, strict=True)]
    groups = {
        shown: [ok for each, ok in zip(asked, right, strict=True) if each.shown == shown]
        for shown in (True, False)
    }
    each_motion = []
    for name in MOTIONS:
        of = [ok for each, ok in zip(asked, right, strict=True) if each.motion == name]
        each_motion.append(f"{name} {sum(of)}/{len(of)}")
    wrong = [
        f'"{each.prompt}" reads as {motion}'
        for each, motion in zip(asked, found, strict=True)
        if each.motion != motion
    ]
    card = _CARD.format(
        frames=FRAMES,
        depth=CONFIG.depth,
        width=CONFIG.width,
        params=nbytes // 2,
        megabytes=nbytes / 1e6,
        guidance=GUIDANCE,
        steps=STEPS,
        prompts="\n".join(f"{i}. {prompt}" for i, prompt in enumerate(prompts, 1)),
        subjects=_list("* Subjects:", [name.replace("-", " ") for name in SUBJECTS]),
        motions=_list("* Motions:", MOTIONS),
        backgrounds=_list("* Backgrounds:", BACKGROUNDS),
        seen=len(groups[True]),
        seen_right=sum(groups[True]),
        held=len(groups[False]),
        held_right=sum(groups[False]),
        by_motion=_list("By motion (both together):", each_motion),
        wrong="\n\n" + _list("Wrong:", wrong) if wrong else "",
        package=PACKAGES[STYLE],
        subject_count=len(SUBJECTS),
        filmed=len(FILMED),
        colour_count=len(BACKGROUNDS) - 1,
        steps_done=last["step"],
        minutes=last["seconds"] / 60,
        loss=last["loss"],
        shift=SHIFT,
        white=WHITE,
        no_prompt=NO_PROMPT,
        **{name: metadata.version(name) for name in ("optax", "jax", "flax", "resvg-py")},
        **facts,
    )
    (folder / "CARD.md").write_text(card)


def _list(title: str, words: Iterable[str]) -> str:
    """A title and what it lists, in lines of the card's width."""
    return textwrap.fill(f"{title} {', '.join(words)}.", 108, subsequent_indent="  " * title.startswith("*"))
