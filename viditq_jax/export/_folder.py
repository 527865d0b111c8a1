"""What writing and reading programs share: names in the folder, and what a program says of itself."""

import importlib.util
import re
from collections.abc import Mapping
from typing import Any

import jax

from viditq_jax.sealed import Kind

KIND = Kind("an exported program", "program.json", 1, "with `viditq export`", "export the pipeline again")
PLATFORMS = ("cpu", "cuda", "tpu")
MODELS = {  # whose weights a program takes
    "denoise": "denoiser", "decode": "decoder", "encode_text": "text_encoder", "encode_null": "text_encoder"
}  # fmt: skip
_CALL = re.compile(r'custom_call\s*@"?([^\s"(]+)')


def any_conditions(facts: Mapping[str, Any], count: int) -> list[str | int]:
    """Some conditions that the pipeline of these facts takes."""
    return [""] * count if facts["conditions"]["kind"] == "prompt" else [0] * count


def like(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape and type alone."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def targets(exported: Any) -> set[str]:
    """The custom calls of a program, by which it would leave StableHLO. Those of this library have none."""
    return set(_CALL.findall(exported.mlir_module()))


def arguments(exported: Any) -> tuple[Any, ...]:
    """The shapes and types of what a program takes; its weights first, by name."""
    return jax.tree.unflatten(exported.in_tree, exported.in_avals)[0]


def shapes(exported: Any) -> dict[str, list[str]]:
    """What a program takes beside weights, and what it gives, as "float32[2,8,8,4]"."""
    taken = jax.tree.leaves(arguments(exported)[1:])
    return {"takes": [str(each) for each in taken], "gives": [str(each) for each in exported.out_avals]}


def file_of(name: str) -> str:
    """Where a program lies."""
    return f"{name}.jaxexport"


def weights_of(model: str) -> str:
    """Where the weights of a model lie."""
    return f"weights/{model}.safetensors"


def need_flatbuffers() -> None:
    """Raise ImportError, which names the extra, where it is not installed."""
    if importlib.util.find_spec("flatbuffers") is None:
        raise ImportError(
            "JAX writes and reads programs by flatbuffers, which is not installed; install the extra: "
            "pip install 'viditq-jax[export]'."
        )
