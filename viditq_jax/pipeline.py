"""A pipeline: conditions in, pictures or videos out. It binds the models of an artifact to a sampler and to
guidance.

Sampling is one compiled program: a new seed, prompt or guidance scale compiles nothing; another batch size,
size, number of frames, sampler or number of steps does. Sample `i` draws all its noise from
`fold_in(seed, i)`.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, UInt8

from viditq_jax import checkpoint, programs, replicas
from viditq_jax import facts as said
from viditq_jax.aspect_ratios import nearest_bin
from viditq_jax.conditions import Tokenizer, check_prompt, clean_caption, labels_to_array
from viditq_jax.models.pixart import Size
from viditq_jax.models.stdit3 import Clip
from viditq_jax.net import Net
from viditq_jax.programs import Call, Guidance, Plan
from viditq_jax.quant.apply import quantize
from viditq_jax.quant.audit import audit
from viditq_jax.quant.recipe import Recipe
from viditq_jax.quant.stats import Stats
from viditq_jax.sampling.sample import draw_noise, sample_keys

PARTS = ("denoiser", "decoder", "text_encoder")


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Nets and the facts that bind them: `facts` is what `pipeline.json` holds, `files` the tokenizer's.

    mesh: of the devices that denoiser and decoder lie on; see `on`.
    """

    denoiser: Net
    facts: dict[str, Any]
    decoder: Net | None = None
    text_encoder: Net | None = None
    recipe: Recipe | None = None
    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    mesh: Mesh | None = None

    def __call__(
        self,
        conditions: Sequence[str | int],
        *,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        size: tuple[int, int] | None = None,
        frames: int | None = None,
        negative: str = "",
        first: int = 0,
    ) -> UInt8[np.ndarray, "b *t h w 3"]:
        """Pictures, or videos, for prompts (or class indices), one each.

        steps: denoising steps; guidance: scale, 1 for none; size: (height, width) in pixels; frames: of a
        video; each defaults to what the model was made for. first: index of the first sample, so that a long
        run can be cut into batches.
        On a mesh each replica takes an equal part of them.
        Raises ValueError if a part is missing, a condition does not fit the model, or replicas cannot share
        the conditions evenly.
        """
        latents = self.latents(
            conditions,
            seed=seed,
            steps=steps,
            guidance=guidance,
            size=size,
            frames=frames,
            negative=negative,
            first=first,
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
        frames: int | None = None,
        negative: str = "",
        first: int = 0,
        noise: Float[Array, "b *t h w c"] | None = None,
        given: Mapping[int, Float[Array, "b h w c"]] | None = None,
    ) -> Float[Array, "b *t h w c"]:
        """Denoised latents in the denoiser's units.

        noise: replaces the initial noise drawn from the seed. given: latents of frames, by their number, that
        stay as they are while the others are made to fit them; of STDiT3.
        """
        if not conditions:
            raise ValueError("no conditions were given; give one prompt or class index for each sample.")
        each = len(conditions) // self.replicas
        if each * self.replicas != len(conditions):
            raise ValueError(
                f"{len(conditions)} conditions are not shared evenly by {self.replicas} replicas; give"
                f" {self.replicas} times as many as a replica takes at once."
            )
        calls = [
            self.call(
                conditions[start : start + each],
                seed=seed,
                first=first + start,
                guidance=guidance,
                size=size,
                frames=frames,
                negative=negative,
                noise=None if noise is None else noise[start : start + each],
                given=given,
            )
            for start in range(0, len(conditions), each)
        ]
        plan = self.plan(steps=steps, scale=guidance, size=size, frames=frames)
        found = self.denoise(calls, plan)
        return found.reshape(len(conditions), *found.shape[2:])

    def call(
        self,
        conditions: Sequence[str | int],
        *,
        seed: int,
        first: int = 0,
        guidance: float | None = None,
        size: tuple[int, int] | None = None,
        frames: int | None = None,
        negative: str = "",
        noise: Float[Array, "b *t h w c"] | None = None,
        given: Mapping[int, Float[Array, "b h w c"]] | None = None,
    ) -> Call:
        """What a program takes of one batch of conditions; arguments as of `latents`."""
        scale = self.guidance.scale if guidance is None else guidance
        keys = sample_keys(seed, first, len(conditions))
        encoded = self.encode(conditions, negative=negative, size=size, frames=frames, guide=scale != 1)
        if noise is None:
            noise = draw_noise(keys, self.latent_shape(size, frames))
        if given:
            noise, encoded["x_mask"] = self._with_given(noise, given, doubled=scale != 1)
        return Call(encoded, jnp.float32(scale), noise, keys)

    def denoise(self, calls: Sequence[Call], plan: Plan) -> Float[Array, "r b *t h w c"]:
        """Latents of a call for each replica, of which all have one size. Does not wait for them."""
        correction = self.correction(plan)
        if self.mesh is None:
            (call,) = calls
            return programs.denoise(self.denoiser, call, correction, plan=plan)[None]
        together = replicas.stacked(calls, self.mesh)
        return replicas.denoise(self.denoiser, together, correction, plan=plan, mesh=self.mesh)

    def pixels(self, latents: Float[Array, "r b *t h w c"]) -> UInt8[Array, "r b *t i j 3"]:
        """What `denoise` gave, decoded where it lies. Does not wait for it, and does not look at it."""
        if self.decoder is None:
            raise ValueError("this pipeline has no decoder; convert it again with --vae, or use `latents`.")
        if self.mesh is None:
            return programs.decode(self.decoder, latents[0])[None]
        return replicas.decode(self.decoder, latents, mesh=self.mesh)

    def _with_given(
        self, noise: Array, given: Mapping[int, Array], *, doubled: bool
    ) -> tuple[Float[Array, "b t h w c"], Bool[Array, "g t"]]:
        """The noise with the given frames in it, and which frames are still to be made."""
        if not self.facts["conditions"].get("clip"):
            raise ValueError(
                f"{self.facts['denoiser']['model']} was not trained with frames that are given; leave given "
                "out."
            )
        count = noise.shape[1]
        if wrong := [i for i in given if not 0 <= i < count]:
            raise ValueError(f"frames {wrong} are given, but a video has frames 0 to {count - 1}.")
        for i, frame in given.items():
            noise = noise.at[:, i].set(frame)
        made = np.ones((noise.shape[0] * (1 + doubled), count), bool)
        made[:, list(given)] = False
        return noise, jnp.asarray(made)

    def decode(self, latents: Float[Array, "b *t h w c"]) -> UInt8[np.ndarray, "b *t i j 3"]:
        """Latents to pictures or frames. Raises ValueError for latents that are not finite, which would be
        black.
        """
        check_finite(np.asarray(latents))
        found = np.asarray(self.pixels(latents.reshape(self.replicas, -1, *latents.shape[1:])))
        return found.reshape(-1, *found.shape[2:])

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
            return {"size": self._micro_conditions(batch, size or self.image_size)}
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
        if self.text_encoder is None or "tokenizer" not in self.facts:
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
            yield self.call(part, seed=seed, first=start)

    def plan(
        self,
        *,
        steps: int | None = None,
        scale: float | None = None,
        bounds: tuple[int, ...] | None = None,
        size: tuple[int, int] | None = None,
        frames: int | None = None,
    ) -> Plan:
        """What shapes the programs over whole trajectories.

        steps, scale of the guidance, bounds of the denoising ranges, size and frames, by which some samplers
        go: the pipeline's own where not given.
        """
        guidance, own = self.guidance, self.recipe.ranges if self.recipe else ()
        guide = (guidance.scale if scale is None else scale) != 1
        return Plan(
            said.sampler(self.facts, size, frames),
            self.steps if steps is None else steps,
            # The scale is a number that programs take.
            dataclasses.replace(guidance, scale=0.0) if guide else None,
            own if bounds is None else bounds,
        )

    def correction(self, plan: Plan) -> Float[Array, " steps"] | None:
        """PTQD's k of each step of a plan, linear in time between those that were measured."""
        entry = self.facts.get("correction")
        if entry is None:
            return None
        t = np.asarray(plan.rows()["t"], np.float64)
        order = np.argsort(entry["t"])
        times, k = (np.asarray(entry[name], np.float64)[order] for name in ("t", "k"))
        return jnp.asarray(np.interp(t, times, k), jnp.float32)

    @property
    def sampler(self) -> Any:
        """The sampler that the facts name, with its options, for samples of the default size."""
        return said.sampler(self.facts, None, None)

    @property
    def steps(self) -> int:
        """The default number of denoising steps."""
        return int(self.facts["sampler"]["steps"])

    @property
    def image_size(self) -> tuple[int, int]:
        """The default height and width in pixels."""
        return said.image_size(self.facts)

    @property
    def frames(self) -> int | None:
        """The default number of frames; None of a model that makes pictures."""
        return said.frames_of(self.facts, None)

    @property
    def fps(self) -> float | None:
        """Frames a second; None of a model that makes pictures."""
        return None if self.frames is None else float(self.facts["fps"])

    def latent_shape(self, size: tuple[int, int] | None = None, frames: int | None = None) -> tuple[int, ...]:
        """Frames, of a video, then height, width and channels of the latent of a sample."""
        return said.latent_shape(self.facts, size, frames)

    @property
    def replicas(self) -> int:
        """How many of them compute side by side."""
        return 1 if self.mesh is None else int(self.mesh.shape["data"])

    def on(self, mesh: Mesh) -> "Pipeline":
        """The same pipeline on the devices of a mesh of `replica_mesh`; the text encoder stays where it is.

        Raises ValueError for another mesh, where devices cannot share the quantized weights evenly, and where
        the pipeline lies on a mesh already.
        """
        replicas.check(mesh)
        if self.mesh is not None:
            raise ValueError("this pipeline lies on a mesh already; load it again for another one.")
        nets: dict[str, Any] = {
            name: replicas.placed(net, mesh) for name, net in self.nets().items() if name != "text_encoder"
        }
        return dataclasses.replace(self, mesh=mesh, **nets)

    def with_sampler(self, name: str, **options: Any) -> "Pipeline":
        """The same pipeline with another sampler, on the same noise schedule and for the same kind of
        prediction.
        """
        return dataclasses.replace(self, facts=said.other_sampler(self.facts, name, options))

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


def check_finite(latents: np.ndarray) -> None:
    """Raise ValueError for samples [b ...] that are not finite, which would be black."""
    finite = np.isfinite(latents).reshape(len(latents), -1).all(1)
    if not finite.all():
        raise ValueError(
            f"samples {np.flatnonzero(~finite).tolist()} of {len(finite)} are not finite; "
            f"lower the guidance, or check the weights and the recipe."
        )


def _same(net: Net) -> Net:
    return net
