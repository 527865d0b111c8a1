"""Make the packaged default model again, in one command: auto-encoder, text encoder and denoiser of emoji.

    python examples/train_default.py --out runs/default                # about 90 minutes on two CPU cores
    python examples/train_default.py --out runs/default --batch 512    # a GPU; more --minutes help further

Every stage keeps its result under --out, and training goes on from its last checkpoint: after an
interruption, run the same command again. Needs the extra "train" and, to fetch the icons, npm; or --data, a
folder that has them.
"""

import argparse
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from default_model import autoencoder, data, denoiser, package, script, text
from default_model.loop import Plan, filled, values

PROMPTS = Path(__file__).parents[1] / "viditq_jax/assets/prompts/default.txt"


def options() -> argparse.Namespace:
    parser = script.parser(__doc__, "runs/default")
    parser.add_argument("--minutes", type=float, default=64.0, help="training of the denoiser")
    parser.add_argument("--batch", type=int, default=64, help="pictures in a step of the denoiser")
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate of the denoiser")
    parser.add_argument("--autoencoder-minutes", type=float, default=17.0)
    parser.add_argument("--autoencoder-batch", type=int, default=8)
    script.denoiser_options(parser)
    return parser.parse_args()


def main() -> None:
    opts = options()
    icons, out = script.begin(opts), opts.out
    out = opts.out
    pictures = data.render_all(icons, out)
    rows = data.make_rows(icons)
    if not (out / "tokenizer" / "spiece.model").exists():
        text.make_tokenizer(icons, out / "tokenizer")
    tokenizer = text.Tokenizer(out / "tokenizer")

    plan = Plan("autoencoder", opts.autoencoder_minutes, opts.autoencoder_batch, 2e-3, decay=0.0)
    arrays = script.keep(
        out / "autoencoder.npz", lambda: values(autoencoder.fit(icons, pictures, plan, out / "autoencoder"))
    )
    vae = filled(autoencoder.fresh(), arrays)
    kept = script.keep(out / "latents.npz", lambda: {"latents": autoencoder.encode(vae, pictures, rows)})
    raw = kept.pop("latents")
    vae, vae_config = autoencoder.scaled(vae, np.asarray(raw))
    latents = raw.astype(jnp.float32) * vae_config.scaling_factor
    del raw

    prompts = PROMPTS.read_text().splitlines()
    plan = Plan("denoiser", opts.minutes, opts.batch, opts.rate)
    ids = text.row_ids(tokenizer, icons, rows)
    dtype = jnp.bfloat16 if opts.bf16 else jnp.float32
    if opts.early:
        models = denoiser.latest(tokenizer.size, out / "denoiser")
    else:
        arrays = script.keep(
            out / "denoiser.npz",
            lambda: denoiser.fit(
                latents, ids, rows, tokenizer, vae, prompts, plan, out / "denoiser", dtype=dtype
            ).arrays(),
        )
        models = denoiser.Models.fresh(tokenizer.size).filled(arrays)
    held_out = len(np.unique(rows.icon[rows.held_out]))
    counts = {
        "icons": len(icons),
        "shown": len(np.unique(rows.icon)) - held_out,
        "favourites": len(data.FAVOURITES),
        "held_out": held_out,
        "colours": len(data.COLOURS),
    }
    batches = {"autoencoder": opts.autoencoder_batch, "denoiser": opts.batch}
    package.write(
        script.package_folder(opts), models, vae, vae_config, tokenizer, out, prompts, counts, batches,
        opts.machine, opts.note,
    )  # fmt: skip


if __name__ == "__main__":
    main()
