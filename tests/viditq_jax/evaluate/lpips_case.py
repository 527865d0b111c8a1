"""Weights and pictures whose distances the package lpips gave: see `test_lpips.py`."""

import numpy as np

CONVOLUTIONS = {
    "net.slice1.0": (64, 3, 11, 11), "net.slice2.3": (192, 64, 5, 5), "net.slice3.6": (384, 192, 3, 3),
    "net.slice4.8": (256, 384, 3, 3), "net.slice5.10": (256, 256, 3, 3),
}  # fmt: skip


def state_dict() -> dict[str, np.ndarray]:
    """All weights random, so large that every layer has its say."""
    random = np.random.default_rng(7)
    arrays = {
        "scaling_layer.shift": np.array([-0.030, -0.088, -0.188], np.float32).reshape(1, 3, 1, 1),
        "scaling_layer.scale": np.array([0.458, 0.448, 0.450], np.float32).reshape(1, 3, 1, 1),
    }
    for i, (name, shape) in enumerate(CONVOLUTIONS.items()):
        spread = np.sqrt(2 / np.prod(shape[1:]))
        arrays[f"{name}.weight"] = (spread * random.standard_normal(shape)).astype(np.float32)
        arrays[f"{name}.bias"] = (0.1 * random.standard_normal(shape[0])).astype(np.float32)
        arrays[f"lin{i}.model.1.weight"] = random.random((1, shape[0], 1, 1), np.float32)
    return arrays


def _pairs() -> list[tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng(8)
    first = random.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    close = np.where(first > 127, first - 9, first + 9).astype(np.uint8)
    wide = random.integers(0, 256, (2, 40, 75, 3), dtype=np.uint8)
    return [(first, close), (first, 255 - first), (wide[0], wide[1])]


PICTURES = _pairs()
