"""An exported program runs without the model: what is new is that nothing of it is built or traced.

    viditq export --recipe w8a8 --batch 2 --out runs/program
    python examples/06_run_exported.py --program runs/program --prompt "red apple" "pizza"

Draws the prompts side by side, and says what the folder holds. Without a program there it exports one of the
packaged model first.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from viditq_jax.export import export_pipeline, load_exported


def main(arguments: list[str] | None = None) -> None:
    """Sample, and write the pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--program", type=Path, default=Path("runs/program"))
    parser.add_argument("--prompt", nargs="+", default=["red apple", "pizza"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/exported.png"))
    options = parser.parse_args(arguments)

    if not options.program.exists():
        from viditq_jax import load_pipeline, load_recipe, quantize_pipeline

        small = quantize_pipeline(load_pipeline(), load_recipe("w8a8-dynamic"))
        export_pipeline(small, options.program, batch=len(options.prompt))

    program = load_exported(options.program)
    pictures = program(options.prompt, seed=options.seed)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(list(pictures), axis=1)).save(options.out)
    facts = program.facts
    print(
        f"{options.out}: {len(pictures)} pictures in {facts['steps']} steps, recipe {facts['recipe']}; "
        f"the program is for {', '.join(facts['platforms'])}"
    )
    for file in sorted(path for path in options.program.rglob("*") if path.is_file()):
        print(f"  {file.relative_to(options.program)}: {file.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
