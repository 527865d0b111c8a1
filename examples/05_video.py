"""Prompt to quantized video, on the packaged video model: what is new is time.

    python examples/05_video.py --prompt "red apple moving left"

Makes the same video in floats and in 8 bits, from the same noise, and writes each as MP4 and both as a sheet,
a row each and a column a frame. Says how much of the motion quantization changed.
"""

import argparse
from pathlib import Path

from viditq_jax import load_pipeline, load_recipe, quantize_pipeline
from viditq_jax.evaluate.flicker import flicker
from viditq_jax.evaluate.motion_error import motion_error
from viditq_jax.evaluate.psnr import psnr
from viditq_jax.video import contact_sheet, write_mp4


def main(arguments: list[str] | None = None) -> None:
    """Write the videos, and print their figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompt", default="red apple moving left")
    parser.add_argument("--recipe", default="w8a8")
    parser.add_argument("--model", default="default-video", help="or an artifact of a video model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/video"))
    options = parser.parse_args(arguments)

    pipeline = load_pipeline(options.model)
    small = quantize_pipeline(pipeline, load_recipe(options.recipe))
    pipelines = {"float": pipeline, options.recipe: small}
    videos = {name: each([options.prompt], seed=options.seed)[0] for name, each in pipelines.items()}

    options.out.mkdir(parents=True, exist_ok=True)
    for name, video in videos.items():
        write_mp4(video, options.out / f"{name}.mp4", fps=pipeline.fps)
        print(f"{options.out / name}.mp4: denoiser of {pipelines[name].denoiser.nbytes() / 1e6:.1f} MB")
    contact_sheet(list(videos.values()), list(videos)).save(options.out / "contact.png")
    expected, video = videos.values()
    print(
        f"{options.out / 'contact.png'}: {len(video)} frames, {psnr(video, expected):.1f} dB, "
        f"motion off by {motion_error(video, expected):.2f} pixels a frame, "
        f"flicker of {flicker(video, expected):.2f} levels"
    )


if __name__ == "__main__":
    main()
