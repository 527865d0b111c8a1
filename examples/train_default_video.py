"""Make the packaged default video model again, in one command: the image model, taught to move.

    python examples/train_default_video.py --out runs/default-video             # 90 minutes on two CPU cores
    python examples/train_default_video.py --out runs/default-video --batch 64  # a GPU

Every stage keeps its result under --out, and training goes on from its last checkpoint: after an
interruption, run the same command again. Needs the extra "train" and, to fetch the icons, npm; or --data, a
folder that has them.
"""

import argparse
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

sys.path.insert(0, str(Path(__file__).parent))

from default_model import script
from default_model.loop import Plan, filled, values
from default_model.text import Tokenizer
from default_video import clips, denoiser, package

from converters import convert

ASSETS = Path(__file__).parents[1] / "viditq_jax/assets"


def options() -> argparse.Namespace:
    parser = script.parser(__doc__, "runs/default-video")
    parser.add_argument("--steps", type=int, default=1000, help="updates of the denoiser")
    parser.add_argument("--batch", type=int, default=6, help="clips in a step")
    parser.add_argument("--rate", type=float, default=1.2e-3, help="peak learning rate")
    parser.add_argument("--variants", type=int, default=8, help="films of each subject in each motion")
    parser.add_argument(
        "--more", type=int, default=1, help="videos of each motion that are measured besides the prompts"
    )
    script.denoiser_options(parser)
    return parser.parse_args()


def main() -> None:
    opts = options()
    icons, out = clips.subjects(script.begin(opts)), opts.out
    out = opts.out
    words = [icon.words for icon in icons]

    pictures = {name: load() for name, load in convert(ASSETS / "default", dtype=jnp.float32).nets.items()}
    decoder = pictures["decoder"]
    text = denoiser.Text(pictures["text_encoder"], Tokenizer(ASSETS / "default/tokenizer"))
    encode = jax.jit(lambda net, pixels: net.call("encode", pixels)[0])
    films = clips.make(
        icons, lambda pixels: encode(decoder, pixels), out / "films/film", variants=opts.variants
    )

    prompts = (ASSETS / "prompts/default-video.txt").read_text().splitlines()
    plan = Plan("denoiser", 0.0, opts.batch, opts.rate, steps=opts.steps)
    net = denoiser.start(pictures["denoiser"])
    dtype = jnp.bfloat16 if opts.bf16 else jnp.float32
    if opts.early:
        net = denoiser.latest(net, out / "denoiser")
    else:
        arrays = script.keep(
            out / "denoiser.npz",
            lambda: values(
                denoiser.fit(
                    net, films, words, text, decoder, prompts[:8], plan, out / "denoiser", dtype=dtype
                )
            ),
        )
        net = filled(net, arrays)
    package.write(
        script.package_folder(opts), net, decoder, text, words, prompts, out,
        {
            "machine": opts.machine, "batch": opts.batch, "rate": opts.rate, "variants": opts.variants,
            "note": f" {opts.note}" if opts.note else "",
        },
        more=opts.more,
    )  # fmt: skip


if __name__ == "__main__":
    main()
