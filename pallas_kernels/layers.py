"""Linear layers of full-size models with the tokens that a step gives them: the shapes that benchmarks share.

The `cases.py` of each op hold small shapes, for tests. These are what a user waits for. `rows` are all tokens
of a batch together, as a linear layer sees them; guidance doubles them.
"""

from typing import NamedTuple


class Layer(NamedTuple):
    """One linear layer as a model calls it.

    form: of the input. "modulated": layer norm, shift and scale come first; "gelu": GELU does; "plain".
    epilogue: after the bias. "gelu"; "gate": times a gate, plus a residual; "residual"; "none".
    """

    rows: int
    k: int
    n: int
    form: str = "plain"
    epilogue: str = "none"


def _block(rows: int, width: int) -> dict[str, Layer]:
    """A block of DiT and its kin: fused projections, an MLP four times as wide."""
    return {
        "attn/qkv": Layer(rows, width, 3 * width, "modulated"),
        "attn/proj": Layer(rows, width, width, "plain", "gate"),
        "mlp/fc1": Layer(rows, width, 4 * width, "modulated", "gelu"),
        "mlp/fc2": Layer(rows, 4 * width, width, "plain", "gate"),
    }


_FLUX_TOKENS = 4096 + 512  # of a picture of 1024 pixels, and of its text
_BLOCKS = {
    "pixart-sigma-512": _block(2 * 1024, 1152)
    | {
        "cross_attn/q_linear": Layer(2 * 1024, 1152, 1152),
        "cross_attn/proj": Layer(2 * 1024, 1152, 1152, "plain", "residual"),
        "cross_attn/kv_linear": Layer(2 * 300, 1152, 2304),
    },
    "pixart-sigma-1024": _block(2 * 4096, 1152),
    "flux-like 1024": {
        "double/qkv": Layer(_FLUX_TOKENS, 3072, 9216, "modulated"),
        "double/fc1": Layer(_FLUX_TOKENS, 3072, 12288, "modulated", "gelu"),
        "single/linear2": Layer(_FLUX_TOKENS, 15360, 3072, "plain", "gate"),
        "double/mod": Layer(1, 3072, 18432),
    },
    "dit-xl-2-512 batch 16": _block(16 * 1024, 1152),
    "stdit-16x512x512": _block(2 * 16 * 1024, 1152),
    "few rows": {
        "pixart t_block": Layer(2, 1152, 6912),
        "mlp/fc1, 64 rows": Layer(64, 1152, 4608, "modulated", "gelu"),
    },
}

MODELS: dict[str, dict[str, Layer]] = {
    model: {f"{model} {name}": layer for name, layer in block.items()} for model, block in _BLOCKS.items()
}
LAYERS: dict[str, Layer] = {name: layer for layers in MODELS.values() for name, layer in layers.items()}
QUICK = tuple(f"pixart-sigma-512 {name}" for name in _block(0, 0))  # tell most in a minute
