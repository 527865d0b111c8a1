"""Write the tables of the README that are made from committed records: python benchmarks/readme.py"""

import json
from pathlib import Path
from typing import Any

from viditq_jax.report.quality import quality_section
from viditq_jax.report.recipes import picture_table, video_table
from viditq_jax.report.search import plan_table
from viditq_jax.report.speed import insert, speed_tables

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "benchmarks/records"


def with_tables(text: str) -> str:
    """The text with what the records give between its marks."""
    text = insert(text, speed_tables(RECORDS))
    text = insert(text, plan_table(_record("pareto-image")), "plans")
    text = insert(text, quality_section(_record("quality-image")), "quality")
    text = insert(text, video_table(_record("recipes-video")), "videos")
    return insert(text, picture_table(_record("recipes-image")), "pictures")


def _record(name: str) -> Any:
    return json.loads((RECORDS / f"{name}.json").read_text(encoding="utf-8"))


def main() -> None:
    """Replace what stands between the marks."""
    readme = ROOT / "README.md"
    readme.write_text(with_tables(readme.read_text()))


if __name__ == "__main__":
    main()
