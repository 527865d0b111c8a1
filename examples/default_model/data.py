"""Emoji as training data: icons of two npm packages, rendered to RGBA once, captioned by their names.

A picture is an `Icon` seen through a `Placement` on a background. Pixels are composited on demand, so that
the auto-encoder sees any background and the denoiser the named ones.
"""

import dataclasses
import json
import re
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

PACKAGES = {"noto": "@iconify-json/noto@1.2.9", "fluent": "@iconify-json/fluent-emoji-flat@1.2.6"}
SIDE = 64  # pixels of a picture; drawn at twice the side and averaged down

COLOURS = {  # sRGB; "white" is never said in a caption
    "white": (255, 255, 255), "red": (214, 48, 49), "orange": (243, 146, 55), "yellow": (250, 214, 80),
    "green": (70, 168, 90), "blue": (58, 120, 214), "purple": (138, 84, 190), "pink": (244, 160, 196),
    "black": (20, 20, 24), "gray": (150, 152, 156), "light blue": (160, 212, 244),
}  # fmt: skip

# How often the denoiser is shown an icon. What has weight 0 (people, signs, flags) trains the auto-encoder
# alone: a model this small learns few things well, or many badly.
CATEGORY_WEIGHTS = {
    "Food & Drink": 3.0, "Animals & Nature": 3.0, "Smileys & Emotion": 2.5, "Travel & Places": 0.5,
    "Objects": 0.5, "Activities": 0.5, "Symbols": 0.0, "People & Body": 0.0, "Flags": 0.0,
}  # fmt: skip
# Subjects that a demonstration asks for first: drawn this many times as often as their category.
FAVOURITE_WEIGHT = 8.0
FAVOURITES = (
    "red-apple", "green-apple", "dog-face", "cat-face", "blue-heart", "red-heart", "green-heart",
    "yellow-heart", "pizza", "hamburger", "strawberry", "banana", "lemon", "grapes", "watermelon",
    "cherries", "tomato", "carrot", "panda", "fox", "frog", "pig-face", "tiger-face", "rabbit-face",
    "bear", "lion", "chicken", "fish", "octopus", "sunflower", "tulip", "cactus", "mushroom",
    "grinning-face", "crying-face", "smiling-face-with-sunglasses", "ghost", "rocket", "sun", "star",
    "soccer-ball", "basketball", "birthday-cake", "doughnut", "christmas-tree",
    "smiling-face-with-heart-eyes", "airplane", "automobile", "sailboat", "umbrella", "light-bulb",
    "crown", "key",
)  # fmt: skip

SKIN_TONE = re.compile(r"-(medium-|)(dark|light|medium)(-skin-tone|)(-|$)")
RARE = re.compile(r"oclock|-thirty$")

PLACEMENTS = 4  # placement 0 is the icon as drawn; the others are small shifts and scales


@dataclasses.dataclass(frozen=True)
class Icon:
    """One drawing: what it shows, in whose style, the SVG, and how often it is drawn in training."""

    subject: str
    style: str
    category: str
    svg: str  # with {box} where the view box goes
    size: int
    flip: bool
    weight: float

    @property
    def words(self) -> str:
        return self.subject.replace("-", " ")


def fetch(cache: Path) -> None:
    """Download and unpack the two icon packages into `cache`/<style>, if they are not there."""
    for style, package in PACKAGES.items():
        folder = cache / style
        if (folder / "icons.json").exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", package, "--pack-destination", str(cache)]
        archive = cache / subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        with tarfile.open(archive) as tar:
            for member in tar.getmembers():
                member.name = member.name.removeprefix("package/")
            tar.extractall(folder, filter="data")


def read_icons(cache: Path) -> list[Icon]:
    """All icons of both packages but those of one skin tone, in a fixed order."""
    icons = []
    for style in PACKAGES:
        package = json.loads((cache / style / "icons.json").read_text())
        categories = json.loads((cache / style / "metadata.json").read_text())["categories"]
        for category, names in sorted(categories.items()):
            for name in sorted(names):
                if category == "People & Body" and SKIN_TONE.search(name):
                    continue
                icons.append(_icon(package, name, style, category))
    return icons


def _icon(package: dict, name: str, style: str, category: str) -> Icon:
    alias = package["aliases"].get(name, {})
    body = package["icons"][alias.get("parent", name)]["body"]
    weight = CATEGORY_WEIGHTS[category] * (FAVOURITE_WEIGHT if name in FAVOURITES else 1.0)
    if RARE.search(name):
        weight *= 0.2
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    svg = f"<svg {names} {{box}}>{body}</svg>"
    return Icon(name, style, category, svg, package["width"], bool(alias.get("hFlip")), weight)


