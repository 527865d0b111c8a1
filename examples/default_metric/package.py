"""The package: weights in bfloat16, their config, the drawn pictures of the packaged prompts, and a card."""

import dataclasses
from importlib import metadata
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from default_metric import contrast
from default_metric.card import CARD
from default_model.card import _MIT, _STYLES, read_log
from default_model.data import COLOURS, PACKAGES, PLACEMENTS, Icon, composite
from default_model.package import write_json
from default_model.samples import sheet
from default_model.text import Tokenizer

from converters import save_safetensors
from viditq_jax.evaluate._network import Config
from viditq_jax.net import Net


def write(
    folder: Path, stored: Net, icons: list[Icon], pictures: np.ndarray, held_out: np.ndarray,
    tokenizer: Tokenizer, prompts: list[str], run: Path, facts: dict[str, Any],
) -> None:  # fmt: skip
    """Write model.safetensors, config.json, real.png and CARD.md; the figures are of the stored weights.

    stored: in bfloat16. run: the folder of the training, for its log. facts: machine, batch and rate.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.asarray(variable.get_value()) for name, variable in stored.variables()}
    save_safetensors(folder / "model.safetensors", arrays).chmod(0o644)
    config = dataclasses.asdict(Config(vocab_size=tokenizer.size))
    write_json(folder / "config.json", config)
    drawn = [[i for i, icon in enumerate(icons) if icon.words == prompt] for prompt in prompts]
    flat = np.array([i for row in drawn for i in row])
    white = np.full((len(flat) * PLACEMENTS, 3), 255, np.float32)
    real = composite(pictures[flat].reshape(-1, *pictures.shape[2:]), white)
    sheet(real, folder / "real.png", columns=len(real) // len(prompts))

    net = stored.astype(jnp.float32)
    ids = contrast.caption_ids(icons, tokenizer)
    shown = np.array(
        [i for i, icon in enumerate(icons) if icon.weight > 0 and i not in set(held_out.tolist())]
    )
    figures: dict[str, float] = {}
    for name, chosen in (("held", held_out), ("shown", shown)):
        found = contrast.retrieval(net, pictures[chosen, 0], ids[chosen, 0, 1])
        figures |= {f"{name}_{key}": value for key, value in found.items()}
        figures[f"{name}_chance"] = 1 / len(chosen)
    seen, said = contrast.features(net, real, ids[flat[::2], 0, 0])
    truth = np.repeat(np.arange(len(prompts)), len(real) // len(prompts))
    figures |= {"prompt_top1": _hits(seen @ said.T, truth), "prompt_chance": 1 / len(prompts)}
    figures |= _style_and_colour(net, icons, pictures, held_out, tokenizer)
    last, watched = read_log(run)
    total = sum(array.size for array in arrays.values())
    card = CARD.format(
        params=total,
        megabytes=2 * total / 1e6,
        features=config["features"],
        held_out=len(held_out),
        shown=len(shown),
        prompts=len(prompts),
        real=len(real),
        placements=PLACEMENTS,
        colours=len(COLOURS),
        shift=contrast.SHIFT,
        data="\n".join(
            f"* {_STYLES[style][0]}: npm package `{name}`, {_STYLES[style][1]}"
            for style, name in PACKAGES.items()
        ),
        steps=last["step"],
        minutes=last["seconds"] / 60,
        loss=last["loss"],
        scale=last["scale"],
        curve="; ".join(f"{w['step']}: {w['watch']['held_out_caption_top1']:.0%}" for w in watched),
        mit=_MIT,
        **facts,
        **figures,
        **{name: metadata.version(name) for name in ("optax", "jax", "flax", "resvg-py")},
    )
    (folder / "CARD.md").write_text(card)


def _style_and_colour(
    net: Net, icons: list[Icon], pictures: np.ndarray, held_out: np.ndarray, tokenizer: Tokenizer
) -> dict[str, float]:
    """How often held-out icons find their style, and their background, among captions that differ in it."""
    both = [f"{icons[i].words}, {style} style" for i in held_out for style in PACKAGES]
    white = np.full((len(held_out), 3), 255, np.float32)
    seen, said = contrast.features(net, composite(pictures[held_out, 0], white), tokenizer(both))
    scores = np.einsum("if,isf->is", seen, said.reshape(len(held_out), len(PACKAGES), -1))
    style = _hits(scores, np.array([list(PACKAGES).index(icons[i].style) for i in held_out]))

    every = np.repeat(held_out, len(COLOURS))
    colours = np.tile(np.array(list(COLOURS.values()), np.float32), (len(held_out), 1))
    ids = contrast.caption_ids([icons[i] for i in held_out], tokenizer)[:, :, 0]
    seen, said = contrast.features(
        net, composite(pictures[every, 0], colours), ids.reshape(-1, ids.shape[-1])
    )
    shape = (len(held_out), len(COLOURS), -1)
    scores = np.einsum("icf,ikf->ick", seen.reshape(shape), said.reshape(shape))
    truth = np.tile(np.arange(len(COLOURS)), len(held_out))
    colour = _hits(scores.reshape(-1, len(COLOURS)), truth)
    return {"style_top1": style, "colour_top1": colour, "colour_chance": 1 / len(COLOURS)}


def _hits(scores: np.ndarray, truth: np.ndarray) -> float:
    return float((scores.argmax(1) == truth).mean())
