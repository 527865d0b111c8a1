"""Load the packaged model, quantize it to 8 bits, and make one picture with each: the shortest way through
the library.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from viditq_jax import load_pipeline, load_recipe, quantize_pipeline

PROMPT = "red apple"


def main(out: Path = Path("runs/quickstart.png")) -> None:
    """Write a picture with the float version on the left and the 8-bit version on the right."""
    pipeline = load_pipeline()
    small = quantize_pipeline(pipeline, load_recipe("w8a8"))
    pictures = [each([PROMPT], seed=0)[0] for each in (pipeline, small)]
    out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(pictures, axis=1)).save(out)
    sizes = [f"{each.denoiser.nbytes() / 1e6:.1f} MB" for each in (pipeline, small)]
    print(f"{out}: float on the left ({sizes[0]}), w8a8 on the right ({sizes[1]})")


if __name__ == "__main__":
    main()
