"""Programs that run without models: see the package."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from converters.safetensors_file import open_safetensors
from converters.tensor import ConversionError
from viditq_jax import facts as said
from viditq_jax import sealed
from viditq_jax.encoder import NULL_TABLE, ConditionEncoder
from viditq_jax.export._folder import (
    KIND,
    MODELS,
    any_conditions,
    arguments,
    file_of,
    like,
    need_flatbuffers,
    shapes,
    targets,
    weights_of,
)
from viditq_jax.pipeline import check_finite
from viditq_jax.programs import Call
from viditq_jax.sampling.sample import draw_noise, sample_keys
from viditq_jax.sealed import ArtifactError


@dataclasses.dataclass(frozen=True)
class ExportedPipeline:
    """What `load_exported` gives: programs and their weights. It samples what the pipeline would sample.

    facts: of program.json. arrays: of each model, by name. programs: jitted, by name.
    """

    facts: Mapping[str, Any]
    files: Mapping[str, bytes]
    arrays: Mapping[str, dict[str, Array]]
    programs: Mapping[str, Callable[..., Any]]

    def __call__(
        self,
        conditions: Sequence[str | int],
        *,
        seed: int = 0,
        guidance: float | None = None,
        negative: str = "",
        first: int = 0,
    ) -> UInt8[np.ndarray, "b *t h w 3"]:
        """Pictures, or videos, for as many prompts or class indices as the program takes; see `Pipeline`."""
        latents = self.latents(conditions, seed=seed, guidance=guidance, negative=negative, first=first)
        return self.decode(latents)

    def latents(
        self,
        conditions: Sequence[str | int],
        *,
        seed: int = 0,
        guidance: float | None = None,
        negative: str = "",
        first: int = 0,
    ) -> Float[Array, "b *t h w c"]:
        """Denoised latents.

        Raises ValueError for another number of conditions or another guidance than the program is for.
        """
        if len(conditions) != self.batch:
            raise ValueError(
                f"{len(conditions)} conditions, and this program takes {self.batch} at once; give as many, "
                f"or export with --batch {len(conditions)}."
            )
        scale = float(self.facts["guidance"]) if guidance is None else guidance
        if (scale != 1) != self.guided:
            how = "guided" if self.guided else "without guidance"
            raise ValueError(
                f"guidance is {scale}, and this program is {how}; export with --guidance {scale}."
            )
        call = self.call(conditions, seed=seed, scale=scale, negative=negative, first=first)
        leaves = tuple(jax.tree.leaves(call.conditions))
        return self._run("denoise", leaves, call.scale, call.noise, call.keys)

    def decode(self, latents: Float[Array, "b *t h w c"]) -> UInt8[np.ndarray, "b *t i j 3"]:
        """Latents to pictures or frames. Raises ValueError for latents that are not finite."""
        if "decode" not in self.programs:
            raise ValueError("the exported pipeline had no decoder; use `latents`.")
        check_finite(np.asarray(latents))
        return np.asarray(self._run("decode", latents))

    def call(
        self, conditions: Sequence[str | int], *, seed: int, scale: float, negative: str = "", first: int = 0
    ) -> Call:
        """What the denoising program takes of one batch of conditions."""
        size, frames = self.size, self.facts["frames"]
        keys = sample_keys(seed, first, len(conditions))
        encoded = self.encoder.encode(
            conditions, negative=negative, size=size, frames=frames, guide=self.guided
        )
        noise = draw_noise(keys, said.latent_shape(self.facts["pipeline"], size, frames))
        return Call(encoded, jnp.float32(scale), noise, keys)

    @property
    def batch(self) -> int:
        """How many samples a call makes."""
        return int(self.facts["batch"])

    @property
    def guided(self) -> bool:
        """Whether a call takes a scale of guidance."""
        return bool(self.facts["guidance"] != 1)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.facts["size"]
        return int(height), int(width)

    @cached_property
    def encoder(self) -> ConditionEncoder:
        """What makes arrays of conditions."""
        features = self._features if "encode_text" in self.programs else None
        null = self.arrays["denoiser"].get(f"{NULL_TABLE}/value")
        return ConditionEncoder(self.facts["pipeline"], features, null, self.files)

    def _features(self, ids: Array, mask: Array) -> Array:
        return self._run("encode_text" if len(ids) == self.batch else "encode_null", ids, mask)

    def _run(self, name: str, *arguments: Any) -> Array:
        return self.programs[name](self.arrays[MODELS[name]], *arguments)


def load_exported(path: str | Path) -> ExportedPipeline:
    """The programs of a folder that `export_pipeline` wrote, after all of it has been checked.

    Raises ArtifactError, before anything is compiled, if the folder is torn, altered or of another format
    version, if its programs, weights and facts do not fit together, if a program calls what lies outside of
    it, and if it is for other platforms than this process computes on.
    """
    need_flatbuffers()
    path = Path(path)
    facts = sealed.read(path, KIND)
    here = jax.export.default_export_platform()
    try:
        names, platforms = set(facts["programs"]), [str(each) for each in facts["platforms"]]
        files = {name for name in facts["files"] if "/" in name and not name.startswith("weights/")}
        if "denoise" not in names or not names <= MODELS.keys():
            raise ValueError(f"programs {sorted(names)}")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _misfit(path / KIND.facts, error) from error
    if here not in platforms:
        raise ArtifactError(
            f"{path} is for {', '.join(platforms)}, and this process computes on {here}; export it again "
            f"with --platforms {here}."
        )
    exported = {name: _deserialized(path / file_of(name)) for name in sorted(names)}
    try:
        for name, each in exported.items():
            _check_program(name, each, facts)
        tensors = {model: open_safetensors(path / weights_of(model)) for model in {MODELS[n] for n in names}}
        for name, each in exported.items():
            _check_weights(name, arguments(each)[0], tensors[MODELS[name]])
        arrays = {
            model: {
                name: jax.device_put(tensor.read(), may_alias=False) for name, tensor in sorted(held.items())
            }
            for model, held in tensors.items()
        }
        loaded = ExportedPipeline(
            {key: value for key, value in facts.items() if key not in ("format", "files", "versions")},
            {name: (path / name).read_bytes() for name in files},
            arrays,
            {name: jax.jit(each.call) for name, each in exported.items()},
        )
        _check_call(loaded, exported)
    except (ConversionError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise _misfit(path, error) from error
    return loaded


def _misfit(path: Path, error: Exception) -> ArtifactError:
    said = " ".join(str(error).split())[:300]
    return ArtifactError(f"{path} does not fit together ({type(error).__name__}: {said}); {KIND.again}.")


def _deserialized(file: Path) -> Any:
    if not file.is_file():
        raise ArtifactError(f"{file} is missing; {KIND.again}.")
    try:
        exported = jax.export.deserialize(bytearray(file.read_bytes()))
        unknown = targets(exported)
    except Exception as error:  # whatever flatbuffers and MLIR make of bytes that are none of theirs
        raise ArtifactError(f"{file} is no program of JAX ({type(error).__name__}); {KIND.again}.") from error
    if unknown:
        called = ", ".join(sorted(unknown))
        raise ArtifactError(
            f"{file} calls {called}, which programs of this library do not, so it is not run; {KIND.again}."
        )
    return exported


def _check_program(name: str, exported: Any, facts: dict[str, Any]) -> None:
    if shapes(exported) != facts["programs"][name]:
        raise ValueError(f"{name} takes and gives {shapes(exported)}, not {facts['programs'][name]}")
    if list(exported.platforms) != list(facts["platforms"]) or exported.nr_devices != 1:
        raise ValueError(f"{name} is for {exported.nr_devices} devices of {', '.join(exported.platforms)}")


def _check_weights(name: str, wanted: Any, tensors: Mapping[str, Any]) -> None:
    have = {key: (each.shape, np.dtype(each.dtype)) for key, each in tensors.items()}
    want = {key: (each.shape, np.dtype(each.dtype)) for key, each in wanted.items()}
    if wrong := sorted(key for key in have.keys() | want.keys() if have.get(key) != want.get(key)):
        shown = "; ".join(f"{key} is {have.get(key)}, expected {want.get(key)}" for key in wrong[:5])
        raise ValueError(f"weights of {name}: {shown}{' ...' if len(wrong) > 5 else ''}")


def _check_call(loaded: ExportedPipeline, exported: Mapping[str, Any]) -> None:
    """Raise, as Python does, if what a call would give the program is not what it takes."""
    _, leaves, scale, noise, keys = arguments(exported["denoise"])
    if loaded.batch != noise.shape[0] or not np.isfinite(float(loaded.facts["guidance"])):
        raise ValueError(f"a batch of {loaded.batch}, a guidance of {loaded.facts['guidance']}")
    pipeline = loaded.facts["pipeline"]
    if "encode_text" in exported:
        entry, ids = pipeline["tokenizer"], arguments(exported["encode_text"])[1]
        if entry["file"] not in loaded.files or ids.shape != (loaded.batch, entry["max_length"]):
            raise ValueError(f"tokenizer {entry['file']!r} of {entry['max_length']!r} tokens is not its own")
    conditions = any_conditions(pipeline, loaded.batch)
    call = jax.eval_shape(lambda: loaded.call(conditions, seed=0, scale=0.0))
    found = [like(each) for each in jax.tree.leaves(call)]
    want = [like(each) for each in (*leaves, scale, noise, keys)]
    if found != want:
        raise ValueError(f"a call has {found}, and its program takes {want}")
