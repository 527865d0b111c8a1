"""A quantized weight whose output channels several devices share; `quant.sharing` makes them.

Inside `jax.shard_map` each device holds some rows of the weight, with their scales, zero points and sums,
computes these channels of the output, and gets the others from its neighbours. Inputs, and all between the
layers, are the same on every device. A channel of an integer product knows nothing of the others, so outputs
are those of one device, bit for bit. Float weights stay whole: their sums may come in another order where a
matrix has other sides.
"""

import dataclasses
from typing import Any

import jax
from jax import lax

from viditq_jax.nn.linear import NOTHING, After, linear

AXIS = "model"  # of the mesh


@dataclasses.dataclass(frozen=True)
class ColumnShard:
    """The output channels of a quantized weight that this device holds; outside `shard_map`, all of them."""

    part: Any  # a QWeight

    @property
    def shape(self) -> tuple[int, int]:
        """That of the part."""
        return self.part.shape

    def linear(self, x: Any, bias: jax.Array | None, after: After = NOTHING) -> jax.Array:
        """What the whole weight computes. Raises ValueError where no devices share it."""
        n = self.part.shape[0]
        try:
            first = lax.axis_index(AXIS) * n
        except NameError as error:
            raise ValueError(
                "devices share this weight, and only the sampling of a pipeline knows how; load the pipeline"
                " without a mesh for anything else."
            ) from error

        def own(array: Any) -> Any:
            return None if array is None else lax.dynamic_slice_in_dim(array, first, n, axis=-1)

        after = After(after.gelu, own(after.residual), own(after.gate))
        y = linear(self.part, x, own(bias), after)
        return lax.all_gather(y, AXIS, axis=y.ndim - 1, tiled=True)

    def inputs(self, x: Any) -> Any:
        """x as the weight prepares it."""
        return self.part.inputs(x)


# No name of its own in paths: arrays are called as they are in a Net that no devices share.
jax.tree_util.register_pytree_with_keys(
    ColumnShard,
    lambda shard: (((jax.tree_util.DictKey(""), shard.part),), None),
    lambda _, children: ColumnShard(*children),
)
