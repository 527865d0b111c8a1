"""Weights and pictures whose features pytorch-fid gave: see `test_fid_inception.py`."""

from collections.abc import Mapping

import numpy as np

PICTURES = [
    np.random.default_rng(9).integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((64, 48), (320, 310))
]


def state_dict(shapes: Mapping[str, list[int]]) -> dict[str, np.ndarray]:
    """All weights random, and so large that no feature dies on the way. shapes: of convolutions, by name."""
    random = np.random.default_rng(10)
    arrays = {}
    for name, shape in sorted(shapes.items()):
        spread = np.sqrt(2 / np.prod(shape[1:]))
        arrays[f"{name}.conv.weight"] = (spread * random.standard_normal(shape)).astype(np.float32)
        parts = {
            "weight": (0.8, 1.2),
            "bias": (-0.1, 0.3),
            "running_mean": (-0.1, 0.1),
            "running_var": (0.5, 1.5),
        }
        for part, (low, high) in parts.items():
            arrays[f"{name}.bn.{part}"] = random.uniform(low, high, shape[0]).astype(np.float32)
    return arrays
