"""The 2048 features of FID: InceptionV3 as TensorFlow had it in 2015, without its classifier.

From the file that pytorch-fid and torch-fidelity publish, or from their state dict; read without torch, and
without running any of the file. Differs from the InceptionV3 of torchvision: averages leave the padding out,
and the last block takes maxima. Source: arXiv 1512.00567; Heusel et al., arXiv 1706.08500.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32

from converters.sources import open_source
from converters.tensor import ConversionError

SIDE = 299  # pixels that it looks at
WIDTH = 2048
_EPS = 1e-3  # of batch normalization

Arrays = Mapping[str, Array | np.ndarray]  # "Mixed_5b.branch1x1" + ".kernel" [h w i o], ".bias" [o]
Conv = Callable[..., jax.Array]


def _convolved(
    arrays: Arrays, block: str, name: str, x: jax.Array, *, stride: int = 1, same: bool = True
) -> jax.Array:
    """relu(conv + bias). same: padded, so that a stride of 1 keeps the size."""
    kernel = jnp.asarray(arrays[f"{block}{name}.kernel"])
    pads = [((side - 1) // 2,) * 2 if same else (0, 0) for side in kernel.shape[:2]]
    y = jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=jax.lax.Precision.HIGHEST,
    )  # fmt: skip
    return nnx.relu(y + arrays[f"{block}{name}.bias"])


def _joined(*parts: jax.Array) -> jax.Array:
    return jnp.concatenate(parts, axis=-1)


def _average(x: jax.Array) -> jax.Array:
    return nnx.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def _maximum(x: jax.Array) -> jax.Array:
    return nnx.max_pool(x, (3, 3), (2, 2))


def _a(conv: Conv, x: jax.Array) -> jax.Array:
    wide = conv("branch5x5_2", conv("branch5x5_1", x))
    double = conv("branch3x3dbl_3", conv("branch3x3dbl_2", conv("branch3x3dbl_1", x)))
    return _joined(conv("branch1x1", x), wide, double, conv("branch_pool", _average(x)))


def _b(conv: Conv, x: jax.Array) -> jax.Array:
    double = conv("branch3x3dbl_2", conv("branch3x3dbl_1", x))
    double = conv("branch3x3dbl_3", double, stride=2, same=False)
    return _joined(conv("branch3x3", x, stride=2, same=False), double, _maximum(x))


def _c(conv: Conv, x: jax.Array) -> jax.Array:
    long, double = x, x
    for i in range(1, 4):
        long = conv(f"branch7x7_{i}", long)
    for i in range(1, 6):
        double = conv(f"branch7x7dbl_{i}", double)
    return _joined(conv("branch1x1", x), long, double, conv("branch_pool", _average(x)))


def _d(conv: Conv, x: jax.Array) -> jax.Array:
    short = conv("branch3x3_2", conv("branch3x3_1", x), stride=2, same=False)
    long = x
    for i in range(1, 4):
        long = conv(f"branch7x7x3_{i}", long)
    return _joined(short, conv("branch7x7x3_4", long, stride=2, same=False), _maximum(x))


def _e(pool: Callable[[jax.Array], jax.Array], conv: Conv, x: jax.Array) -> jax.Array:
    short = conv("branch3x3_1", x)
    double = conv("branch3x3dbl_2", conv("branch3x3dbl_1", x))
    return _joined(
        conv("branch1x1", x),
        *(conv(f"branch3x3_2{part}", short) for part in "ab"),
        *(conv(f"branch3x3dbl_3{part}", double) for part in "ab"),
        conv("branch_pool", pool(x)),
    )


_BLOCKS: dict[str, Callable[[Conv, jax.Array], jax.Array]] = {
    "Mixed_5b": _a, "Mixed_5c": _a, "Mixed_5d": _a, "Mixed_6a": _b, "Mixed_6b": _c, "Mixed_6c": _c,
    "Mixed_6d": _c, "Mixed_6e": _c, "Mixed_7a": _d, "Mixed_7b": partial(_e, _average),
    "Mixed_7c": partial(_e, lambda x: nnx.max_pool(x, (3, 3), (1, 1), "SAME")),
}  # fmt: skip


def features(arrays: Arrays, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b f"]:
    """The means of the last maps. pixels: -1 to 1, of the size that is looked at."""
    conv = partial(_convolved, arrays, "")
    x = conv("Conv2d_2a_3x3", conv("Conv2d_1a_3x3", pixels, stride=2, same=False), same=False)
    x = _maximum(conv("Conv2d_2b_3x3", x))
    x = _maximum(conv("Conv2d_4a_3x3", conv("Conv2d_3b_1x1", x), same=False))
    for name, block in _BLOCKS.items():
        x = block(partial(_convolved, arrays, f"{name}."), x)
    return x.mean((1, 2))


def resized(pixels: Float[Array, "b h w 3"]) -> Float[Array, "b 299 299 3"]:
    """As FID looks at pictures: bilinear, and also smaller ones without averaging, as pytorch-fid does."""
    shape = (len(pixels), SIDE, SIDE, 3)
    return jax.image.resize(pixels, shape, "bilinear", antialias=False)


def read(file: Path) -> dict[str, Float32[np.ndarray, "..."]]:
    """Kernels and biases, with batch normalization folded in.

    Raises ValueError that names what is missing or of another shape.
    """
    try:
        tensors = {name: tensor.read() for name, tensor in open_source(file).tensors.items()}
    except (OSError, ConversionError) as error:
        raise ValueError(
            f"{file} holds no weights of FID's InceptionV3 ({error}); give the .pth file that pytorch-fid "
            f"downloads where there is a network."
        ) from error
    arrays: dict[str, np.ndarray] = {}
    try:
        for key in [name.removesuffix(".conv.weight") for name in tensors if name.endswith(".conv.weight")]:
            weight, bias, mean, variance = (
                tensors[f"{key}.bn.{part}"].astype(np.float64)
                for part in ("weight", "bias", "running_mean", "running_var")
            )
            scale = weight / np.sqrt(variance + _EPS)
            kernel = tensors[f"{key}.conv.weight"].transpose(2, 3, 1, 0) * scale
            arrays[f"{key}.kernel"] = kernel.astype(np.float32)
            arrays[f"{key}.bias"] = (bias - mean * scale).astype(np.float32)
        jax.eval_shape(features, arrays, jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is not FID's InceptionV3: {' '.join(str(error).split())[:300]}.") from error
    return arrays
