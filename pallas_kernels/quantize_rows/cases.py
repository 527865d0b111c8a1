"""Shapes that tests and benchmarks share, each named after the input that it is.

CASES are plain rows, (m, k). FUSED are rows with what is done to them first:
(m, k, groups with a modulation each or None, activation, balanced, block or None, regular).
"""

CASES = {
    "pixart-small tokens": (64, 192),
    "pixart-small mlp/fc2 input, odd rows": (129, 768),
    "dit-xl one row": (1, 1152),
    "dit-xl mlp/fc2 input, seven rows": (7, 4608),
    "k of no tile": (5, 31),
}

Fused = tuple[int, int, int | None, str | None, bool, int | None, bool]
FUSED: dict[str, Fused] = {
    "pixart-small modulated tokens": (64, 192, 2, None, False, None, False),
    "dit-xl modulated tokens, balanced": (8, 1152, 2, None, True, None, False),
    "dit-xl one modulated row a sample": (2, 1152, 2, None, False, None, False),
    "flux modulated tokens": (12, 3072, 1, None, False, None, False),
    "pixart cross-attention query, balanced": (16, 1152, None, None, True, None, False),
    "dit-xl mlp/fc2 input, before its gelu": (8, 4608, None, "gelu", False, None, False),
    "dit-xl mlp/fc2 input, before its gelu, balanced": (8, 4608, None, "gelu", True, None, False),
    "pixart-small mlp/fc2 input, odd rows": (13, 768, None, "gelu", True, None, False),
    "dit-xl modulated tokens, balanced and rotated": (8, 1152, 2, None, True, 128, False),
    "pixart tokens rotated in regular blocks": (16, 1152, None, None, False, 64, True),
    "pixart-small tokens rotated whole": (16, 192, 2, None, False, 192, False),
    "dit-xl mlp/fc2 input, before its gelu, balanced and rotated": (8, 4608, None, "gelu", True, 512, False),
    "all of it, k of no tile": (6, 30, 3, "gelu", True, 2, False),
}
