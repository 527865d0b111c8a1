"""BRECQ: the rounding of all layers of a block is trained together, on the output of the block.

Block after block, in order: the inputs are those of the model quantized and tuned so far, the wanted outputs
those of the float model on its own inputs, so that a block also makes up for the blocks before it. Minimised
by Adam, on random rows of what was recorded, is

    mean (output - wanted)^2 / error  +  regularization * mean of 1 - |2h - 1|^beta

with AdaRound's h of each number (`quant.soft`). Then every h becomes 0 or 1, and the block runs on integer
codes; if its error on all rows is not lower than before, the block stays as it was.
Sources: BRECQ, arXiv 2102.05426; Q-Diffusion, arXiv 2302.04304, which tunes diffusion models so.
Differs from the papers: both terms are relative, so that one regularization fits all blocks. `error` is what
quantization of this block alone costs. Input scales are trained together with the rounding, not afterwards.
The released code of ViDiT-Q tunes layer by layer, and there the rounding has no effect.

Layers that a call of the block does not reach, such as those that make the prompt's keys and values once a
prompt, keep their codes; so do layers outside of `model.blocks`.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from viditq_jax.net import Net
from viditq_jax.quant.observe import observe
from viditq_jax.quant.qweight import QWeight, quantized_part
from viditq_jax.quant.ranges import per_range
from viditq_jax.quant.rounding.adaround import BETA_UNTIL, undecided
from viditq_jax.quant.soft import Learned, SoftRounded, soft_rounded

_TINY = np.float32(1e-30)


@dataclasses.dataclass(frozen=True)
class Options:
    """iterations, batch, rate: of Adam; batch counts samples of one call of the denoiser.

    regularization: weight of the term that decides. warmup: the part of the iterations that goes without it.
    act_rate: Adam's rate for the logarithm of static input scales; 0 leaves them.
    times: how many steps of each trajectory are recorded. seed: of the choice of samples.
    """

    iterations: int = 300
    batch: int = 16
    rate: float = 0.1
    regularization: float = 30.0
    warmup: float = 0.2
    act_rate: float = 0.0
    times: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("iterations", "batch", "times"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; choose at least 1.")
        if not 0 < self.rate < math.inf or not 0 < self.regularization < math.inf:
            raise ValueError(
                f"rate={self.rate} and regularization={self.regularization}; both must be finite and above 0."
            )
        if not 0 <= self.warmup < BETA_UNTIL:
            raise ValueError(f"warmup={self.warmup}; choose a part from 0 to below {BETA_UNTIL}.")
        if not 0 <= self.act_rate < math.inf:
            raise ValueError(f"act_rate={self.act_rate}; choose 0, for none, or a number above.")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}; choose 0 or more.")


def tune(
    net: Net,
    target: Net,
    run: Callable[[Net, Any], Any],
    batches: Sequence[Any],
    options: Options = Options(),
    *,
    advance: Callable[[int], None] | None = None,
) -> Net:
    """The quantized net with codes, and static input scales if asked, that follow the float blocks better.

    net: quantized, by any rounding of integers; its layout stays. Its model calls each of `blocks` once, in
        order, with positional arguments: first the output of the block before, then what no block changes.
    target: the float net whose weights were quantized, that is, after balances were folded (`quant.fold`).
    run: calls a net on a batch, a pytree of arrays; traced. Every array that a block is given has the samples
        as its leading axis.
    advance: called with 1 after each block.
    Raises ValueError for layers that cannot be tuned, and blocks that are not called so.
    """
    check(net)
    x, others = _recorded(run, net, batches)
    wanted, others_wanted = _recorded(run, target, batches)
    samples = _samples(len(x), options)
    tuned: dict[str, Any] = {}
    for i, (block, model) in enumerate(zip(_blocks(net), _blocks(target), strict=True)):
        wanted = _outputs(model, wanted, others_wanted[0], options.batch)
        before = _outputs(block, x, others[0], options.batch)
        if paths := _tunable(block, x, others[0]):
            alone = _error(before, _outputs(model, x, others[0], options.batch))
            trained = _trained(
                block, model, x, others[0], wanted, alone, samples, paths=paths, options=options
            )
            after = _outputs(trained, x, others[0], options.batch)
            if _error(after, wanted) < _error(before, wanted):
                before, weights = after, trained.weights()
                tuned |= {f"blocks/{i}/{path}": weights[path] for path in paths}
        x = before
        del others[0], others_wanted[0]  # keys and values of all blocks would be gigabytes at full size
        if advance:
            advance(1)
    return net.map_weights(lambda path, weight: tuned.get(path, weight))


def check(net: Net) -> None:
    """Raise ValueError for a net whose layers cannot be tuned; shapes are enough."""
    weights = net.weights()
    inside = {path: weight for path, weight in weights.items() if path.startswith("blocks/")}
    if not inside:
        raise ValueError("brecq tunes the layers of `blocks`, and this model has none; leave the tuning out.")
    faults = [f"{path}: changes over the denoising ranges" for path in inside if per_range(inside[path])]
    for path, weight in inside.items():
        part = quantized_part(weight)
        if part is not None and part.weight.spec.kind != "int":
            faults.append(f"{path}: {part.weight.spec} is no integer, which goes up or down")
    if faults:
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise ValueError(
            f"brecq cannot tune these layers: {'; '.join(faults[:5])}{more}. Give them integers without"
            f" ranges, or leave the tuning out."
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Arguments:
    """What a block is given beside x; what is no array, such as the height of a grid, is static."""

    arrays: list[Any]  # each [samples, ...]
    fixed: tuple[Any, ...] = dataclasses.field(metadata={"static": True})  # None where there is an array
    structure: Any = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, arguments: tuple[Any, ...]) -> "_Arguments":
        leaves, structure = jax.tree.flatten(arguments)
        arrays = [leaf for leaf in leaves if isinstance(leaf, jax.Array)]
        fixed = tuple(None if isinstance(leaf, jax.Array) else leaf for leaf in leaves)
        return cls(arrays, fixed, structure)

    def restored(self) -> tuple[Any, ...]:
        """The arguments as the block takes them."""
        arrays = iter(self.arrays)
        leaves = [next(arrays) if leaf is None else leaf for leaf in self.fixed]
        return tuple(jax.tree.unflatten(self.structure, leaves))


@dataclasses.dataclass(frozen=True, eq=False)
class _Recorder(Net):
    """A Net whose blocks note what they are given, and pass x on as it is: no block is computed."""

    seen: list[tuple[Array, _Arguments]]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        def note(x: Array, *others: Any) -> Array:
            self.seen.append((x, _Arguments.of(others)))
            return x

        model = nnx.merge(self.graphdef, self.params)
        model.blocks = (note,) * len(model.blocks)
        return model(*args, **kwargs)


def _recorded(
    run: Callable[[Net, Any], Any], net: Net, batches: Sequence[Any]
) -> tuple[Float[Array, "s ..."], list[_Arguments]]:
    """The input of the first block, and the other arguments of each, of all batches; x in float32."""
    if not batches:
        raise ValueError("brecq was given no calls to tune on; give at least one batch.")

    @jax.jit
    def record(net: Net, batch: Any) -> tuple[Array, list[_Arguments]]:
        recorder = _Recorder(net.params, net.graphdef, [])
        run(recorder, batch)
        depth = len(_blocks(net))
        if len(recorder.seen) != depth:
            raise ValueError(
                f"run called {len(recorder.seen)} blocks, and the model has {depth}; call the net once."
            )
        x = recorder.seen[0][0]
        others = [arguments for _, arguments in recorder.seen]
        if odd := [array.shape for array in jax.tree.leaves(others) if array.shape[:1] != x.shape[:1]]:
            raise ValueError(
                f"a block was given {odd[0]} beside {len(x)} samples; all that it is given must have the"
                f" {len(x)} samples in front."
            )
        return _float32(x), others

    calls = [record(net, batch) for batch in batches]
    return jax.jit(lambda *calls: jax.tree.map(lambda *parts: jnp.concatenate(parts), *calls))(*calls)


def _float32(x: Array) -> Array:
    return x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _blocks(net: Net) -> list[Net]:
    """The blocks, each a Net, with unquantized parameters in float32: in bfloat16 small gradients vanish."""
    return [Net.of(block).astype(jnp.float32) for block in nnx.merge(net.graphdef, net.params).blocks]


def _tunable(block: Net, x: Array, others: _Arguments) -> tuple[str, ...]:
    """The quantized layers that a call of the block reaches."""

    def call(block: Net) -> Any:
        given = jax.tree.map(_float32, others)
        return observe(block, lambda tapped: tapped(x, *given.restored()))[1]

    weights = block.weights()
    return tuple(path for path in jax.eval_shape(call, block) if isinstance(weights[path], QWeight))


def _samples(count: int, options: Options) -> Int[np.ndarray, "iterations batch"]:
    """The samples of each iteration: no sample twice in one."""
    rng = np.random.default_rng(options.seed)
    batch = min(count, options.batch)
    return np.stack([rng.permutation(count)[:batch] for _ in range(options.iterations)])


def _outputs(block: Net, x: Float[Array, "s ..."], others: _Arguments, batch: int) -> Float[Array, "s ..."]:
    """The block on all samples, on real codes."""
    parts = [np.arange(start, min(start + batch, len(x))) for start in range(0, len(x), batch)]
    return jnp.concatenate([_output(block, x, others, part) for part in parts])


@jax.jit
def _output(
    block: Net, x: Float[Array, "s ..."], others: _Arguments, samples: Int[Array, " batch"]
) -> Float[Array, "batch ..."]:
    x, others = jax.tree.map(lambda array: _float32(array[samples]), (x, others))
    return block(x, *others.restored())


@jax.jit
def _error(outputs: Float[Array, "s ..."], wanted: Float[Array, "s ..."]) -> Float[Array, ""]:
    return jnp.square(outputs - wanted).mean()


@partial(jax.jit, static_argnames=("paths", "options"))
def _trained(
    block: Net,
    target: Net,
    x: Float[Array, "s ..."],
    others: _Arguments,
    wanted: Float[Array, "s ..."],
    alone: Float[Array, ""],
    samples: Int[Array, "iterations batch"],
    *,
    paths: tuple[str, ...],
    options: Options,
) -> Net:
    """The block with trained codes. alone: the error that the terms are relative to."""
    weights, floats = block.weights(), target.weights()
    start = {p: soft_rounded(weights[p], floats[p], train_scale=options.act_rate > 0) for p in paths}
    count = sum(soft.below.size for soft in start.values())
    adam = optax.scale_by_adam()

    def placed(learned: dict[str, Learned]) -> dict[str, SoftRounded]:
        return {path: dataclasses.replace(start[path], learned=learned[path]) for path in paths}

    def loss(learned: dict[str, Learned], progress: Array, batch: Array) -> Array:
        soft = placed(learned)
        softened = block.map_weights(lambda path, weight: soft.get(path, weight))
        outputs = _output(softened, x, others, batch)
        error = _error(outputs, wanted[batch]) / jnp.maximum(alone, _TINY)
        open_ = sum(undecided(each.up(), progress, options.warmup) for each in soft.values())
        return error + options.regularization / count * open_

    def step(state: tuple[Any, Any], row: tuple[Array, Array]) -> tuple[tuple[Any, Any], None]:
        learned, memory = state
        i, batch = row
        change, memory = adam.update(jax.grad(loss)(learned, i / options.iterations, batch), memory)
        learned = {
            path: Learned(
                old.v - options.rate * change[path].v,
                None if old.growth is None else old.growth - options.act_rate * change[path].growth,
            )
            for path, old in learned.items()
        }
        return (learned, memory), None

    learned = {path: soft.learned for path, soft in start.items()}
    rows = jnp.arange(options.iterations), samples
    (learned, _), _ = lax.scan(step, (learned, adam.init(learned)), rows)
    done = {path: soft.hard() for path, soft in placed(learned).items()}
    return block.map_weights(lambda path, weight: done.get(path, weight))
