"""CLIP score: how well pictures show what their prompts say; needs weights, of which none are packaged.

`viditq evaluate OUT --metrics clip_score=FOLDER`, where FOLDER is a CLIP of transformers on this machine
(config.json, model.safetensors, tokenizer.json, preprocessor_config.json). Nothing is downloaded.
Source: Hessel et al., arXiv 2104.08718; 100 max(cos, 0), as reported by papers, and not 2.5 max(cos, 0).
"""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Float32, UInt8
from PIL import Image

from viditq_jax.evaluate._clip import Config, read
from viditq_jax.evaluate._pairs import PairMean
from viditq_jax.evaluate.alignment import cosine_score
from viditq_jax.net import Net

UNIT = ""
BETTER = "higher"
CAPTION = True
WEIGHTS = "a folder with a CLIP of transformers, such as openai/clip-vit-base-patch16"

_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of OpenAI's CLIPs


@dataclasses.dataclass(frozen=True)
class ClipScore:
    """The score of one picture and its caption, 0 to 100, by a CLIP that was read."""

    net: Net
    config: Config
    tokenizer: Any
    mean: tuple[float, ...] = _MEAN
    std: tuple[float, ...] = _STD

    def __call__(self, picture: UInt8[np.ndarray, "h w 3"], caption: str) -> float:
        said = self.tokenizer.encode(caption).ids
        ids = np.zeros((1, self.config.positions), np.int32)  # what follows the end is not read
        ids[0, : len(said)] = said
        pixels = self.pixels(picture)[None]
        seen, text = _features(self.net, "pictures", pixels), _features(self.net, "captions", ids)
        return float(cosine_score(np.asarray(seen), np.asarray(text))[0])

    def pixels(self, picture: UInt8[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "s s 3"]:
        """As CLIP takes it: the shorter side to its size, bicubic; the middle; its mean and spread."""
        side = self.config.image_size
        h, w = picture.shape[:2]
        shorter = min(h, w)
        size = (side * w // shorter, side * h // shorter)
        image = Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)
        left, top = (size[0] - side) // 2, (size[1] - side) // 2
        x = np.asarray(image.crop((left, top, left + side, top + side)), np.float32) / 255
        return ((x - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)).astype(np.float32)


@functools.partial(jax.jit, static_argnums=1)
def _features(net: Net, method: str, x: Array | np.ndarray) -> Float[Array, "b f"]:
    features: Array = net.call(method, x)
    return features


@functools.lru_cache(maxsize=2)
def load(weights: str) -> PairMean:
    """The metric by the CLIP in a folder. Raises ValueError that says what of it cannot be read."""
    import tokenizers

    folder = Path(weights)
    net, config = read(folder)
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # tokenizers raises no narrower type
        raise ValueError(
            f"{folder / 'tokenizer.json'} cannot be read ({error}); copy it from where the weights are from."
        ) from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(config.positions)
    file = folder / "preprocessor_config.json"
    facts = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    mean, std = (
        tuple(facts.get(key, default)) for key, default in (("image_mean", _MEAN), ("image_std", _STD))
    )
    return PairMean(ClipScore(net, config, tokenizer, mean, std))
