"""A pipeline: conditions in, pictures or videos out. It binds the models of an artifact to a sampler and to
guidance.

Sampling is one compiled program: a new seed, prompt or guidance scale compiles nothing; another batch size,
size, number of frames, sampler or number of steps does. Sample `i` draws all its noise from
`fold_in(seed, i)`.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, UInt8

from viditq_jax import checkpoint, programs
from viditq_jax import facts as said
from viditq_jax.conditions import check_conditions
from viditq_jax.encoder import NULL_TABLE, ConditionEncoder
from viditq_jax.net import Net
from viditq_jax.programs import Call, Guidance, Plan
from viditq_jax.quant.apply import quantize
from viditq_jax.quant.audit import audit
from viditq_jax.quant.recipe import Recipe
from viditq_jax.quant.stats import Stats
from viditq_jax.replicas import Replica, check, placed, replicas_on
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
        check_conditions(conditions)
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
        return found[0] if len(found) == 1 else jnp.concatenate(jax.device_get(found))

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
        return Call(encoded, jax.device_put(np.float32(scale)), noise, keys)

    def denoise(self, calls: Sequence[Call], plan: Plan) -> list[Float[Array, "b *t h w c"]]:
        """Latents of a call for each replica. Does not wait for them."""
        correction = self.correction(plan)
        pairs = zip(self.each, calls, strict=True)
        return [replica.denoise(call, correction, plan) for replica, call in pairs]

    def pixels(self, latents: Sequence[Float[Array, "b *t h w c"]]) -> list[UInt8[Array, "b *t i j 3"]]:
        """What `denoise` gave, decoded where it lies. Does not wait for it, and does not look at it."""
        if self.decoder is None:
            raise ValueError("this pipeline has no decoder; convert it again with --vae, or use `latents`.")
        return [replica.pixels(each) for replica, each in zip(self.each, latents, strict=True)]

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
        parts = [jnp.asarray(part) for part in np.split(np.asarray(latents), self.replicas)]
        return np.concatenate(jax.device_get(self.pixels(parts)))

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
        return self.encoder.encode(conditions, negative=negative, size=size, frames=frames, guide=guide)

    @cached_property
    def encoder(self) -> ConditionEncoder:
        """What makes arrays of conditions."""
        text_encoder, null = self.text_encoder, dict(self.denoiser.variables()).get(NULL_TABLE)
        return ConditionEncoder(
            self.facts,
            None if text_encoder is None else partial(programs.encode_text, text_encoder),
            None if null is None else null.get_value(),
            self.files,
        )

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

    @cached_property
    def each(self) -> list[Replica]:
        """What computes side by side: one, where the pipeline lies on no mesh."""
        if self.mesh is None:
            return [Replica(self.denoiser, self.decoder)]
        return replicas_on(self.mesh, self.denoiser, self.decoder)

    @property
    def replicas(self) -> int:
        """How many of them compute side by side."""
        return len(self.each)

    def on(self, mesh: Mesh) -> "Pipeline":
        """The same pipeline on the devices of a mesh of `replica_mesh`; the text encoder stays where it is.

        Raises ValueError for another mesh, where devices cannot share the quantized weights evenly, and where
        the pipeline lies on a mesh already.
        """
        check(mesh)
        if self.mesh is not None:
            raise ValueError("this pipeline lies on a mesh already; load it again for another one.")
        nets: dict[str, Any] = {
            name: placed(net, mesh) for name, net in self.nets().items() if name != "text_encoder"
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
