"""Running a Net with taps in its weight slots.

A tap computes what the weight computes and hands a summary of its input to the collection of the `observe`
call that set it. The collection lives as long as that call, and comes out as a value; so `observe` can be
jitted, and can be the body of a scan that carries the statistics.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from jaxtyping import Array, Float

from viditq_jax.net import Net
from viditq_jax.nn.linear import linear
from viditq_jax.quant.stats import LayerStats, Stats

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, eq=False)
class Observed:
    """A weight that reports its inputs to `collected` under `path`.

    Not a pytree: it must not enter a jit or a scan.
    """

    weight: Any
    path: str
    collected: Stats

    def linear(self, x: Float[Array, "... k"], bias: Float[Array, " n"] | None) -> Float[Array, "... n"]:
        """What the weight computes."""
        seen = self.collected.get(self.path) or LayerStats.empty(x.shape[-1])
        self.collected[self.path] = seen.update(x)
        return linear(self.weight, x, bias)


def observe(net: Net, run: Callable[[Net], T]) -> tuple[T, Stats]:
    """The result of `run(net)`, and the statistics of all inputs that its linear layers saw.

    run: calls the model it is given, once or several times, and not inside a jit, scan or other transform of
    its own: put the transform around observe.
    """
    collected: Stats = {}
    result = run(net.map_weights(lambda path, weight: Observed(weight, path, collected)))
    return result, dict(sorted(collected.items()))
