"""Shapes that tests and benchmarks share, each named after the layer that it is from: (m, k, n).

m is a few rows here, chosen odd or even on purpose; a benchmark sets its own number of tokens.
"""

CASES = {
    "pixart-small attn/qkv": (64, 192, 576),
    "pixart-small mlp/fc1, odd rows": (129, 192, 768),
    "pixart-small mlp/fc2": (64, 768, 192),
    "dit-xl attn/proj, one row": (1, 1152, 1152),
    "dit-xl mlp/fc2, seven rows": (7, 4608, 1152),
    "patches, k of no tile": (33, 16, 72),
    "odd everywhere": (5, 31, 13),
}
