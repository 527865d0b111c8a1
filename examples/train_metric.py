"""Make the packaged metric network again, in one command: pictures and captions of emoji as neighbours.

    python examples/train_metric.py --out runs/metric                  # 12 minutes on one CPU core

It learns from the same icons, captions, placements and backgrounds as the default model, and is held out the
same pictures. Training goes on from its last checkpoint: after an interruption, run the same command again.
Needs the extra "train" and, to fetch the icons, npm; or --data, a folder that has them.
"""

import argparse
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from default_metric import contrast, package
from default_model import data, script
from default_model.loop import Plan, filled
from default_model.text import Tokenizer

ASSETS = Path(__file__).parents[1] / "viditq_jax/assets"


def options() -> argparse.Namespace:
    parser = script.parser(__doc__, "runs/metric")
    parser.add_argument("--minutes", type=float, default=12.0, help="training")
    parser.add_argument("--batch", type=int, default=256, help="pictures in a step")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    return parser.parse_args()


def main() -> None:
    opts = options()
    icons, out = script.begin(opts), opts.out
    out = opts.out
    pictures = data.render_all(icons, out)
    rows = data.make_rows(icons)
    held_out = np.unique(rows.icon[rows.held_out])
    tokenizer = Tokenizer(ASSETS / "default/tokenizer")

    plan = Plan("metric", opts.minutes, opts.batch, opts.rate, average=0.98, save_every=90.0)
    net = contrast.fresh(tokenizer)
    arrays = script.keep(
        out / "network.npz",
        lambda: contrast.fit(net, icons, pictures, held_out, tokenizer, plan, out / "network"),
    )
    stored = filled(net, arrays).astype(jnp.bfloat16)
    package.write(
        script.package_folder(opts),
        stored,
        icons,
        pictures,
        held_out,
        tokenizer,
        (ASSETS / "prompts/default.txt").read_text().splitlines(),
        out / "network",
        {"machine": opts.machine, "batch": opts.batch, "rate": opts.rate},
    )


if __name__ == "__main__":
    main()
