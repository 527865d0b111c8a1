"""Conditions as the arrays that a denoiser takes: prompts through tokenizer and text encoder, classes as
labels, sizes beside them, and for guidance the half that stands for no condition.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from viditq_jax import facts as said
from viditq_jax.aspect_ratios import nearest_bin
from viditq_jax.conditions import Tokenizer, check_prompt, clean_caption, labels_to_array
from viditq_jax.models.pixart import Size
from viditq_jax.models.stdit3 import Clip
from viditq_jax.programs import Guidance

NULL_TABLE = "y_embedder/y_embedding"  # of a denoiser's variables: what was trained to stand for no prompt


@dataclasses.dataclass(frozen=True)
class ConditionEncoder:
    """What a pipeline's facts, text encoder and tokenizer files make of conditions.

    features: text features [b, l, d] of token ids and their mask [b, l]; None where there is no text encoder.
    null: the table that stands for no prompt, of denoisers that were trained with one.
    """

    facts: Mapping[str, Any]
    features: Callable[[jax.Array, jax.Array], jax.Array] | None
    null: Any
    files: Mapping[str, bytes]

    def encode(
        self,
        conditions: Sequence[str | int],
        *,
        negative: str = "",
        size: tuple[int, int] | None = None,
        frames: int | None = None,
        guide: bool,
    ) -> dict[str, Any]:
        """Conditions as arrays, the two halves of the doubled batch in the order of `guidance` if `guide`."""
        self.check_negative(negative, guide=guide)
        kind = self.facts["conditions"]["kind"]
        if kind == "none":
            return self._no_conditions(conditions, guide)
        if kind == "label":
            classes = int(self.facts["conditions"]["classes"])
            wrong = [c for c in conditions if not isinstance(c, int)]
            if wrong:
                raise ValueError(f"this model takes class indices, not prompts such as {wrong[0]!r}.")
            labels = labels_to_array([int(c) for c in conditions], classes)
            null_labels = np.full_like(labels, classes)
            return {"y": jax.device_put(self._doubled(labels, null_labels) if guide else labels)}
        y, mask = self.encode_text([self._with_suffix(each) for each in conditions])
        if guide:
            null, null_mask = self._null(negative, mask)
            y = _features_doubled(y, null, self._cond_first)
            null_mask = mask if self.guidance.mask == "prompt" else np.broadcast_to(null_mask, mask.shape)
            mask = self._doubled(mask, null_mask)
        return {"y": y, "mask": jax.device_put(mask), **self.sizes(y.shape[0], size, frames)}

    def sizes(
        self, batch: int, size: tuple[int, int] | None = None, frames: int | None = None
    ) -> dict[str, Any]:
        """What the model is told of sizes beside the prompt, if anything, [batch] each."""
        if self.facts["denoiser"]["config"].get("micro_conditions"):
            return {"size": self._micro_conditions(batch, size or said.image_size(self.facts))}
        if self.facts["conditions"].get("clip"):
            values = said.clip_values(self.facts, size, frames)
            return {"clip": Clip(*(jnp.full(batch, value, jnp.float32) for value in values))}
        return {}

    def _no_conditions(self, conditions: Sequence[str | int], guide: bool) -> dict[str, Any]:
        if any(not isinstance(c, int) for c in conditions):
            raise ValueError("this model takes no conditions; give a number for each sample, as range(4).")
        if guide:
            raise ValueError("this model takes no conditions, so nothing guides it; leave guidance out.")
        return {}

    def _with_suffix(self, condition: str | int) -> str | int:
        """The prompt with what every prompt ended with in training, unless it says this itself."""
        suffix = self.facts["conditions"].get("suffix")
        if not suffix or not isinstance(condition, str) or suffix.split(":")[0].strip() in condition:
            return condition
        return f"{condition} {suffix}"

    def check_negative(self, negative: str, *, guide: bool) -> None:
        """Raise ValueError for a negative prompt without an effect."""
        if negative and (reason := self._no_negative(guide)):
            raise ValueError(
                f"the negative prompt {negative!r} would have no effect: {reason}; leave it out."
            )

    def _no_negative(self, guide: bool) -> str:
        """Why a negative prompt is not used, or nothing where it is."""
        if self.facts["conditions"]["kind"] != "prompt":
            return "this model takes no prompts"
        if not guide:
            return "a guidance scale of 1 compares with nothing"
        return "this model has learned what stands for no prompt" if self.guidance.null == "table" else ""

    def _micro_conditions(self, batch: int, size: tuple[int, int]) -> Size:
        """The size, and the aspect ratio as the code that the checkpoint is from gives it.

        The original gives the label of the nearest bin, two decimals; diffusers gives height / width.
        """
        height, width = size
        aspect = height / width
        if self.facts["source"]["denoiser"]["format"] != "diffusers":
            aspect = nearest_bin(height, width).aspect  # all sides of bins share their labels
        return Size(*(jnp.full(batch, value, jnp.float32) for value in (height, width, aspect)))

    def encode_text(self, prompts: Sequence[str | int]) -> tuple[jax.Array, Bool[np.ndarray, "b l"]]:
        """Prompts to text features [b, l, d] and the mask of their valid tokens."""
        if self.features is None or "tokenizer" not in self.facts:
            raise ValueError(
                "this pipeline has no text encoder; convert it again with --text-encoder and --tokenizer."
            )
        wrong = [p for p in prompts if not isinstance(p, str)]
        if wrong:
            raise ValueError(f"this model takes prompts, not {type(wrong[0]).__name__} such as {wrong[0]!r}.")
        texts = [str(p) for p in prompts]
        for text in texts:
            check_prompt(text)
        if self.facts["conditions"].get("clean_caption"):
            texts = [clean_caption(text) for text in texts]
        entry = self.facts["tokenizer"]
        ids, mask = self.tokenizer(texts, int(entry["max_length"]))
        known = int(self.facts["text_encoder"]["config"]["vocab_size"])
        if ids.max(initial=0) >= known:
            raise ValueError(
                f"{entry['file']} gives the token {ids.max()}, but the text encoder knows {known} tokens; "
                "convert again with the tokenizer that it was trained with."
            )
        return self.features(jax.device_put(ids), jax.device_put(mask)), mask

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the text encoder."""
        return Tokenizer(self.files[self.facts["tokenizer"]["file"]])

    @cached_property
    def guidance(self) -> Guidance:
        """How the pipeline guides, with its default scale."""
        return Guidance(**self.facts["guidance"])

    def _null(
        self, negative: str, mask: Bool[np.ndarray, "b l"]
    ) -> tuple[Float[Any, "1 l d"], Bool[np.ndarray, "#b l"]]:
        """Text features that stand for no prompt, and the mask of the tokens that they offer."""
        if self.guidance.null == "table":
            return self._null_table[None, : mask.shape[1]], np.ones_like(mask)
        return self._negative(negative)

    def _negative(self, negative: str) -> tuple[jax.Array, Bool[np.ndarray, "1 l"]]:
        """Its features, which a long run computes once: those of the last negative prompt are kept."""
        if (kept := self._last_negative.get(negative)) is not None:
            return kept
        found = self.encode_text([negative])
        if not isinstance(found[0], jax.core.Tracer):  # of a trace that asks for shapes alone
            self._last_negative.clear()
            self._last_negative[negative] = found
        return found

    @cached_property
    def _last_negative(self) -> dict[str, tuple[jax.Array, Bool[np.ndarray, "1 l"]]]:
        return {}

    @cached_property
    def _null_table(self) -> Float[np.ndarray, "l d"]:
        """What was trained to stand for no prompt, on the host: the denoiser may lie on other devices."""
        if self.null is None:
            raise ValueError(
                "guidance null='table' needs the denoiser's y_embedder.y_embedding, which this checkpoint"
                " lacks; use null='encoded'."
            )
        return np.asarray(self.null)

    @property
    def _cond_first(self) -> bool:
        return self.guidance.order == "cond_first"

    def _doubled(self, conditional: np.ndarray, unconditional: np.ndarray) -> np.ndarray:
        pair = (conditional, unconditional) if self._cond_first else (unconditional, conditional)
        return np.concatenate(pair)


@partial(jax.jit, static_argnames="cond_first")
def _features_doubled(
    y: Float[Array, "b l d"], null: Float[Array, "#b l d"], cond_first: bool
) -> Float[Array, "c l d"]:
    """Features of prompts and of none, in one program."""
    null = jnp.broadcast_to(null.astype(y.dtype), y.shape)
    return jnp.concatenate((y, null) if cond_first else (null, y))
