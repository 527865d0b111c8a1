"""The engine of conversion: a table of names, run in either direction.

A `Rule` says under which names a parameter of ours stands in a foreign checkpoint, and how its values change
on the way. `convert` plans first, so that one error lists all that is missing, unexpected or of another
shape; then it reads one tensor at a time, so that the memory needed is that of the result and one tensor.
`export` runs the same table backwards.
"""

import dataclasses
import difflib
import fnmatch
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Shaped

from converters.tensor import ConversionError, Tensor
from viditq_jax.net import Net

_SHOWN = 60  # faults in one message; those that differ only in their numbers count as one
_PLACEHOLDERS = {"leaf": r"[^.]+", "name": r".+"}  # any other stands for a number


@dataclasses.dataclass(frozen=True)
class Transform:
    """How the values of a parameter change: `read` makes ours of the foreign ones, `write` is its inverse."""

    read: Callable[[Iterator[Any]], Any]
    write: Callable[[Any], Sequence[Any]]


@dataclasses.dataclass(frozen=True)
class Rule:
    """`target`, a name of ours, stands in the checkpoint as `sources`.

    Names are joined by dots. Placeholders bind in the target: {i} a number, {leaf} one part, {name} anything.
    """

    target: str
    sources: tuple[str, ...]
    transform: Transform

    def match(self, target: str) -> tuple[str, ...] | None:
        """The names in the checkpoint, or None if this rule is not for `target`."""
        pattern = re.escape(self.target)
        for name in re.findall(r"\\{(\w+)\\}", pattern):
            pattern = pattern.replace(rf"\{{{name}\}}", f"(?P<{name}>{_PLACEHOLDERS.get(name, r'[0-9]+')})")
        found = re.fullmatch(pattern, target)
        return tuple(source.format(**found.groupdict()) for source in self.sources) if found else None


@dataclasses.dataclass(frozen=True)
class Table:
    """All rules of a format. Where several are for one target, the first whose names are all there is taken.

    drop: patterns of names that are not read, because they are computed anew or belong to another model.
    computed: makes tensors that are not read either, but written, because the format is known by them.
    """

    rules: tuple[Rule, ...]
    drop: tuple[str, ...] = ()
    computed: Callable[[], Mapping[str, np.ndarray]] = dict


SAME = Transform(lambda parts: next(parts), lambda x: [x])
# A convolution, OIHW to HWIO.
CONV = Transform(lambda parts: next(parts).transpose(2, 3, 1, 0), lambda x: [x.transpose(3, 2, 0, 1)])
# A 1x1 convolution to a linear layer.
POINTWISE = Transform(lambda parts: next(parts)[:, :, 0, 0], lambda x: [x[:, :, None, None]])
# A parameter that the format has no place for: never read, and not exported.
LEFT_OUT = Transform(lambda parts: next(parts), lambda x: [])


