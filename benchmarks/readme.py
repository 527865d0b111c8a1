"""Write the speed tables of the README from the committed records: python benchmarks/readme.py"""

from pathlib import Path

from viditq_jax.report.speed import insert, speed_tables

ROOT = Path(__file__).parent.parent


def main() -> None:
    """Replace what stands between the marks."""
    readme = ROOT / "README.md"
    readme.write_text(insert(readme.read_text(), speed_tables(ROOT / "benchmarks/records")))


if __name__ == "__main__":
    main()
