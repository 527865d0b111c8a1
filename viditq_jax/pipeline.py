"""A pipeline: conditions in, pictures out. It binds the models of an artifact to a sampler and to guidance.

Sampling is one compiled program: a new seed, prompt or guidance scale compiles nothing; another batch size,
picture size, sampler or number of steps does. Sample `i` draws all its noise from `fold_in(seed, i)`.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from viditq_jax import checkpoint, plugins, programs
from viditq_jax.aspect_ratios import nearest_bin
from viditq_jax.conditions import Tokenizer, clean_caption, labels_to_array
from viditq_jax.models.pixart import Size
from viditq_jax.net import Net
from viditq_jax.programs import Call, Guidance, Plan
from viditq_jax.quant.apply import quantize
from viditq_jax.quant.audit import audit
from viditq_jax.quant.recipe import Recipe
from viditq_jax.quant.stats import Stats
from viditq_jax.sampling.sample import draw_noise, sample_keys
from viditq_jax.sampling.schedule import VPSchedule

PARTS = ("denoiser", "decoder", "text_encoder")


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Nets and the facts that bind them: `facts` is what `pipeline.json` holds, `files` the tokenizer's."""

    denoiser: Net
    facts: dict[str, Any]
    decoder: Net | None = None
    text_encoder: Net | None = None
    recipe: Recipe | None = None
    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)

    def __call__(
        self,
        conditions: Sequence[str | int],
        *,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        size: tuple[int, int] | None = None,
        negative: str = "",
        first: int = 0,
    ) -> UInt8[np.ndarray, "b h w 3"]:
        """Pictures for prompts (or class indices), one each.

        steps: denoising steps; guidance: scale, 1 for none; size: (height, width) in pixels; each defaults to
        what the model was made for. first: index of the first sample, so that a long run can be cut into
        batches.
        Raises ValueError if a part is missing or a condition does not fit the model.
        """
        latents = self.latents(
            conditions, seed=seed, steps=steps, guidance=guidance, size=size, negative=negative, first=first
        )
        return self.decode(latents)

    def latents(
        self,
        conditions: Sequence[str | int],
        *,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        size: tuple[int, int] | None = None,
        negative: str = "",
        first: int = 0,
        noise: Float[Array, "b h w c"] | None = None,
    ) -> Float[Array, "b h w c"]:
        """Denoised latents in the denoiser's units; `noise` replaces the initial noise drawn from the
        seed.
        """
        scale = self.guidance.scale if guidance is None else guidance
        keys = sample_keys(seed, first, len(conditions))
        if noise is None:
            noise = draw_noise(keys, self.latent_shape(size))
        encoded = self.encode(conditions, negative=negative, size=size, guide=scale != 1)
        call = Call(encoded, jnp.float32(scale), noise, keys)
        plan = self.plan(steps=steps, scale=scale)
        return programs.denoise(self.denoiser, call, self.correction(plan.steps), plan=plan)

    def decode(self, latents: Float[Array, "b h w c"]) -> UInt8[np.ndarray, "b i j 3"]:
        """Latents to pictures. Raises ValueError for latents that are not finite, which would be black."""
        if self.decoder is None:
            raise ValueError("this pipeline has no decoder; convert it again with --vae, or use `latents`.")
        finite = np.isfinite(np.asarray(latents)).reshape(len(latents), -1).all(1)
        if not finite.all():
            raise ValueError(
                f"samples {np.flatnonzero(~finite).tolist()} of {len(finite)} are not finite; "
                f"lower the guidance, or check the weights and the recipe."
            )
        return np.asarray(programs.decode(self.decoder, latents))

    def encode(
        self,
        conditions: Sequence[str | int],
        *,
        negative: str = "",
        size: tuple[int, int] | None = None,
        guide: bool,
    ) -> dict[str, Any]:
        """Conditions as arrays, the two halves of the doubled batch in the order of `guidance` if `guide`."""
        if not conditions:
            raise ValueError("no conditions were given; give one prompt or class index for each picture.")
        if "frames" in self.facts:
            raise ValueError(
                f"{self.facts['denoiser']['model']} makes videos of {self.facts['frames']} frames, and only"
                f" pictures are sampled so far; call its denoiser with a sampler of your own."
            )
        if negative and (reason := self._no_negative(guide)):
            raise ValueError(
                f"the negative prompt {negative!r} would have no effect: {reason}; leave it out."
            )
        if self.facts["conditions"]["kind"] == "label":
            classes = int(self.facts["conditions"]["classes"])
            wrong = [c for c in conditions if not isinstance(c, int)]
            if wrong:
                raise ValueError(f"this model takes class indices, not prompts such as {wrong[0]!r}.")
            labels = labels_to_array([int(c) for c in conditions], classes)
            return {"y": self._halves(labels, np.full_like(labels, classes)) if guide else labels}
        y, mask = self.encode_text(conditions)
        if guide:
            null_y, null_mask = self._null(negative, len(conditions), mask)
            y, mask = self._halves(y, null_y.astype(y.dtype)), self._halves(mask, null_mask)
        encoded: dict[str, Any] = {"y": y, "mask": mask}
        if self.facts["denoiser"]["config"].get("micro_conditions"):
            encoded["size"] = self._micro_conditions(y.shape[0], size or self.image_size)
        return encoded

    def _no_negative(self, guide: bool) -> str:
        """Why a negative prompt is not used, or nothing where it is."""
        if self.facts["conditions"]["kind"] == "label":
            return "this model takes class indices"
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
        if self.text_encoder is None or "tokenizer" not in self.facts:
            raise ValueError(
                "this pipeline has no text encoder; convert it again with --text-encoder and --tokenizer."
            )
        wrong = [p for p in prompts if not isinstance(p, str)]
        if wrong:
            raise ValueError(f"this model takes prompts, not {type(wrong[0]).__name__} such as {wrong[0]!r}.")
        texts = [str(p) for p in prompts]
        if self.facts["conditions"].get("clean_caption"):
            texts = [clean_caption(text) for text in texts]
        entry = self.facts["tokenizer"]
        ids, mask = Tokenizer(self.files[entry["file"]])(texts, int(entry["max_length"]))
        known = int(self.facts["text_encoder"]["config"]["vocab_size"])
        if ids.max(initial=0) >= known:
            raise ValueError(
                f"{entry['file']} gives the token {ids.max()}, but the text encoder knows {known} tokens; "
                "convert again with the tokenizer that it was trained with."
            )
        return programs.encode_text(self.text_encoder, jnp.asarray(ids), jnp.asarray(mask)), jnp.asarray(mask)

    def _null(self, negative: str, count: int, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        if self.guidance.null == "table":
            table = dict(self.denoiser.variables()).get("y_embedder/y_embedding")
            if table is None:
                raise ValueError(
                    "guidance null='table' needs the denoiser's y_embedder.y_embedding, which this "
                    "checkpoint lacks; use null='encoded'."
                )
            value = table.get_value()[: mask.shape[1]]
            null, null_mask = jnp.broadcast_to(value, (count, *value.shape)), jnp.ones_like(mask)
        else:
            null, null_mask = self.encode_text([negative])
            null, null_mask = jnp.repeat(null, count, axis=0), jnp.repeat(null_mask, count, axis=0)
        return null, mask if self.guidance.mask == "prompt" else null_mask

    def _halves(self, conditional: Any, unconditional: Any) -> jax.Array:
        pair = (
            (conditional, unconditional)
            if self.guidance.order == "cond_first"
            else (unconditional, conditional)
        )
        return jnp.concatenate([jnp.asarray(half) for half in pair])

    @property
    def guidance(self) -> Guidance:
        """How this pipeline guides, with its default scale."""
        return Guidance(**self.facts["guidance"])

    def calls(
        self, conditions: Sequence[str | int], *, seed: int, batch: int, first: int = 0
    ) -> Iterator[Call]:
        """What compiled programs take of the conditions from `first` on, batch by batch; guided as in use."""
        for start in range(first, len(conditions), batch):
            part = conditions[start : start + batch]
            keys = sample_keys(seed, start, len(part))
            encoded = self.encode(part, guide=self.guidance.scale != 1)
            noise = draw_noise(keys, self.latent_shape())
            yield Call(encoded, jnp.float32(self.guidance.scale), noise, keys)

    def plan(
        self,
        *,
        steps: int | None = None,
        scale: float | None = None,
        bounds: tuple[int, ...] | None = None,
    ) -> Plan:
        """What shapes the programs over whole trajectories.

        steps, scale of the guidance, bounds of the denoising ranges: the pipeline's own where not given.
        """
        guidance, own = self.guidance, self.recipe.ranges if self.recipe else ()
        guide = (guidance.scale if scale is None else scale) != 1
        return Plan(
            self.sampler,
            self.steps if steps is None else steps,
            # The scale is a number that programs take.
            dataclasses.replace(guidance, scale=0.0) if guide else None,
            own if bounds is None else bounds,
        )

    def correction(self, steps: int) -> Float[Array, " steps"] | None:
        """PTQD's k of each step, linear in time between those that were measured."""
        entry = self.facts.get("correction")
        if entry is None:
            return None
        t = np.asarray(self.sampler.table(steps)["t"], np.float64)
        order = np.argsort(entry["t"])
        times, k = (np.asarray(entry[name], np.float64)[order] for name in ("t", "k"))
        return jnp.asarray(np.interp(t, times, k), jnp.float32)

    @property
    def sampler(self) -> Any:
        """The sampler that the facts name, with its options."""
        entry = self.facts["sampler"]
        return plugins.find("viditq_jax.sampling", entry["name"], "SAMPLER")(**entry.get("options", {}))

    @property
    def steps(self) -> int:
        """The default number of denoising steps."""
        return int(self.facts["sampler"]["steps"])

    @property
    def image_size(self) -> tuple[int, int]:
        """The default height and width in pixels."""
        height, width = self.facts["image_size"]
        return int(height), int(width)

    def latent_shape(self, size: tuple[int, int] | None = None) -> tuple[int, int, int]:
        """Height, width and channels of a latent for a picture of `size` pixels."""
        decoder = self.facts.get("decoder", {"config": {}})["config"]
        factor = 2 ** (len(decoder["block_out_channels"]) - 1) if decoder else 8
        config = self.facts["denoiser"]["config"]
        step = factor * int(config["patch_size"])
        height, width = size or self.image_size
        if height % step or width % step or height < step or width < step:
            raise ValueError(
                f"size {height}x{width} is impossible; height and width are multiples of {step} pixels."
            )
        return height // factor, width // factor, int(config["in_channels"])

    def with_sampler(self, name: str, **options: Any) -> "Pipeline":
        """The same pipeline with another sampler, on the same noise schedule and for the same kind of
        prediction.
        """
        kind = plugins.find("viditq_jax.sampling", name, "SAMPLER")
        model_facts = {*(field.name for field in dataclasses.fields(VPSchedule)), "prediction"}
        known = {field.name for field in dataclasses.fields(kind)}
        shared = {k: v for k, v in self.facts["sampler"].get("options", {}).items() if k in model_facts}
        lost = sorted(shared.keys() - known)
        if lost:
            raise ValueError(
                f"sampler {name!r} knows no {', '.join(lost)}, which this model was trained with; "
                f"choose a sampler of the same family as {self.facts['sampler']['name']!r}."
            )
        if name == self.facts["sampler"]["name"]:
            shared = dict(self.facts["sampler"].get("options", {}))
        entry = {**self.facts["sampler"], "name": name, "options": {**shared, **options}}
        return dataclasses.replace(self, facts={**self.facts, "sampler": entry})

    def quantized(self, recipe: Recipe, stats: Stats | None = None) -> "Pipeline":
        """The same pipeline with its denoiser quantized as the recipe says, and a record of each layer."""
        small = quantize(self.denoiser, recipe, stats)
        facts = {**self.facts, "layers": audit(self.denoiser, small, recipe, stats)}
        return dataclasses.replace(self, denoiser=small, recipe=recipe, facts=facts)

    def nets(self) -> dict[str, Net]:
        """The models that this pipeline has, by name."""
        named = {name: getattr(self, name) for name in PARTS}
        return {name: net for name, net in named.items() if net is not None}

    def astype(self, dtype: Any) -> "Pipeline":
        """The same pipeline with all unquantized parameters in `dtype`."""
        cast: dict[str, Any] = {name: net.astype(dtype) for name, net in self.nets().items()}
        return dataclasses.replace(self, facts={**self.facts, "dtype": jnp.dtype(dtype).name}, **cast)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the pipeline as an artifact, quantized weights verbatim. See `checkpoint.save` for errors."""
        facts = {**self.facts, "recipe": self.recipe.to_json() if self.recipe else None}
        nets: dict[str, Callable[[], Net]] = {name: partial(_same, net) for name, net in self.nets().items()}
        return checkpoint.save(checkpoint.Artifact(facts, nets, self.files), path, overwrite=overwrite)


def _same(net: Net) -> Net:
    return net
