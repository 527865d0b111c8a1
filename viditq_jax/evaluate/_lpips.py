"""The network of LPIPS: features of AlexNet, and what each of their channels counts (arXiv 1801.03924).

From the state dict of `lpips.LPIPS(net="alex")`, version 0.1; read without torch, and without running any of
the file.
"""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from converters.sources import open_source
from converters.tensor import ConversionError
from viditq_jax.net import Net
from viditq_jax.nn.conv import Conv

# Of each convolution: channels in and out, size, stride, padding, and whether the larger of 3x3 goes in.
_LAYERS = ((3, 64, 11, 4, 2, False), (64, 192, 5, 1, 2, True), (192, 384, 3, 1, 1, True),
           (384, 256, 3, 1, 1, False), (256, 256, 3, 1, 1, False))  # fmt: skip
_NAMES = ("net.slice1.0", "net.slice2.3", "net.slice3.6", "net.slice4.8", "net.slice5.10")
SMALLEST = 31  # pixels a side, or the last maximum has nothing to look at


class Lpips(nnx.Module):
    """The distance of pairs of pictures, -1 to 1."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.net = nnx.List(
            [Conv(i, o, size, stride=s, padding=p, rngs=rngs) for i, o, size, s, p, _ in _LAYERS]
        )
        self.lin = nnx.List([nnx.Param(jnp.zeros(out, jnp.float32)) for _, out, *_ in _LAYERS])

    def layers(self, pixels: Float[Array, "b h w 3"]) -> list[Float[Array, "b i j c"]]:
        """What AlexNet sees after each convolution, every pixel of unit length over its channels."""
        shift, scale = jnp.array([-0.030, -0.088, -0.188]), jnp.array([0.458, 0.448, 0.450])
        x, seen = (pixels - shift) / scale, []
        for conv, (*_, pooled) in zip(self.net, _LAYERS, strict=True):
            x = nnx.relu(conv(nnx.max_pool(x, (3, 3), (2, 2)) if pooled else x))
            seen.append(x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-10))
        return seen

    def __call__(self, a: Float[Array, "b h w 3"], b: Float[Array, "b h w 3"]) -> Float[Array, " b"]:
        pairs = zip(self.lin, self.layers(a), self.layers(b), strict=True)
        parts = [(jnp.square(x - y) @ weight.get_value()).mean((1, 2)) for weight, x, y in pairs]
        return jnp.stack(parts).sum(0)


def read(file: Path) -> Net:
    """The network in a file, in float32. Raises ValueError that names what is missing or of another shape."""
    try:
        tensors = open_source(file).tensors
        return _filled({name: tensor.read() for name, tensor in tensors.items()}, file)
    except (OSError, ConversionError) as error:
        raise ValueError(
            f"{file} holds no weights of LPIPS ({error}); where the package lpips is, write them by "
            f"torch.save(lpips.LPIPS(net='alex').state_dict(), 'lpips.pth')."
        ) from error


def _filled(arrays: Mapping[str, np.ndarray], file: Path) -> Net:
    wanted: dict[str, tuple[int, ...]] = {}
    values: dict[str, str] = {}
    for i, (name, (before, after, size, *_)) in enumerate(zip(_NAMES, _LAYERS, strict=True)):
        wanted |= {f"{name}.weight": (after, before, size, size), f"{name}.bias": (after,)}
        wanted[f"lin{i}.model.1.weight"] = (1, after, 1, 1)
        values |= {f"net/{i}/kernel": f"{name}.weight", f"net/{i}/bias": f"{name}.bias"}
        values[f"lin/{i}"] = f"lin{i}.model.1.weight"
    faults = [
        f"{name} is {list(arrays[name].shape) if name in arrays else 'missing'}, expected {list(shape)}"
        for name, shape in wanted.items()
        if name not in arrays or arrays[name].shape != shape
    ]
    if faults:
        raise ValueError(f"{file} is not of LPIPS by AlexNet: {'; '.join(faults[:10])}.")

    def take(name: str, _: nnx.Variable) -> jax.Array:
        value = arrays[values[name]].astype(np.float32)
        if name.startswith("lin"):
            return jnp.asarray(value.reshape(-1))
        return jnp.asarray(value.transpose(2, 3, 1, 0) if value.ndim == 4 else value)

    return Net.of(nnx.eval_shape(lambda: Lpips(rngs=nnx.Rngs(0)))).map_variables(take)
