"""Shapes that tests and benchmarks share, each named after the input that it is: (m, k, block, regular)."""

CASES = {
    "pixart-small tokens": (64, 192, 192, False),
    "pixart-small mlp/fc2 input, odd rows": (129, 768, 768, False),
    "dit-xl one row": (1, 1152, 1152, False),
    "dit-xl mlp/fc2 input, seven rows": (7, 4608, 4608, False),
    "pixart tokens in blocks": (5, 1152, 128, False),
    "dit-xl tokens in regular blocks": (9, 1152, 64, True),
    "flux tokens in regular blocks": (3, 3072, 256, True),
    "t5 captions in regular blocks": (2, 4096, 1024, True),
    "a base larger than a merged matrix": (3, 280, 140, False),
    "pairs": (5, 6, 2, False),
    "one channel a block": (4, 31, 1, False),
}
