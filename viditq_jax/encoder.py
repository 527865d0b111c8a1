"""Conditions as the arrays that a denoiser takes: prompts through tokenizer and text encoder, classes as
labels, sizes beside them, and for guidance the half that stands for no condition.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

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
        if negative and (reason := self._no_negative(guide)):
            raise ValueError(
                f"the negative prompt {negative!r} would have no effect: {reason}; leave it out."
            )
        kind = self.facts["conditions"]["kind"]
        if kind == "none":
            return self._no_conditions(conditions, guide)
        if kind == "label":
            classes = int(self.facts["conditions"]["classes"])
            wrong = [c for c in conditions if not isinstance(c, int)]
            if wrong:
                raise ValueError(f"this model takes class indices, not prompts such as {wrong[0]!r}.")
            labels = labels_to_array([int(c) for c in conditions], classes)
            return {"y": self._halves(labels, np.full_like(labels, classes)) if guide else labels}
        y, mask = self.encode_text([self._with_suffix(each) for each in conditions])
        if guide:
            null_y, null_mask = self._null(negative, len(conditions), mask)
            y, mask = self._halves(y, null_y.astype(y.dtype)), self._halves(mask, null_mask)
        return {"y": y, "mask": mask, **self.sizes(y.shape[0], size, frames)}

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

    def encode_text(self, prompts: Sequence[str | int]) -> tuple[jax.Array, jax.Array]:
        """Prompts to text features [b, l, d] and the mask [b, l] of their valid tokens."""
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
        return self.features(jnp.asarray(ids), jnp.asarray(mask)), jnp.asarray(mask)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the text encoder."""
        return Tokenizer(self.files[self.facts["tokenizer"]["file"]])

    @cached_property
    def guidance(self) -> Guidance:
        """How the pipeline guides, with its default scale."""
        return Guidance(**self.facts["guidance"])

    def _null(self, negative: str, count: int, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        if self.guidance.null == "table":
            table = self._null_table[: mask.shape[1]]
            null, null_mask = jnp.broadcast_to(table, (count, *table.shape)), jnp.ones_like(mask)
        else:
            null, null_mask = self.encode_text([negative])
            null, null_mask = jnp.repeat(null, count, axis=0), jnp.repeat(null_mask, count, axis=0)
        return null, mask if self.guidance.mask == "prompt" else null_mask

    @cached_property
    def _null_table(self) -> Float[np.ndarray, "l d"]:
        """What was trained to stand for no prompt, on the host: the denoiser may lie on other devices."""
        if self.null is None:
            raise ValueError(
                "guidance null='table' needs the denoiser's y_embedder.y_embedding, which this checkpoint"
                " lacks; use null='encoded'."
            )
        return np.asarray(self.null)

    def _halves(self, conditional: Any, unconditional: Any) -> jax.Array:
        pair = (
            (conditional, unconditional)
            if self.guidance.order == "cond_first"
            else (unconditional, conditional)
        )
        return jnp.concatenate([jnp.asarray(half) for half in pair])
