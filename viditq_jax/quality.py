"""How good the pictures of several variants are, with intervals: FID, perceptual distance, alignment.

All by the packaged metric network, so of the packaged image model alone. Variants are measured on the same
prompts and noise, and their intervals are paired: a resample takes the same prompts and seeds of all.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from viditq_jax.conditions import packaged_prompts
from viditq_jax.evaluate._bootstrap import Interval, bootstrap
from viditq_jax.evaluate._network import SIDE, perceived, picture_features
from viditq_jax.evaluate.alignment import alignments
from viditq_jax.evaluate.fid import fid

_Statistic = Callable[[np.ndarray], float]  # of pictures by their indices

MEANING = {
    "fid_to_real": "Frechet distance of the packaged network's features to the drawings of the prompts",
    "fid_to_reference": "the same, to the pictures of the reference",
    "perceptual_to_real": "perceptual distance to the nearest drawing of the prompt, mean over pictures",
    "perceptual_to_reference": "perceptual distance to the reference's picture from the same noise, mean",
    "perceptual_share_percent": "that, in percent of the distance of two pictures of the reference under the "
    "same prompt from different noise",
    "alignment": "100 max(cos, 0) of the features of picture and prompt, mean",
}


def real_pictures() -> dict[str, UInt8[np.ndarray, "k h w 3"]]:
    """The drawings that the default model was shown, by packaged prompt: both styles, four placements."""
    with (resources.files("viditq_jax.assets") / "metric/real.png").open("rb") as file:
        rows = np.asarray(Image.open(file).convert("RGB"))
    prompts = packaged_prompts()
    cut = rows.reshape(len(prompts), SIDE, -1, SIDE, 3).transpose(0, 2, 1, 3, 4)
    return dict(zip(prompts, cut, strict=True))


@dataclasses.dataclass(frozen=True)
class _Seen:
    """What is read off the pictures of a variant, a row a picture."""

    features: np.ndarray  # [n f]
    alignment: np.ndarray  # [n]
    to_real: np.ndarray  # [n]
    to_reference: np.ndarray  # [n]


def measure(
    variants: Mapping[str, Sequence[UInt8[np.ndarray, "_ _ 3"]]],
    prompts: Sequence[str],
    *,
    reference: str,
    baseline: str,
    resamples: int = 1000,
    advance: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """ "variants": the figures of each, with value, low and high (95 %), and its degradation in percent;
    "left_out": FID and why, where there are too few pictures for it.

    variants: pictures by name, all of the same prompts and noise in the same order. prompts: that of each
        picture, packaged ones. reference: the variant that others are compared with picture by picture.
    baseline: the variant whose figures are 100 % of the degradation; above 0 is worse than it.
    Raises ValueError for prompts without drawings, or of a single picture.
    """
    drawn = real_pictures()
    if unknown := sorted(set(prompts) - drawn.keys()):
        raise ValueError(
            f"there are no drawings of {', '.join(unknown[:5])}; the metric network comes with those of the "
            f"packaged prompts: {', '.join(drawn)}."
        )
    chosen = np.array(prompts)
    real_maps = {prompt: perceived(drawn[prompt]) for prompt in dict.fromkeys(prompts)}
    real = picture_features(np.concatenate([drawn[prompt] for prompt in real_maps]))
    maps = perceived(variants[reference])
    spread = _squared(maps, maps[_next_of_prompt(chosen)])
    seen = {
        name: _look(pictures, chosen, maps if name == reference else perceived(pictures), maps, real_maps)
        for name, pictures in variants.items()
    }
    del maps

    def interval(statistic: _Statistic) -> Interval:
        return bootstrap(statistic, chosen, resamples=resamples)

    enough = min(len(chosen), len(real)) > real.shape[1]
    found: dict[str, dict[str, Any]] = {}
    for name, own in seen.items():
        compared = _figures(own, None if name == reference else seen[reference], spread, real)
        worse = {} if name == baseline else _degradation(own, seen[baseline], real)
        parts = [
            {key: interval(each).to_json() for key, each in part.items() if enough or "fid" not in key}
            for part in (compared, worse)
        ]
        judged = {key: {**each, "below_1_percent": verdict(each)} for key, each in parts[1].items()}
        found[name] = {**parts[0], **({"degradation_percent": judged} if judged else {})}
        if advance:
            advance(1)
    few = f"needs more than {real.shape[1]} pictures and drawings, got {len(chosen)} and {len(real)}"
    return {"variants": found, "left_out": {} if enough else {"fid": few}}


def verdict(degradation: Mapping[str, Any], limit: float = 1.0) -> str:
    """Whether a degradation is below a limit, in percent: "yes", "no", "undecided" if its interval has it."""
    if degradation["high"] < limit:
        return "yes"
    return "no" if degradation["low"] >= limit else "undecided"


def _figures(
    own: _Seen, reference: _Seen | None, spread: np.ndarray, real: np.ndarray
) -> dict[str, _Statistic]:
    """The figures of a variant, as statistics of chosen pictures. spread: distances to other noise."""
    figures: dict[str, _Statistic] = {
        "fid_to_real": lambda i: fid(own.features[i], real),
        "perceptual_to_real": lambda i: float(own.to_real[i].mean()),
        "alignment": lambda i: float(own.alignment[i].mean()),
    }
    if reference is None:
        return figures
    return figures | {
        "fid_to_reference": lambda i: fid(own.features[i], reference.features[i]),
        "perceptual_to_reference": lambda i: float(own.to_reference[i].mean()),
        "perceptual_share_percent": lambda i: 100 * float(own.to_reference[i].sum() / spread[i].sum()),
    }


def _degradation(own: _Seen, base: _Seen, real: np.ndarray) -> dict[str, _Statistic]:
    """By how many percent the figures that stand alone are worse than the baseline's."""
    return {
        "fid_to_real": lambda i: 100 * (fid(own.features[i], real) / fid(base.features[i], real) - 1),
        "perceptual_to_real": lambda i: 100 * float(own.to_real[i].sum() / base.to_real[i].sum() - 1),
        "alignment": lambda i: 100 * float(1 - own.alignment[i].sum() / base.alignment[i].sum()),
    }


def _look(
    pictures: Sequence[np.ndarray], prompts: np.ndarray, maps: np.ndarray, reference: np.ndarray,
    real: Mapping[str, np.ndarray],
) -> _Seen:  # fmt: skip
    nearest = np.array(
        [_squared(row[None], real[prompt]).min() for row, prompt in zip(maps, prompts, strict=True)]
    )
    return _Seen(
        picture_features(pictures),
        alignments(pictures, list(prompts)),
        nearest,
        _squared(maps, reference),
    )


def _squared(a: Float[np.ndarray, "#n m"], b: Float[np.ndarray, "n m"]) -> Float[np.ndarray, " n"]:
    """Squared distances of rows, summed in float64."""
    return np.square(a - b).sum(1, dtype=np.float64)


def _next_of_prompt(prompts: np.ndarray) -> np.ndarray:
    """For each picture the next one of the same prompt, in a circle."""
    after = np.empty(len(prompts), int)
    for prompt in np.unique(prompts):
        (own,) = np.nonzero(prompts == prompt)
        after[own] = np.roll(own, -1)
    return after
