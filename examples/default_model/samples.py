"""Sheets of pictures."""

from pathlib import Path

import numpy as np


def sheet(images: np.ndarray, file: Path, *, columns: int) -> None:
    """Save images [b, h, w, 3] in [-1, 1] as one PNG, row by row; the last row is filled up with white."""
    from PIL import Image

    images = np.round((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)
    missing = -len(images) % columns
    images = np.concatenate([images, np.full((missing, *images.shape[1:]), 255, np.uint8)])
    _, height, width, _ = images.shape
    grid = images.reshape(-1, columns, height, width, 3).transpose(0, 2, 1, 3, 4)
    Image.fromarray(grid.reshape(-1, columns * width, 3)).save(file)
