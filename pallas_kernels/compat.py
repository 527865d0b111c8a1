"""What differs between jax 0.10 and 0.11, and between a GPU and its interpreter: each kernel has one source.

No other file asks for a version. What is here:

- `Target`: how a kernel body runs. `COMPILED` is for a GPU; `interpreted()` is for tests on a CPU, where it
  also finds races: `races_found()` says whether the last kernel interpreted so had one. A kernel takes a
  target as an argument and calls `target.kernel`, `target.load` and `target.iota`, not those of `plgpu`,
  `target.tiled` for the layout of shared memory that TMA and wgmma share, `target.stored`, `target.block` and
  `target.columns` for an operand of wgmma whose rows are outputs, `target.cluster_barrier` and
  `target.copy_to_cluster` for what blocks of a cluster share, and asks `target.clips_stores`.

- `interpreted_tpu()`: what the argument `interpret` of a kernel for TPUs is in tests on a CPU.

What the interpreter does not show (jax 0.10.2): it runs every copy and every wgmma at once, so a wait that is
missing for one of them goes unseen; and its threads wait for ever where a cluster has more blocks than one.
"""

import dataclasses
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike

_LOAD_WANTS_INDEX = inspect.signature(plgpu.load).parameters["idx"].default is inspect.Parameter.empty  # 0.10
_INTERPRETER_IS_PUBLIC = hasattr(
    plgpu, "InterpretGPUParams"
)  # from 0.11; before, it knows no transposed operand

# Compute capability from which kernels without wgmma and TMA compile.
LEAST_CAPABILITY = (8, 0) if hasattr(plgpu, "mma") else (9, 0)


@dataclasses.dataclass(frozen=True)
class Target:
    """How a kernel body runs: compiled for a GPU if `interpret` is None, else interpreted as it says."""

    interpret: Any = None

    def kernel(
        self,
        body: Callable[..., None],
        *,
        approx_math: bool = False,
        auto_barriers: bool = True,
        **options: Any,
    ) -> Callable[..., Any]:
        """`plgpu.kernel` with warpgroup semantics: register layouts that a body leaves open are inferred.

        auto_barriers: a barrier of the warpgroup around every store; a body that reads nothing that it
        writes needs none.
        """
        if self.interpret is not None:
            options["interpret"] = self.interpret
        params = plgpu.CompilerParams(
            approx_math=approx_math,
            unsafe_no_auto_barriers=not auto_barriers,
            lowering_semantics=plgpu.LoweringSemantics.Warpgroup,
        )
        return plgpu.kernel(body, compiler_params=params, **options)

    def load(self, ref: Any, index: Any = (), *, layout: Any, optimized: bool = True) -> jax.Array:
        """`ref[index]` in registers of a layout. optimized: refuse what would not be a fast load."""
        if self.interpret is not None:
            return ref[index]
        ref = ref.at[index] if index != () else ref
        return plgpu.load(ref, *(((),) if _LOAD_WANTS_INDEX else ()), layout=layout, optimized=optimized)

    def iota(self, shape: tuple[int, ...], axis: int, *, layout: Any) -> jax.Array:
        """The int32 index along an axis, in registers of a layout."""
        if self.interpret is not None:
            return lax.broadcasted_iota(jnp.int32, shape, axis)
        return plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=layout)

    def tiled(self, columns: int, dtype: DTypeLike) -> tuple[Any, ...]:
        """The transforms of shared memory whose rows have `columns` elements: tiles of 8 rows, swizzled.

        columns times the bits of dtype must be a multiple of 128; at 1024 it has no bank conflicts.
        """
        if self.interpret is not None:  # values are the same
            return ()
        bits = jnp.finfo(dtype).bits if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).bits
        swizzle = plgpu.find_swizzle(columns * bits)
        return plgpu.TilingTransform((8, swizzle * 8 // bits)), plgpu.SwizzleTransform(swizzle)

    def cluster_barrier(self, axis: str, size: int, **options: Any) -> Any:
        """A barrier at which every block of a cluster arrives in all of them; options as of `plgpu.Barrier`.

        num_arrivals are those of one block.
        """
        if size == 1:
            return plgpu.Barrier(**options)
        return plgpu.ClusterBarrier(collective_axes=(axis,), **options)

    def copy_to_cluster(self, source: Any, slot: Any, barrier: Any, axis: str, size: int) -> None:
        """`plgpu.copy_gmem_to_smem` of what all blocks of a cluster want: each loads a part for all."""
        axes = None if size == 1 else axis
        plgpu.copy_gmem_to_smem(source, slot, barrier, collective_axes=axes)

    @property
    def clips_stores(self) -> bool:
        """Whether a copy that ends outside of an array writes what is inside, as TMA does.

        The interpreter then writes nothing: give it a larger array, and cut it.
        """
        return self.interpret is None

    @property
    def _swaps(self) -> bool:
        return self.interpret is not None and not _INTERPRETER_IS_PUBLIC

    def stored(self, w: jax.Array) -> jax.Array:
        """The [n, k] operand of a kernel as the kernel is given it; `block` says the order of its axes."""
        return w.T if self._swaps else w

    def block(self, n: Any, k: Any) -> tuple[Any, Any]:
        """The shape, or an index, of a block of such an operand: n rows of outputs, k columns of inputs."""
        return (k, n) if self._swaps else (n, k)

    def columns(self, block: Any) -> Any:
        """A reference to such a block as the [k, n] right-hand side of wgmma."""
        return block if self._swaps else block.transpose((1, 0))


COMPILED = Target()


def interpreted(*, detect_races: bool = False, clips: bool = False) -> Target:
    """A target that runs a kernel body on the CPU, block after block, its warpgroups as threads.

    clips: copies may be from outside of an array, as TMA allows; what is not there is not a number, or for
    integers the largest. Otherwise they are errors.
    A body that raises leaves the other threads waiting for ever: give tests a limit of time.
    """
    if _INTERPRETER_IS_PUBLIC:
        params = plgpu.InterpretGPUParams  # type: ignore[attr-defined]
    else:
        params = importlib.import_module("jax._src.pallas.mosaic_gpu.interpret.params").InterpretGPUParams
    outside = "uninitialized" if clips else "raise"
    return Target(params(detect_races=detect_races, out_of_bounds_reads=outside))


def interpreted_tpu(*, detect_races: bool = False) -> Any:
    """What runs a kernel for TPUs on the CPU, in vector memory that begins as NaN."""
    return pltpu.InterpretParams(detect_races=detect_races, uninitialized_memory="nan")


def races_found_tpu() -> bool:
    """As `races_found`, of the last kernel interpreted for a TPU."""
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call

    races = interpret_pallas_call.races
    assert races is not None, "no kernel was interpreted"
    return races.races_found


def races_found() -> bool:
    """Whether the last kernel interpreted with detect_races had two accesses in no order, one a write."""
    from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks

    return gpu_callbacks.get_races().races_found
