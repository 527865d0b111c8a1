"""The package: the denoiser in STDiT's original layout, an index that names the image model's other parts,
samples and a card.
"""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from default_model.samples import sheet
from default_video.card import write_card
from default_video.clips import BACKGROUNDS, MOTIONS, caption, held_out
from default_video.denoiser import CONFIG, GUIDANCE, Text, draw
from default_video.motion import read

from converters import export, save_safetensors
from viditq_jax.files import write_json
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


def questions(words: list[str], prompts: list[str], *, more: int = 1, seed: int = 1) -> list[Asked]:
    """The prompts, all pairs that were held out, on white, and `more` others of each motion on any colour."""
    hidden, random = held_out(len(words)), np.random.default_rng(seed)
    table = [
        Asked(word, motion, colour, shown=not hidden[i, j])
        for i, word in enumerate(words)
        for j, motion in enumerate(MOTIONS)
        for colour in BACKGROUNDS
    ]
    by_prompt = {each.prompt: each for each in table}
    asked = [by_prompt[prompt] for prompt in prompts]
    asked += [each for each in table if not each.shown and each.colour == "white"]
    for motion in MOTIONS:
        others = [each for each in table if each.shown and each.motion == motion and each not in asked]
        asked += [others[i] for i in random.permutation(len(others))[:more]]
    return asked


def write(
    folder: Path, net: Net, decoder: Net, text: Text, words: list[str], prompts: list[str], run: Path,
    facts: dict[str, object], *, more: int = 1,
) -> None:  # fmt: skip
    """Write weights in bfloat16, config, index, samples and card.

    run: the folder of the training, for its log. facts: for the card. more: how many videos of each motion
    are measured besides the prompts and the held-out pairs.
    """
    stored = net.astype(jnp.bfloat16)
    part = folder / "transformer"
    part.mkdir(parents=True, exist_ok=True)
    file = save_safetensors(
        part / "diffusion_pytorch_model.safetensors", export(stored, "stdit", CONFIG, format="original")
    )
    file.chmod(0o644)
    names = ("frames", "input_size", "space_scale", "time_scale", "text_length", "heads")
    write_json(part / "config.json", {name: getattr(CONFIG, name) for name in names}, indent=2)
    write_json(folder / "model_index.json", INDEX, indent=2)

    rounded = stored.astype(jnp.float32)
    asked = questions(words, prompts, more=more)
    videos = draw(rounded, decoder, text, [each.prompt for each in asked])
    frames = videos.reshape(-1, *videos.shape[2:])
    sheet(frames[: len(prompts) * CONFIG.frames], folder / "samples.png", columns=CONFIG.frames)
    sheet(frames, run / "motions.png", columns=CONFIG.frames)
    found = [read(video).motion for video in videos]
    write_card(folder, run, prompts, asked, found, stored.nbytes(), facts)
