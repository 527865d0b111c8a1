"""The card of the metric network; its lines are short once they are filled in."""

# ruff: noqa: E501

CARD = """\
# Metric network: pictures and captions of emoji as neighbours

Two small encoders, one of 64x64 pixels and one of captions, trained together so that a picture and its
caption lie near each other (CLIP, arXiv 2103.00020): {params:,} parameters, {megabytes:.2f} MB in bfloat16.
It exists so that FID, a perceptual distance and text alignment can be measured of the packaged default models
without a download and on a CPU.

## What it is for, and what not

For comparing variants of the packaged default models with each other, on pictures of single emoji:

* `fid`: Frechet distance in its {features} features. **Not** the FID of papers, which is of InceptionV3 on
  photographs.
* `perceptual`: unit-normalized features of four layers, in the form of LPIPS. **Not** LPIPS: no learned weights of
  channels, no human judgements.
* `alignment`: 100 max(cos, 0) of picture and prompt, in the form of the CLIP score. **Not** the CLIP score.

No figure is comparable with a figure of another network, and none says anything of pictures that are no
emoji: people, signs and flags were left out, and so were photographs.

## What it was found to do

Pictures on white; chance in brackets. Held out are the {held_out} (subject, style) pairs that the default model is held
out, too: the other style of the same subject is shown.

| | first | among 5 |
|---|---|---|
| caption of a held-out picture, of {held_out} ({held_chance:.1%}) | {held_caption_top1:.1%} | {held_caption_top5:.1%} |
| picture of a held-out caption, of {held_out} ({held_chance:.1%}) | {held_picture_top1:.1%} | {held_picture_top5:.1%} |
| caption of a picture that was shown, of {shown} ({shown_chance:.2%}) | {shown_caption_top1:.1%} | {shown_caption_top5:.1%} |
| picture of a caption that was shown, of {shown} ({shown_chance:.2%}) | {shown_picture_top1:.1%} | {shown_picture_top5:.1%} |
| packaged prompt of its drawings, of {prompts} ({prompt_chance:.1%}) | {prompt_top1:.1%} | |
| style of a held-out picture, of 2 (50%) | {style_top1:.1%} | |
| background of a held-out picture, of {colours} ({colour_chance:.1%}) | {colour_top1:.1%} | |

## `real.png`

![drawings](real.png)

What the default model was shown of the packaged prompts: a row a prompt, in the order of
`assets/prompts/default.txt`; {placements} placements in the first style, then in the other. FID to the real
data is to these {real} pictures.

## Data

{data}

{shown} icons with their captions, and {held_out} held out, in the placements and on the {colours} backgrounds of the
default model, half of them on white; also mirrored, moved by up to {shift} pixels, blurred, brightened and made noisy
at random. Icons are drawn by the root of the weight that they have for the default model.

## Training

On {machine}, peak rate {rate:g}: {steps} steps of {batch} pictures, {minutes:.0f} minutes; loss at
the end {loss:.3f}, cosines times {scale:.1f}. Muon with AdamW for what is no matrix (optax {optax}); the averaged
weights are kept. Captions that are the same in a batch share the truth.

Held-out captions found, of {held_out}, at the watched steps: {curve}.

Made by `examples/train_metric.py`: the same command makes it again (jax {jax}, flax {flax}, resvg_py
{resvg-py}). The budget is time, so another machine or another load gives other weights.

## Licenses and notices

The weights are under the license of this library. The drawings that they were trained on, and that `real.png`
shows:

* Noto Emoji, Copyright Google Inc., https://github.com/googlefonts/noto-emoji; drawings under the Apache
  License, Version 2.0 (https://www.apache.org/licenses/LICENSE-2.0).
* Fluent UI Emoji, https://github.com/microsoft/fluentui-emoji, under the MIT License:

{mit}
"""
