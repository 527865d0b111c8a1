"""Run folders as `viditq report` reads them, made of noise: for tests of the page, and of it in a browser."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

RNG = np.random.default_rng(0)
VARIANTS = ("float", "w8a8")
RECIPE = {
    "source": "the paper <b>",
    "rules": [{"match": ["blocks/*"], "weight": "int8/channel", "act": "int8/token", "why": "cheap & good"}],
}


def plain(folder: Path) -> Path:
    """A run of two variants with three pictures each."""
    records = {
        "model": "toy", "prompts": 3, "seed": 0, "steps": 2, "sampler": "ddim", "guidance": 3.0, "device": "",
        "date": "2026-01-01", "versions": {"jax": "1"}, "noise_floor": {"psnr_db": 50.0, "ssim": 0.99},
        "variants": {},
    }  # fmt: skip
    for variant in VARIANTS:
        (folder / variant).mkdir()
        lines = []
        for i, prompt in enumerate(("red apple", "<script>", "pizza")):
            Image.fromarray(RNG.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / variant / f"{i}.png")
            lines.append(json.dumps({"index": i, "condition": prompt, "file": f"{i}.png"}))
        (folder / variant / "manifest.jsonl").write_text("\n".join(lines) + "\n")
        quality = {"psnr_db": None, "ssim": None} if variant == "float" else {"psnr_db": 33.25, "ssim": 0.9}
        records["variants"][variant] = {
            "pictures": variant, "weight_bytes": 1000, "bfloat16_weight_bytes": 2000, "artifact_bytes": 3000,
            "seconds_per_image": 0.5, "recipe": None if variant == "float" else RECIPE, **quality,
        }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(records))
    return folder


def two_models(run: Path) -> Path:
    """The same variants on two models, with drift and the noise of layers; one is on one model alone."""
    records = json.loads((run / "metrics.json").read_text())
    plain = records["variants"]
    measured = {
        "latent_rel_l2": 0.125,
        "drift": {"t": [900.0, 400.0], "relative_l2": [0.01, 0.02], "cosine": [0.9999, 0.999]},
        "layers": {
            "blocks/0/mlp/fc1": {"sqnr_db": 33.0, "incoherence": 12.0},
            "blocks/1/mlp/fc1": {"sqnr_db": 27.0, "incoherence": 12.0},
            "x_embedder/proj": {"sqnr_db": None, "incoherence": 3.0},
        },
    }
    for record in plain.values():
        del record["artifact_bytes"]
    records["variants"] = {
        f"{model}/{label}": {
            **record,
            "model": model,
            "label": label,
            **(measured if record["recipe"] else {}),
        }
        for model in ("default", "stressed")
        for label, record in plain.items()
        if (model, label) != ("stressed", "float")
    }
    floor = {**records["noise_floor"], "drift": measured["drift"]}
    records["noise_floor"] = {"default": floor, "stressed": {**floor, "psnr_db": 45.0}}
    (run / "metrics.json").write_text(json.dumps(records))
    return run


def videos(run: Path) -> Path:
    """The run with videos of 3 frames in the place of its pictures."""
    records = json.loads((run / "metrics.json").read_text())
    for variant, record in records["variants"].items():
        temporal = ("frame_consistency", "flicker_levels", "warping_error_levels", "motion_error_px")
        record |= {"fps": 8.0, **dict.fromkeys(temporal, 0.125)}
        lines = (run / variant / "manifest.jsonl").read_text().splitlines()
        entries = [{**json.loads(line), "frames": 3} for line in lines]
        (run / variant / "manifest.jsonl").write_text("\n".join(map(json.dumps, entries)) + "\n")
        for entry in entries:
            strip = RNG.integers(0, 256, (8, 24, 3), np.uint8)
            Image.fromarray(strip).save(run / variant / entry["file"])
    (run / "metrics.json").write_text(json.dumps(records))
    return run


def search(folder: Path) -> Path:
    """What `viditq search` leaves of two layers, of which the plan of 6 bits gives one the more."""
    layers = {"blocks/0/mlp/fc1": 1e-3, "blocks/1/mlp/fc1": 1e-4}
    plans = (("uniform", 4.0, 30.5), ("milp", 6.0, 35.25), ("uniform", 8.0, None))
    record = {
        "budget": 6, "measure": "bits", "recipe": "w4a8", "prompts": 16, "search_prompts": 8, "device": "toy",
        "date": "2026-01-01", "bits": [4, 8], "bounds": [], "error": "latent",
        "plan_bits": {path: 8 if "/0/" in path else 4 for path in layers},
        "plans": [
            {"budget": bits, "plan": name, "average_bits": bits, "weight_bytes": 1e6 * bits, "psnr_db": psnr,
             "latent_rel_l2": 0.125}
            for name, bits, psnr in plans
        ],
        "sensitivities": [
            {"layers": [path], "bits": 4, "range": None, "values": {"latent": value}}
            for path, value in layers.items()
        ],
    }  # fmt: skip
    (folder / "search.json").write_text(json.dumps(record))
    return folder
