"""The sampling loop: one `lax.scan` over the rows of a sampler's table. It knows nothing of models.

`sample` is a plain function. Put it under one `jax.jit` together with what `denoise` closes over (weights,
prompts, guidance scale) as arguments: then only shapes, the sampler and the number of steps compile anew.

Randomness: sample j has its own key, fold_in(key(seed), j). Its initial noise comes from fold_in(its key, 0),
its noise of step i from fold_in(its key, i + 1). So a sample depends on (seed, j) alone, whatever the batch.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

SEEDS = 2**32  # that keys tell apart

# (x [b *shape c], t [b], i []) -> [b *shape c] or [b *shape 2c]
Denoise = Callable[[Array, Array, Array], Array]
# (x, t, i, carried) -> (out of the model, carried for the next step, seen in this one)
Look = Callable[[Array, Array, Array, Any], tuple[Array, Any, Any]]
Rows = Mapping[str, np.ndarray | Array]


@runtime_checkable
class Sampler(Protocol):
    """Three pure functions; a frozen dataclass, its fields are numbers, strings and booleans."""

    def table(self, steps: int) -> dict[str, np.ndarray]:
        """Coefficients of each step: float32 [steps], made in float64; "t" is the time given to the model."""

    def init(self, x: Array) -> Any:
        """The memory before the first step."""

    def step(
        self, x: Array, out: Array, row: Mapping[str, Array], memory: Any, keys: Array
    ) -> tuple[Array, Any]:
        """The next state and memory. x is float32, out is what the model gave; keys serve this step alone."""


def sample(
    denoise: Denoise, sampler: Sampler, noise: Float[Array, "b *shape"], keys: Array, *, steps: int
) -> Float[Array, "b *shape"]:
    """Samples made from `noise` in `steps` calls of `denoise`, in float32.

    denoise: (x, t, i) -> the model's prediction at time t[b] (the same for all), in step i; channels last,
    and as many as x or twice as many (a variance follows the prediction).
    keys: one a sample, from `sample_keys`; used by samplers that draw noise.
    Raises ValueError for fewer than one step, keys of another kind or number, and channels that do not fit.
    """
    x = noise.astype(jnp.float32)
    return advance(denoise, sampler, x, sampler.init(x), keys, rows(sampler, steps))[0]


def rows(sampler: Sampler, steps: int) -> dict[str, np.ndarray]:
    """What the loop runs over: the sampler's table, and "i", the index of the step."""
    return {"i": np.arange(steps, dtype=np.int32), **sampler.table(steps)}


def advance(
    denoise: Denoise,
    sampler: Sampler,
    x: Float[Array, "b *shape"],
    memory: Any,
    keys: Array,
    rows: Rows,
) -> tuple[Float[Array, "b *shape"], Any]:
    """State and memory after the given rows, which may be a slice: slices one by one equal all at once."""

    def look(x: Array, t: Array, i: Array, _: None) -> tuple[Array, None, None]:
        return denoise(x, t, i), None, None

    return follow(look, sampler, x, memory, keys, rows, None)[:2]


def follow(
    look: Look,
    sampler: Sampler,
    x: Float[Array, "b *shape"],
    memory: Any,
    keys: Array,
    rows: Rows,
    carried: Any,
) -> tuple[Float[Array, "b *shape"], Any, Any, Any]:
    """`advance`, with something to note on the way.

    Returns state, memory and `carried` after the rows, and what was seen in each, stacked.
    """
    if not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key) or keys.shape != x.shape[:1]:
        raise ValueError(
            f"keys are {keys.dtype}{list(keys.shape)}; need one typed key a sample, [{x.shape[0]}]: "
            "make them by sample_keys."
        )

    def body(carry: tuple[Array, Any, Any], row: Mapping[str, Array]) -> tuple[tuple[Array, Any, Any], Any]:
        x, memory, carried = carry
        out, carried, seen = look(x, jnp.full(x.shape[:1], row["t"]), row["i"], carried)
        x, memory = sampler.step(x, out, row, memory, step_keys(keys, row["i"]))
        return (x, memory, carried), seen

    columns = {name: jnp.asarray(column) for name, column in rows.items()}
    last, seen = jax.lax.scan(body, (x, memory, carried), columns)
    return *last, seen


def sample_keys(seed: int, start: int, count: int) -> Key[Array, " count"]:
    """The keys of samples start, start + 1, ... of a run with this seed.

    Raises ValueError for a seed that is no whole number below 2**32: another one would stand for it.
    """
    if not isinstance(seed, (int, np.integer)) or not 0 <= seed < SEEDS:
        raise ValueError(f"seed is {seed!r}; give a whole number from 0 to {SEEDS - 1}.")
    return _numbered(np.uint32(seed), np.arange(start, start + count))


def step_keys(keys: Key[Array, " b"], i: int | Int[Array, ""]) -> Key[Array, " b"]:
    """The keys of step i of each sample."""
    return _fold(keys, i + 1)


@partial(jax.jit, static_argnames="shape")  # one program, and not one for each of its operations
def draw_noise(keys: Key[Array, " b"], shape: tuple[int, ...]) -> Float[Array, "b *shape"]:
    """The initial noise of each sample, float32, from its own key."""
    return normal(_fold(keys, 0), shape)


def normal(keys: Key[Array, " b"], shape: tuple[int, ...]) -> Float[Array, "b *shape"]:
    """Standard normal numbers, float32, for each key; a key is used once."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)


def split_variance(
    x: Float[Array, "*b c"], out: Float[Array, "*b e"]
) -> tuple[Float[Array, "*b c"], Float[Array, "*b c"] | None]:
    """The prediction and, if the model gives one, the variance that follows it; both float32.

    Raises ValueError if `out` has neither the channels of x nor twice as many.
    """
    c = x.shape[-1]
    if out.shape[:-1] != x.shape[:-1] or out.shape[-1] not in (c, 2 * c):
        raise ValueError(
            f"denoise gave {list(out.shape)} for a state {list(x.shape)}; need the same shape, or {2 * c} "
            f"channels, the second half of which is the variance."
        )
    out = out.astype(jnp.float32)
    return (out, None) if out.shape[-1] == c else (out[..., :c], out[..., c:])


@jax.jit
def _numbered(seed: Array, numbers: Array) -> Array:
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), numbers)


def _fold(keys: Array, index: int | Int[Array, ""]) -> Array:
    return jax.vmap(jax.random.fold_in, (0, None))(keys, index)
