"""Shapes that tests and benchmarks share, each named after the layer that it is from: (m, k, n, groups).

m is a few rows here, chosen odd or even on purpose; a benchmark sets its own number of tokens.
"""

CASES = {
    "pixart-small attn/qkv": (64, 192, 576, 1),
    "pixart-small attn/qkv, group 64": (64, 192, 576, 3),
    "pixart-small mlp/fc1, odd rows, group 32": (129, 192, 768, 6),
    "pixart-small mlp/fc2, group 128": (64, 768, 192, 6),
    "dit-xl attn/proj, one row, group 64": (1, 1152, 1152, 18),
    "dit-xl attn/proj, seven rows": (7, 1152, 1152, 1),
    "k of no tile": (5, 34, 13, 1),
}
