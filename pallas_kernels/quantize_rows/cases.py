"""Shapes that tests and benchmarks share, each named after the input that it is: (m, k)."""

CASES = {
    "pixart-small tokens": (64, 192),
    "pixart-small mlp/fc2 input, odd rows": (129, 768),
    "dit-xl one row": (1, 1152),
    "dit-xl mlp/fc2 input, seven rows": (7, 4608),
    "k of no tile": (5, 31),
}
