"""Rotation: random signs, then a Hadamard transform, of the input channels; it spreads an outlier over all.

No statistics are needed, so it also helps against outliers that move from one denoising step to the next.
Recipe text: "hadamard", "hadamard:block=64,regular=true,seed=1".
Source: QuaRot, arXiv 2404.00456; ViDiT-Q, arXiv 2406.02540, the dynamic part of its channel balancing; blocks
and regular matrices as in ConvRot, arXiv 2512.03673.
Differs from the released code: signs come from a seed and are stored with the weight, where the release draws
them again on loading; the transform takes float32 and is fast, where it multiplied by a dense float64 matrix.
"""

import dataclasses
import zlib
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from pallas_kernels import hadamard as op
from viditq_jax.quant.stats import LayerStats

NEEDS_STATS = False


@dataclasses.dataclass(frozen=True)
class Options:
    """What a rule may say."""

    block: int = 0  # channels rotated together; 0 is all
    regular: bool = False  # matrices with equal row sums, of orders 4, 16, 64, 256, ...
    signs: bool = True  # a fair coin per channel before the transform
    seed: int = 0  # of the signs

    def __post_init__(self) -> None:
        if self.block < 0:
            raise ValueError(
                f"a block of {self.block} channels does not exist; give 0 for all or a number > 0."
            )
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed {self.seed} is outside 0 to {2**31 - 1}.")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rotation:
    """x -> (x * sign) @ H / sqrt(block), blockwise, for inputs and the rows of the weight alike."""

    signs: Any  # [ceil(k / 8)] uint8, a bit a channel, first channel highest; 1 is -1. None: all 1
    block: int = dataclasses.field(metadata={"static": True})
    regular: bool = dataclasses.field(metadata={"static": True})
    k: int = dataclasses.field(metadata={"static": True})
    elementwise: ClassVar[bool] = False

    def inputs(self, x: Float[Array, "*batch k"]) -> Float32[Array, "*batch k"]:
        """Rotated inputs. The transform is linear and keeps the length of each row."""
        x = x.astype(jnp.float32)
        if self.signs is not None:
            x = jnp.where(jnp.unpackbits(self.signs, count=self.k) == 1, -x, x)
        rows = x.reshape(-1, self.k)
        return op.hadamard(rows, block=self.block, regular=self.regular).reshape(x.shape)

    def weight(self, w: Float[Array, "n k"]) -> Float32[Array, "n k"]:
        """The weight for rotated inputs: the same, since inputs(x) @ inputs(w).T == x @ w.T."""
        return self.inputs(w)


def misfit(k: int, options: Options) -> str | None:
    """Why a layer of k inputs cannot be rotated so, with blocks that fit it, or None."""
    return op.misfit(k, options.block or k, options.regular)


def fit(weight: Float[Array, "n k"], stats: LayerStats | None, options: Options, *, path: str) -> Rotation:
    """The rotation of the layer at `path`; of the weight only its width counts, statistics are not used.

    Signs depend on the seed and the path alone, so layers differ and every machine draws the same.
    """
    k = weight.shape[1]
    if (reason := misfit(k, options)) is not None:
        raise ValueError(f"{path} cannot be rotated: {reason}.")
    signs = None
    if options.signs:
        key = jax.random.fold_in(jax.random.key(options.seed, impl="threefry2x32"), zlib.crc32(path.encode()))
        signs = jnp.packbits(jax.random.bernoulli(key, shape=(k,)))
    return Rotation(signs, options.block or k, options.regular, k)
