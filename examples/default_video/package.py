"""The package: the denoiser in STDiT's original layout, an index that names the image model's other parts,
samples and a card.
"""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from default_model.package import write_json
from default_model.samples import sheet
from default_video.card import write_card
from default_video.clips import BACKGROUNDS, MOTIONS, caption, held_out
from default_video.denoiser import CONFIG, GUIDANCE, Text, draw
from default_video.motion import read

from converters import export, save_safetensors
from viditq_jax.net import Net

INDEX = {
    "_class_name": "STDiT",
    "transformer": "transformer",
    "vae": "../default/vae",
    "text_encoder": "../default/text_encoder",
    "tokenizer": "../default/tokenizer",
    "scheduler": "../default/scheduler",
    "guidance": {
        "scale": GUIDANCE, "channels": None, "null": "encoded", "mask": "own", "order": "uncond_first",
    },
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Asked:
    """A prompt whose motion is measured. shown: whether training had this subject in this motion."""

    subject: str
    motion: str
    colour: str
    shown: bool

    @property
    def prompt(self) -> str:
        return caption(self.subject, self.motion, self.colour)


def questions(words: list[str], *, shown: int = 6, seed: int = 1) -> list[Asked]:
    """All pairs that were held out, on white, and `shown` others of each motion, half of them on colours."""
    hidden, random = held_out(len(words)), np.random.default_rng(seed)
    asked = [Asked(words[i], MOTIONS[j], "white", False) for i, j in np.argwhere(hidden)]
    for j, motion in enumerate(MOTIONS):
        chosen = random.permutation(np.flatnonzero(~hidden[:, j]))[:shown]
        colours = [random.choice(BACKGROUNDS[1:]) if k % 2 else "white" for k in range(shown)]
        asked += [
            Asked(words[i], motion, str(colour), True) for i, colour in zip(chosen, colours, strict=True)
        ]
    return asked


def answers(net: Net, decoder: Net, text: Text, asked: list[Asked], folder: Path) -> list[str]:
    """The motion that each prompt's video shows, drawn once and kept in the folder with the pictures."""
    file = folder / "motions.json"
    if not file.exists():
        videos = draw(net, decoder, text, [each.prompt for each in asked])
        sheet(videos.reshape(-1, *videos.shape[2:]), folder / "motions.png", columns=CONFIG.frames)
        write_json(file, [read(video).motion for video in videos])
    found: list[str] = json.loads(file.read_text())
    return found


def write(
    folder: Path, net: Net, decoder: Net, text: Text, words: list[str], prompts: list[str], run: Path,
    facts: dict[str, object],
) -> None:  # fmt: skip
    """Write weights in bfloat16, config, index, samples and card.

    run: the folder of the training, for its log. facts: for the card.
    """
    stored = net.astype(jnp.bfloat16)
    part = folder / "transformer"
    part.mkdir(parents=True, exist_ok=True)
    file = save_safetensors(
        part / "diffusion_pytorch_model.safetensors", export(stored, "stdit", CONFIG, format="original")
    )
    file.chmod(0o644)
    names = ("frames", "input_size", "space_scale", "time_scale", "text_length", "heads")
    write_json(part / "config.json", {name: getattr(CONFIG, name) for name in names})
    write_json(folder / "model_index.json", INDEX)

    rounded = stored.astype(jnp.float32)
    videos = draw(rounded, decoder, text, prompts)
    sheet(videos.reshape(-1, *videos.shape[2:]), folder / "samples.png", columns=CONFIG.frames)
    asked = questions(words)
    found = answers(rounded, decoder, text, asked, run)
    write_card(folder, run, prompts, asked, found, stored.nbytes(), facts)
