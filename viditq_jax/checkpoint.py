"""Artifacts: a pipeline as a folder. Saving is atomic, loading refuses whatever was torn or altered.

    pipeline.json     models, configs, sampler, recipe, source, versions; size and sha256 of every file
    denoiser/ ...     one Orbax tree a Net, each array in the folder of its name
    (blocks/0/attn/qkv/weight/...) tokenizer/ ...    small files, verbatim

`pipeline.json` is written last, and the folder gets its name only when it is whole. Codes of quantized
weights are stored as they are in memory; nothing is requantized when an artifact is loaded.
"""

import dataclasses
import errno
import gc
import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from viditq_jax import sealed
from viditq_jax.files import write_atomic
from viditq_jax.net import Net
from viditq_jax.sealed import ArtifactError, Kind

if TYPE_CHECKING:  # where arrays are read or written it is imported; packaged models start without it
    import orbax.checkpoint as ocp

FACTS_FILE = "pipeline.json"
KIND = Kind("an artifact", FACTS_FILE, 1, "with `viditq convert`", "make the artifact again from its source")


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A pipeline before it is built: what `convert` gives and `save` writes.

    facts: JSON-able; one entry a Net with its model and config, and "sampler", "guidance", "conditions", ...
    nets: by name ("denoiser", "decoder", "text_encoder"), called one after the other, so that each model can
        be written and freed before the next is read.
    files: small files to keep verbatim, by relative name ("tokenizer/spiece.model").
    """

    facts: dict[str, Any]
    nets: Mapping[str, Callable[[], Net]]
    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)


def named_arrays(net: Net) -> dict[str, Any]:
    """Every leaf of a Net by its name; a quantized weight has several
    ("blocks/0/attn/qkv/weight/weight/scale").
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(net.params)
    return {"/".join(_key_name(key) for key in path if _key_name(key)): leaf for path, leaf in leaves}


def _key_name(key: Any) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key).strip(".")


def versions() -> dict[str, str]:
    """Versions of what computes and stores a result, for records."""
    packages = ("viditq-jax", "jax", "jaxlib", "flax", "orbax-checkpoint", "numpy")
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _checkpointer() -> "ocp.Checkpointer":
    import orbax.checkpoint as ocp

    # Orbax reports each file it writes, and each array that it cannot; what it raises is enough.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False))


def _write(arrays: dict[str, Any], folder: Path) -> None:
    """Write a tree of arrays. Raises OSError, one line where Orbax and TensorStore have hundreds."""
    needed = sum(array.size * array.dtype.itemsize for array in arrays.values())
    if needed > (free := shutil.disk_usage(folder.parent).free):
        raise OSError(
            errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {needed} bytes are needed, {free} are free"
        )
    log = logging.getLogger("asyncio")
    level = log.level
    try:
        with _checkpointer() as checkpointer:
            checkpointer.save(folder, arrays)
    except (OSError, ValueError, RuntimeError) as error:
        log.setLevel(logging.CRITICAL)  # the other writes that failed are reported when they are forgotten
        error.__traceback__ = None
        gc.collect()
        raise OSError(" ".join(str(error).split())[-200:]) from None
    finally:
        log.setLevel(level)


