"""A model as a value.

NNX modules define models; `Net` values travel. A module is built once, split, and never touched again: `Net`
holds its arrays as a pytree and its structure as a static, hashable fact, so it goes through `jit`,
`eval_shape`, `device_put` and Orbax as it is. Everything that is done to a model is a function from `Net` to
`Net`.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


class Weight(nnx.Param):
    """The parameter slot of a linear layer: a float matrix [n, k], or an object that knows how to apply
    one.
    """


def path_name(path: tuple[Any, ...]) -> str:
    """The name of a parameter: its path joined with "/"; list items count from 0, as in
    "blocks/7/attn/qkv/weight".
    """
    return "/".join(str(part) for part in path)


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Net:
    """A model: `params`, the pytree of its variables, and `graphdef`, its structure (static)."""

    params: nnx.State
    graphdef: nnx.GraphDef = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, module: nnx.Module) -> "Net":
        """Split a module into a value. The module is not used again."""
        graphdef, params = nnx.split(module)
        return cls(params, graphdef)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward pass."""
        return nnx.merge(self.graphdef, self.params)(*args, **kwargs)

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Another method of the model than its forward pass, such as "decode"."""
        return getattr(nnx.merge(self.graphdef, self.params), method)(*args, **kwargs)

    def variables(self) -> Iterator[tuple[str, nnx.Variable]]:
        """All variables with their names, in a fixed order."""
        for path, variable in nnx.to_flat_state(self.params):
            yield path_name(path), variable

    def weights(self) -> dict[str, Any]:
        """What sits in each weight slot, by the path of its layer ("blocks/7/attn/qkv")."""
        return {
            name.removesuffix("/weight"): variable.get_value()
            for name, variable in self.variables()
            if isinstance(variable, Weight)
        }

    def map_weights(self, fn: Callable[[str, Any], Any]) -> "Net":
        """A copy in which `fn(path, weight)` stands in each weight slot; `path` is the path of the layer."""
        return self.map_variables(
            lambda name, variable: (
                fn(name.removesuffix("/weight"), variable.get_value())
                if isinstance(variable, Weight)
                else variable.get_value()
            )
        )

    def map_variables(self, fn: Callable[[str, nnx.Variable], Any]) -> "Net":
        """A copy in which each variable holds `fn(name, variable)`."""

        def replace(path: tuple[Any, ...], variable: nnx.Variable) -> nnx.Variable:
            name = path_name(tuple(getattr(key, "key", getattr(key, "idx", key)) for key in path))
            return variable.replace(fn(name, variable))

        params = jax.tree_util.tree_map_with_path(replace, self.params, is_leaf=_is_variable)
        return Net(params, self.graphdef)

    def astype(self, dtype: Any) -> "Net":
        """A copy whose unquantized floating-point variables have `dtype`; integers and weight objects
        stay.
        """

        def cast(_: str, variable: nnx.Variable) -> Any:
            value = variable.get_value()
            is_float = isinstance(value, (jax.Array, jax.ShapeDtypeStruct)) and jnp.issubdtype(
                value.dtype, jnp.floating
            )
            if not is_float:
                return value
            if isinstance(value, jax.ShapeDtypeStruct):
                return jax.ShapeDtypeStruct(value.shape, dtype)
            return value.astype(dtype)

        return self.map_variables(cast)

    @property
    def dtype(self) -> Any:
        """The type that the model computes in: that of its unquantized floating-point variables."""
        for _, variable in self.variables():
            value = variable.get_value()
            if hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jnp.floating):
                return value.dtype
        raise ValueError("this Net has no unquantized floating-point variable, so its dtype is unknown.")

    def nbytes(self) -> int:
        """Bytes that the arrays occupy; two 4-bit codes count as one byte."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self.params))


def abstract(build: Callable[..., nnx.Module], config: Any) -> Net:
    """The shapes of `build(config)` without computing or allocating any weight."""
    return Net.of(nnx.eval_shape(lambda: build(config, rngs=_Undrawn())))


class _Undrawn(nnx.Rngs):
    """Keys of which nothing is drawn."""

    def __init__(self) -> None:
        super().__init__(0)


def draw(initializer: Callable[..., jax.Array], shape: tuple[int, ...], rngs: nnx.Rngs) -> jax.Array:
    """Fresh weights in float32: initializer(key, shape, dtype); zeros for `abstract`, which asks for shapes.

    To trace an initializer takes longer than to load what replaces it.
    """
    if isinstance(rngs, _Undrawn):
        return jnp.zeros(shape, jnp.float32)
    return initializer(rngs.params(), shape, jnp.float32)


def initialize(build: Callable[..., nnx.Module], config: Any, *, seed: int = 0) -> Net:
    """`build(config)` with freshly drawn weights; the same seed gives the same weights."""
    return Net.of(build(config, rngs=nnx.Rngs(seed)))
