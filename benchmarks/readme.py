"""Write the tables of the README that are made from committed records: python benchmarks/readme.py

With --demo runs/demo also docs/demo.png, of the pictures that `make demo` left there.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from viditq_jax.report.quality import quality_section
from viditq_jax.report.recipes import picture_table, video_table
from viditq_jax.report.run import Run, read_run
from viditq_jax.report.search import plan_table
from viditq_jax.report.speed import insert, speed_tables

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "benchmarks/records"
COLUMNS = 10  # of the picture


def with_tables(text: str) -> str:
    """The text with what the records give between its marks."""
    text = insert(text, speed_tables(RECORDS))
    text = insert(text, plan_table(_record("pareto-image")), "plans")
    text = insert(text, quality_section(_record("quality-image")), "quality")
    text = insert(text, video_table(_record("recipes-video")), "videos")
    return insert(text, picture_table(_record("recipes-image")), "pictures")


def _record(name: str) -> Any:
    return json.loads((RECORDS / f"{name}.json").read_text(encoding="utf-8"))


def demo_picture(run: Run, variants: Sequence[str]) -> Image.Image:
    """Some of the pictures of a run, twice their size: a row a variant, a column a prompt."""
    count, font = min(len(run.conditions), COLUMNS), ImageFont.load_default(13)
    left, top, side = 70, 20, 2 * run.still(variants[0], 0).shape[0]
    canvas = Image.new("RGB", (left + (side + 4) * count, top + (side + 4) * len(variants)), "white")
    draw = ImageDraw.Draw(canvas)
    for column in range(count):
        draw.text((left + (side + 4) * column + 2, 2), run.conditions[column], fill="black", font=font)
    for row, name in enumerate(variants):
        y = top + (side + 4) * row
        draw.text((4, y + side // 2 - 8), name, fill="black", font=font)
        for column in range(count):
            tile = Image.fromarray(run.still(name, column)).resize((side, side), Image.Resampling.NEAREST)
            canvas.paste(tile, (left + (side + 4) * column, y))
    return canvas


def main() -> None:
    """Replace what stands between the marks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--demo", type=Path, help="the run folder of a demo")
    options = parser.parse_args()
    if options.demo is not None:
        run = read_run(options.demo)
        demo_picture(run, ("float", "w8a8", "w4a8")).save(ROOT / "docs/demo.png", optimize=True)
    readme = ROOT / "README.md"
    readme.write_text(with_tables(readme.read_text()))


if __name__ == "__main__":
    main()
