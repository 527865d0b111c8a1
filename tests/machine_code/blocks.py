"""A whole PixArt block as a program of shapes: what its layers cost around the core of attention.

Attention reads q, k and v from memory and writes its output there, whatever kernel it is; here they leave and
enter the program. So the block needs no cuDNN to compile, and a core of several passes, which both programs
would have alike, does not hide what differs.
"""

import dataclasses
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from flax import nnx

from pallas_kernels import dispatch
from tests.machine_code.targets import TARGETS
from viditq_jax import load_recipe
from viditq_jax.models import pixart
from viditq_jax.net import Net, abstract
from viditq_jax.nn import adaln_single
from viditq_jax.quant.apply import quantize

CONFIG = dataclasses.replace(pixart.CONFIGS["pixart-sigma-xl-2-512-ms"], depth=1)
BATCH, SIDE = 2, 32  # guidance doubles one picture; 1024 tokens
LAYERS = 6  # that meet the tokens: qkv and proj, q_linear and proj of the prompt, fc1 and fc2


@dataclasses.dataclass(frozen=True)
class Block:
    """A block in bfloat16, quantized by a packaged recipe.

    implementation: of every op; None leaves the choice to `dispatch`.
    moves: bytes through memory, "less" or "more" than the block in bfloat16, which itself promises nothing.
    """

    recipe: str
    implementation: str | None = None
    targets: tuple[str, ...] = tuple(TARGETS)
    moves: str = ""

    @property
    def name(self) -> str:
        """Unique among the blocks."""
        return self.recipe if self.implementation is None else f"{self.recipe}, {self.implementation}"

    def program(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """The function to compile, and the shapes of what it takes."""
        net = quantize(abstract(pixart.build, CONFIG).astype(jnp.bfloat16), load_recipe(self.recipe))
        heads = (CONFIG.heads, CONFIG.width // CONFIG.heads)
        tokens, modulation, prompt, attended = (
            jax.ShapeDtypeStruct((BATCH, *sizes), jnp.bfloat16)
            for sizes in (
                (SIDE**2, CONFIG.width),
                (6, CONFIG.width),
                (CONFIG.text_length, *heads),
                (SIDE**2, *heads),
            )
        )

        def run(*arguments: Any) -> Any:
            names = dispatch.implementations
            only = names if self.implementation is None else lambda op: [self.implementation]
            with mock.patch.object(dispatch, "implementations", only):
                return _block(*arguments)

        return run, (net, tokens, modulation, (prompt, prompt), [attended, attended])


BLOCKS = [
    Block("float"),
    Block("w8a8-dynamic", "xla", moves="more"),
    Block("w8a8", "xla", moves="more"),
    Block("w8a8-dynamic", targets=("sm_90",), moves="less"),
    Block("w8a8", targets=("sm_90",), moves="less"),
]


def _block(
    net: Net, x: jax.Array, modulation: jax.Array, kv: tuple[jax.Array, jax.Array], attended: list[jax.Array]
) -> tuple[jax.Array, list[jax.Array]]:
    """The output of the first block, and what its attention reads. attended: what attention gives."""
    reads: list[jax.Array] = []
    core = _core(kv, attended, reads)
    with mock.patch.object(pixart, "attention", core), mock.patch.object(adaln_single, "attention", core):
        y = nnx.merge(net.graphdef, net.params).blocks[0](x, modulation, kv, None, SIDE)
    return y, reads


def _core(kv: tuple[jax.Array, jax.Array], attended: list[jax.Array], reads: list[jax.Array]) -> Callable:
    """Stands for attention: notes its inputs, but for the prompt's, which are in memory already."""
    given = iter(attended)

    def attention(*inputs: jax.Array, **_: Any) -> jax.Array:
        fresh = [x for x in inputs if all(x is not of_prompt for of_prompt in kv)]
        reads.extend(fresh)
        return jax.lax.optimization_barrier((next(given), *fresh))[0]  # not before its inputs are there

    return attention
