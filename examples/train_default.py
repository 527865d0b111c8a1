"""Make the packaged default model again, in one command: auto-encoder, text encoder and denoiser of emoji.

    python examples/train_default.py --out runs/default                # about 90 minutes on two CPU cores
    python examples/train_default.py --out runs/default --batch 512    # a GPU; more --minutes help further

Every stage keeps its result under --out, and training goes on from its last checkpoint: after an
interruption, run the same command again. Needs the extra "train" and, to fetch the icons, npm; or --data, a
folder that has them.
"""

import argparse
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from default_model import autoencoder, data, denoiser, package, text
from default_model.loop import Arrays, Plan, filled, values

PROMPTS = Path(__file__).parents[1] / "viditq_jax/assets/prompts/default.txt"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/default"), help="everything that is made on the way"
    )
    parser.add_argument(
        "--data", type=Path, help="folder with noto/ and fluent/; fetched with npm where not given"
    )
    parser.add_argument("--assets", type=Path, help="where the package goes; OUT/package where not given")
    parser.add_argument("--minutes", type=float, default=64.0, help="training of the denoiser")
    parser.add_argument("--batch", type=int, default=64, help="pictures in a step of the denoiser")
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate of the denoiser")
    parser.add_argument("--autoencoder-minutes", type=float, default=17.0)
    parser.add_argument("--autoencoder-batch", type=int, default=8)
    parser.add_argument(
        "--bf16", action="store_true", help="compute in bfloat16 (faster on a GPU, slower on a CPU)"
    )
    parser.add_argument(
        "--early", action="store_true", help="package the averages of the last checkpoint and stop"
    )
    parser.add_argument("--machine", default=f"{os.cpu_count()} CPU cores", help="for the card: where it ran")
    parser.add_argument("--note", default="", help="for the card: what else to know of this run")
    return parser.parse_args()


def keep(file: Path, make) -> Arrays:
    """What `make` gives, from the file if it is there."""
    if not file.exists():
        arrays = {name: np.asarray(value) for name, value in make().items()}
        with file.with_suffix(".part").open("wb") as stream:
            np.savez(stream, **arrays)
        os.replace(file.with_suffix(".part"), file)
    with np.load(file) as arrays:
        return {name: jnp.asarray(value) for name, value in arrays.items()}


def main() -> None:
    opts = options()
    out = opts.out
    out.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str((out / "compiled").absolute()))
    source = opts.data or out / "data"
    if opts.data is None:
        data.fetch(source)
    icons = data.read_icons(source)
    pictures = data.render_all(icons, out)
    rows = data.make_rows(icons)
    if not (out / "tokenizer" / "spiece.model").exists():
        text.make_tokenizer(icons, out / "tokenizer")
    tokenizer = text.Tokenizer(out / "tokenizer")

    plan = Plan("autoencoder", opts.autoencoder_minutes, opts.autoencoder_batch, 2e-3, decay=0.0)
    arrays = keep(
        out / "autoencoder.npz", lambda: values(autoencoder.fit(icons, pictures, plan, out / "autoencoder"))
    )
    vae = filled(autoencoder.fresh(), arrays)
    raw = keep(out / "latents.npz", lambda: {"latents": autoencoder.encode(vae, pictures, rows)})["latents"]
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
        arrays = keep(
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
        opts.assets or out / "package", models, vae, vae_config, tokenizer, out, prompts, counts, batches,
        opts.machine, opts.note,
    )  # fmt: skip


if __name__ == "__main__":
    main()