def save(artifact: Artifact, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write an artifact; the folder appears under its name only when it is whole.

    Raises ArtifactError if the folder exists (unless `overwrite`, which replaces it at the very end), or if
    the disk refuses; nothing half-written is left behind and an existing artifact stays untouched.
    """
    path, facts = Path(path), {**artifact.facts, "versions": versions()}
    with sealed.writing(path, KIND, facts, overwrite=overwrite) as partial:
        for name, load in artifact.nets.items():
            _write(named_arrays(load()), (partial / name).resolve())
        for name, content in artifact.files.items():
            write_atomic(partial / name, content)
    return path


def read_facts(path: str | Path) -> dict[str, Any]:
    """The facts of an artifact, after every one of its files has been checked against its size and sha256.

    Raises ArtifactError, which names the file, if the artifact is torn, altered or of another format version.
    """
    return sealed.read(Path(path), KIND)


def fingerprint(nets: Mapping[str, Net]) -> str:
    """A sha256 of every array of the Nets, with its name and type: equal weights give equal fingerprints."""
    digest = hashlib.sha256()
    for name, net in sorted(nets.items()):
        for path, leaf in sorted(named_arrays(net).items()):
            array = np.ascontiguousarray(np.asarray(leaf))
            digest.update(f"{name}/{path} {array.dtype} {array.shape}".encode())
            digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def weight_disk_bytes(path: str | Path, name: str, layers: Iterable[str]) -> int:
    """Bytes on disk of the weights of some layers of the Net `name`: codes, scales and all headers."""
    folders = [Path(path) / name / layer / "weight" for layer in layers]
    return sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())


def _check_chunks(folder: Path) -> None:
    """Raise ArtifactError for arrays in larger pieces than themselves: reading one allocates all of it."""
    for file in sorted(folder.rglob("*")):
        if file.name in ("zarr.json", "manifest.ocdbt"):
            raise ArtifactError(f"{file} is of a format that artifacts do not have; make the artifact again.")
        if file.name != ".zarray":
            continue
        try:
            facts = json.loads(file.read_text(encoding="utf-8"))
            wrong = any(
                chunk > max(size, 1) for chunk, size in zip(facts["chunks"], facts["shape"], strict=True)
            )
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise ArtifactError(f"{file} is not valid ({error}); make the artifact again.") from error
        if wrong:
            raise ArtifactError(
                f"{file} says that an array of {facts['shape']} lies in pieces of {facts['chunks']}; "
                "make the artifact again from its source."
            )


def restore(path: str | Path, name: str, target: Net, shardings: Net | None = None) -> Net:
    """The Net `name` of an artifact, in the structure, shapes and types of the abstract Net `target`.

    shardings: where each array goes, straight from the host; to the first device where not given.
    Raises ArtifactError, with all differences, if the stored arrays are not those that `target` describes.
    """
    import orbax.checkpoint as ocp

    folder = (Path(path) / name).resolve()
    wanted = named_arrays(target)
    _check_chunks(folder)
    with _checkpointer() as checkpointer:
        try:
            stored = checkpointer.metadata(folder).item_metadata.tree
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ArtifactError(
                f"{folder} is not a tree of arrays ({type(error).__name__}: {error}); "
                "make the artifact again from its source."
            ) from error
        faults = [f"{key} is missing" for key in sorted(wanted.keys() - stored.keys())]
        faults += [f"{key} is unexpected" for key in sorted(stored.keys() - wanted.keys())]
        for key in sorted(wanted.keys() & stored.keys()):
            have = (tuple(stored[key].shape), np.dtype(stored[key].dtype))
            want = (tuple(wanted[key].shape), np.dtype(wanted[key].dtype))
            if have != want:
                faults.append(f"{key} is {have[1]}{list(have[0])}, expected {want[1]}{list(want[0])}")
        if faults:
            shown = "; ".join(faults[:20]) + (f"; and {len(faults) - 20} more" if len(faults) > 20 else "")
            raise ArtifactError(f"{folder} does not hold the model that {FACTS_FILE} describes: {shown}.")
        # Through the host: arrays tied to a device would compile anew what fresh arrays have compiled.
        args = {key: ocp.RestoreArgs(restore_type=np.ndarray) for key in wanted}
        try:
            restored = checkpointer.restore(folder, ocp.args.PyTreeRestore(dict(wanted), restore_args=args))
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            said = " ".join(str(error).split())[:300]
            raise ArtifactError(
                f"the arrays of {folder} cannot be read ({type(error).__name__}: {said}); "
                "make the artifact again from its source."
            ) from error
    structure = jax.tree.structure(target.params)
    if shardings is None:
        leaves = [jax.device_put(restored.pop(key)) for key in wanted]
    else:
        places = jax.tree.leaves(shardings.params)
        leaves = [jax.device_put(restored.pop(key), place) for key, place in zip(wanted, places, strict=True)]
    return Net(jax.tree.unflatten(structure, leaves), target.graphdef)
