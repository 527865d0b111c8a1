"""Shapes that tests and benchmarks share, each named after the layer that it is from: (b, n, l, h, d).

b samples are a few here, and n queries and l keys fewer than in use; a benchmark sets its own.
"""

CASES = {
    "pixart-small attn": (2, 64, 64, 6, 32),
    "pixart-xl attn": (1, 96, 96, 2, 72),
    "pixart-xl attn, compressed keys": (1, 64, 16, 2, 72),
    "pixart-xl cross_attn, prompt": (2, 40, 77, 2, 72),
    "stdit attn over time": (3, 16, 16, 2, 72),
    "autoencoder, one head": (1, 50, 50, 1, 128),
    "one query": (2, 1, 33, 2, 64),
    "odd everywhere": (1, 37, 29, 3, 13),
}