def patch(side: int, *, frames: bool = False) -> Transform:
    """A strided convolution [d, c, p, p], or [d, c, 1, p, p] over frames, as a linear layer [d, c p p]."""
    one = (1,) if frames else ()
    return Transform(
        lambda parts: (conv := next(parts)).reshape(conv.shape[0], -1),
        lambda x: [x.reshape(x.shape[0], x.shape[1] // side**2, *one, side, side)],
    )


def fused(count: int) -> Transform:
    """`count` matrices or vectors, stacked along their outputs."""
    return Transform(
        lambda parts: np.concatenate(list(parts)),
        lambda x: [x[i * x.shape[0] // count : (i + 1) * x.shape[0] // count] for i in range(count)],
    )


def copies(count: int) -> Transform:
    """The same values under `count` names."""

    def read(parts: Iterator[Any]) -> Any:
        first = next(parts)
        if not all(np.array_equal(first, other) for other in parts):
            raise ConversionError(
                f"the {count} copies differ; a model with one of them cannot stand for all."
            )
        return first

    return Transform(read, lambda x: [x] * count)


def same(target: str, source: str | None = None) -> Rule:
    """A parameter that only has another name, or not even that."""
    return Rule(target, (source or target,), SAME)


def plan(net: Net, tensors: Mapping[str, Any], table: Table) -> dict[str, tuple[Rule, tuple[str, ...]]]:
    """For each parameter of `net`, the rule that makes it and the names that the rule reads.

    net: may be abstract. tensors: anything with `shape` and `dtype` by name.
    Raises ConversionError, which lists every fault: parameters that are missing, of another shape or not of
    floating point, and tensors that no rule reads.
    """
    chosen = {name: choose(name, tensors, table) for name, _ in net.variables()}
    used = {source for _, sources in chosen.values() for source in sources}
    drop = (*table.drop, *table.computed())
    dropped = {name for name in tensors if any(fnmatch.fnmatchcase(name, pattern) for pattern in drop)}
    spare = sorted(tensors.keys() - used - dropped)
    written, wrong = functools.cache(_written), []  # blocks repeat the same few shapes
    for name, variable in net.variables():
        rule, sources = chosen[name]
        for source, shape in zip(sources, written(rule.transform, variable.get_value().shape), strict=True):
            found = tensors.get(source)
            if found is not None and tuple(found.shape) != shape:
                wrong.append(f"{source} is {list(found.shape)}, expected {list(shape)}")
            elif found is not None and not jnp.issubdtype(found.dtype, jnp.floating):
                wrong.append(f"{source} is {found.dtype}, expected floating point")
    missing = sorted(used - tensors.keys())
    if missing or spare or wrong:
        raise ConversionError(_report(missing, spare, wrong))
    return chosen


def convert(net: Net, tensors: Mapping[str, Tensor], table: Table, dtype: Any) -> Net:
    """The parameters of a checkpoint in `dtype`, in the structure of the abstract `net`.

    Raises ConversionError with all faults before anything is read.
    """
    chosen = plan(net, tensors, table)

    def load(name: str, _: nnx.Variable) -> jax.Array:
        rule, sources = chosen[name]
        try:
            value = rule.transform.read(tensors[source].read() for source in sources)
        except ConversionError as error:
            raise ConversionError(f"{name}: {error}") from error
        # A copy, as the file may change; jnp.asarray would compile a program for each shape. Waiting frees
        # `value` before the next tensor is read.
        array = jax.device_put(value.astype(dtype, copy=False), may_alias=False)
        return jax.block_until_ready(array)

    return net.map_variables(load)


def export(net: Net, table: Table) -> dict[str, Shaped[np.ndarray, "..."]]:
    """The parameters of `net` under the names of a checkpoint, in their own types.

    Raises ConversionError for parameters that are not plain arrays: quantized weights have no name elsewhere.
    """
    arrays: dict[str, np.ndarray] = {}
    odd = [name for name, variable in net.variables() if not isinstance(variable.get_value(), jax.Array)]
    if odd:
        raise ConversionError(
            f"{len(odd)} parameters are not plain arrays, for instance {odd[0]}; export the float model."
        )
    for name, variable in net.variables():
        rule, sources = choose(name, {}, table)
        arrays.update(zip(sources, rule.transform.write(np.asarray(variable.get_value())), strict=True))
    return {**arrays, **table.computed()}


def choose(name: str, tensors: Mapping[str, Any], table: Table) -> tuple[Rule, tuple[str, ...]]:
    """The first rule for the target whose names are all there, or else the first."""
    dotted = name.replace("/", ".")
    matches = [(rule, sources) for rule in table.rules if (sources := rule.match(dotted)) is not None]
    if not matches:
        raise ConversionError(f"the format has no place for the parameter {name}; choose another format.")
    return next((match for match in matches if all(source in tensors for source in match[1])), matches[0])


def _written(transform: Transform, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The shapes of what becomes of a parameter in the checkpoint."""
    parts = jax.eval_shape(transform.write, jax.ShapeDtypeStruct(shape, jnp.float32))
    return [tuple(part.shape) for part in parts]


def _report(missing: list[str], spare: list[str], wrong: list[str]) -> str:
    """All faults in one message; those that differ only in numbers stand together."""
    faults: list[str] = []
    for kind, names, others in (
        ("missing", missing, spare),
        ("unexpected", spare, missing),
        ("wrong", wrong, []),
    ):
        for text, count in _grouped(names):
            more = f" ({count} of this kind)" if count > 1 else ""
            near = difflib.get_close_matches(text, others, n=2, cutoff=0.75) if len(faults) < _SHOWN else []
            faults.append(f"{kind}: {text}{more}" + (f", nearest: {', '.join(near)}" if near else ""))
    total = len(missing) + len(spare) + len(wrong)
    shown = faults[:_SHOWN] + ([f"and {len(faults) - _SHOWN} kinds more"] if len(faults) > _SHOWN else [])
    return (
        f"the checkpoint does not fit the model, {total} fault{'s' * (total != 1)}:\n  "
        + "\n  ".join(shown)
        + "\nCheck that file and config belong together, or name the model."
    )


def _grouped(names: list[str]) -> list[tuple[str, int]]:
    """The texts one by one, or the first and the number of those that differ only in their numbers."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"\d+", "*", name), []).append(name)
    few = [(name, 1) for group in groups.values() if len(group) <= 3 for name in group]
    return few + [(min(group, key=len), len(group)) for group in groups.values() if len(group) > 3]