def picture(icon: Icon, side: int, *, shift: tuple[float, float] = (0.0, 0.0), zoom: float = 1.0) -> Any:
    """The icon as a Pillow picture, RGBA of side x side pixels. shift: in sides. zoom: above 1 is larger."""
    import io

    import resvg_py
    from PIL import Image, ImageOps

    box = icon.size / zoom
    left, top = ((icon.size - box) / 2 - part * icon.size for part in shift)
    view = f'viewBox="{left:.3f} {top:.3f} {box:.3f} {box:.3f}" width="{side}" height="{side}"'
    png = bytes(resvg_py.svg_to_bytes(svg_string=icon.svg.replace("{box}", view)))
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    return ImageOps.mirror(image) if icon.flip else image


def render(icon: Icon, *, shift: tuple[float, float] = (0.0, 0.0), zoom: float = 1.0) -> np.ndarray:
    """The icon as premultiplied RGBA, uint8 [64, 64, 4], drawn at twice the side and averaged down."""
    rgba = np.asarray(picture(icon, 2 * SIDE, shift=shift, zoom=zoom), np.float32)
    rgba = np.concatenate([rgba[..., :3] * rgba[..., 3:] / 255, rgba[..., 3:]], axis=-1)
    return np.round(rgba.reshape(SIDE, 2, SIDE, 2, 4).mean(axis=(1, 3))).astype(np.uint8)


def render_all(icons: list[Icon], cache: Path, *, seed: int = 0) -> np.ndarray:
    """Every icon in every placement, uint8 [icons, placements, 64, 64, 4]; kept in `cache`."""
    from rich.progress import track

    file = cache / "rendered.npy"
    if file.exists() and (pictures := np.load(file, mmap_mode="r")).shape[0] == len(icons):
        return np.array(pictures)
    random = np.random.default_rng(seed)
    pictures = np.zeros((len(icons), PLACEMENTS, SIDE, SIDE, 4), np.uint8)
    for i, icon in enumerate(track(icons, "rendering")):
        pictures[i, 0] = render(icon)
        for j in range(1, PLACEMENTS):
            shift = tuple(random.uniform(-0.05, 0.05, 2))
            pictures[i, j] = render(icon, shift=shift, zoom=random.uniform(0.85, 1.02))
    np.save(file, pictures)
    return pictures


def composite(pictures: np.ndarray, backgrounds: np.ndarray) -> np.ndarray:
    """Premultiplied RGBA uint8 [b, h, w, 4] over colours [b, 3] in 0..255; float32, in [-1, 1]."""
    rgb, alpha = pictures[..., :3].astype(np.float32), pictures[..., 3:].astype(np.float32) / 255
    return (rgb + (1 - alpha) * backgrounds[:, None, None].astype(np.float32)) / 127.5 - 1


@dataclasses.dataclass(frozen=True)
class Rows:
    """What the denoiser is trained on, a row a picture."""

    icon: np.ndarray  # int [rows]
    placement: np.ndarray  # int [rows]
    colour: np.ndarray  # int [rows], into COLOURS
    weight: np.ndarray  # float [rows], sums to 1 over the training rows
    held_out: np.ndarray  # bool [rows]


def make_rows(icons: list[Icon], *, seed: int = 0, held_out: float = 0.03, coloured: float = 0.2) -> Rows:
    """Each icon on white in every placement and, in two of them, on two named colours.

    held_out: share of the icons kept from training, among subjects that both styles draw. coloured: share of
    the draws that have a background of a named colour.
    """
    random = np.random.default_rng(seed)
    styles = {}
    for icon in icons:
        styles.setdefault(icon.subject, []).append(icon.style)
    shown = [i for i, icon in enumerate(icons) if icon.weight > 0]
    both = [i for i in shown if len(styles[icons[i].subject]) == 2 and icons[i].subject not in FAVOURITES]
    hidden, subjects = set(), set()
    for i in random.permutation(both):
        if len(hidden) < held_out * len(shown) and icons[i].subject not in subjects:
            hidden.add(int(i))
            subjects.add(icons[i].subject)
    rows = []
    for i in shown:
        icon = icons[i]
        rows += [(i, j, 0, icon.weight * (1 - coloured) / PLACEMENTS, i in hidden) for j in range(PLACEMENTS)]
        colours = 1 + random.choice(len(COLOURS) - 1, 2, replace=False)
        rows += [(i, j, colours[j], icon.weight * coloured / 2, i in hidden) for j in range(2)]
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    weight = np.where(columns[4], 0.0, columns[3])
    return Rows(*columns[:3], weight / weight.sum(), columns[4])


def caption(icon: Icon, colour: str, *, style: bool) -> str:
    """As in "red apple on a blue background, noto style"; white and, if asked, the style go without
    saying."""
    return f"{icon.words}{background(colour)}{f', {icon.style} style' if style else ''}"


def background(colour: str) -> str:
    """As in " on an orange background"; white goes without saying."""
    article = "an" if colour[0] in "aeiou" else "a"
    return "" if colour == "white" else f" on {article} {colour} background"
