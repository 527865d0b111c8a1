"""The image sizes that PixArt was trained on: one for each of 40 aspect ratios."""

from typing import NamedTuple


class Bin(NamedTuple):
    """An image size in pixels, and the label of its aspect ratio, which is about height / width."""

    aspect: float
    height: int
    width: int


_SIZES = (  # at 1024: label, height, width
    *((0.25, 512, 2048), (0.26, 512, 1984), (0.27, 512, 1920), (0.28, 512, 1856), (0.32, 576, 1792)),
    *((0.33, 576, 1728), (0.35, 576, 1664), (0.4, 640, 1600), (0.42, 640, 1536), (0.48, 704, 1472)),
    *((0.5, 704, 1408), (0.52, 704, 1344), (0.57, 768, 1344), (0.6, 768, 1280), (0.68, 832, 1216)),
    *((0.72, 832, 1152), (0.78, 896, 1152), (0.82, 896, 1088), (0.88, 960, 1088), (0.94, 960, 1024)),
    *((1.0, 1024, 1024), (1.07, 1024, 960), (1.13, 1088, 960), (1.21, 1088, 896), (1.29, 1152, 896)),
    *((1.38, 1152, 832), (1.46, 1216, 832), (1.67, 1280, 768), (1.75, 1344, 768), (2.0, 1408, 704)),
    *((2.09, 1472, 704), (2.4, 1536, 640), (2.5, 1600, 640), (2.89, 1664, 576), (3.0, 1728, 576)),
    *((3.11, 1792, 576), (3.62, 1856, 512), (3.75, 1920, 512), (3.88, 1984, 512), (4.0, 2048, 512)),
)
ASPECT_RATIOS = {
    pixels: tuple(
        Bin(aspect, height * pixels // 1024, width * pixels // 1024) for aspect, height, width in _SIZES
    )
    for pixels in (256, 512, 1024, 2048)
}


def nearest_bin(height: int, width: int, pixels: int = 1024) -> Bin:
    """The bin whose label is nearest to height / width, the smaller label where two are equally near.

    pixels: the nominal side of the model, 256, 512, 1024 or 2048.
    Raises ValueError for another side, and for sizes that are not positive.
    """
    if pixels not in ASPECT_RATIOS:
        raise ValueError(
            f"no aspect-ratio bins for {pixels} pixels; choose one of {', '.join(map(str, ASPECT_RATIOS))}."
        )
    if height <= 0 or width <= 0:
        raise ValueError(f"size {height}x{width} is not positive; give pixels.")
    return min(ASPECT_RATIOS[pixels], key=lambda found: abs(found.aspect - height / width))
