"""Running a Net with taps in its weight slots.

A tap computes what the weight computes and adds its input to the statistics of the `observe` call that set
it. They live as long as that call, and come out as a value; so `observe` can be jitted, and can be the body
of a scan that carries the statistics.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from jaxtyping import Array, Float

from viditq_jax.net import Net
from viditq_jax.nn.linear import NOTHING, After, Modulated, linear, plain
from viditq_jax.quant.stats import LayerStats, Stats

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, eq=False)
class Observed:
    """A weight that adds its inputs to `collected[path]`.

    Not a pytree: it must not enter a jit or a scan.
    """

    weight: Any
    path: str
    collected: Stats
    r: Any
    initial: Any

    def linear(
        self, x: Float[Array, "... k"] | Modulated, bias: Float[Array, " n"] | None, after: After = NOTHING
    ) -> Float[Array, "... n"]:
        """What the weight computes."""
        rows = plain(x)
        seen = self.collected.get(self.path) or LayerStats.empty(rows.shape[-1])
        self.collected[self.path] = seen.update(rows, self.r, self.initial)
        return linear(self.weight, x, bias, after)


def observe(
    net: Net, run: Callable[[Net], T], stats: Stats | None = None, *, r: Any = 0, initial: Any = False
) -> tuple[T, Stats]:
    """The result of `run(net)`, and `stats` with all inputs added that its linear layers saw.

    run: calls the model it is given, once or several times, and not inside a jit, scan or other transform of
        its own: put the transform around observe.
    stats: layers that are absent start empty, with one range and no Gram matrix. r, initial: of
        `LayerStats.update`.
    """
    collected = dict(stats or {})
    tapped = net.map_weights(lambda path, weight: Observed(weight, path, collected, r, initial))
    result = run(tapped)
    return result, dict(sorted(collected.items()))
