"""Bits for a budget: the integer program, and the paper's greedy rule beside it.

Metrics are decoupled as in the paper: inside a group of layers its own metric ranks the units (text
alignment for attention to the prompt, temporal consistency for attention across frames, visual quality for
the rest); between groups the error of the output decides. So a unit costs its share of its group's metric
times the error of the group's output:

    cost(u, b) = metric(u, b) * (sum of error over the group) / (sum of metric over the group)

with the sums at the fewest bits. The program minimises the sum of the costs, as errors of small, unlike
changes add up. Paper: arXiv 2406.02540, section 3.4, whose code was not released; the program belongs to
the same authors' MixDQ, arXiv 2405.17873.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from viditq_jax.quant.matching import matches
from viditq_jax.quant.recipe import Recipe, Rule
from viditq_jax.quant.search.table import Table
from viditq_jax.quant.search.variants import Bits

Unit = tuple[str, ...]
MEASURES = ("bits", "bytes", "seconds")
MOST_COLUMNS = 256  # choices of one unit


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is chosen from: for each unit (a row) and each of the bits (a column) its cost and its size.

    bits: rising; where they may change over the denoising ranges, a number for each range. limit: of the sum
    of the sizes. floors: the fewest bits of each unit.
    """

    units: list[Unit]
    bits: tuple[Bits, ...]
    cost: np.ndarray
    size: np.ndarray
    limit: float
    floors: list[int]
    groups: list[str]

    def allowed(self) -> np.ndarray:
        """Which choices the floors leave."""
        fewest = np.array([min(each_range(bits)) for bits in self.bits])
        return fewest[None, :] >= np.asarray(self.floors)[:, None]


def allocate(
    table: Table,
    *,
    budget: int | float,
    measure: str = "bits",
    method: str = "milp",
    metrics: Mapping[str, str] | None = None,
    error: str = "latent",
    floors: Mapping[str, int] | None = None,
    seconds: Mapping[tuple[str, int], float] | None = None,
    vary: bool = False,
    name: str = "",
) -> Recipe:
    """The recipe with the least summed sensitivity within the budget, with a reason for every layer.

    budget: in `measure`: average "bits" of the weights, "bytes" of all that the layers store, or "seconds" of
        their products, which `seconds` gives for (path, bits).
    method: "milp", the optimum, or "greedy", the paper's rule.
    metrics: the metric of each group of the table; `error` where not given, for one metric for all. error:
        the metric that splits the budget between groups.
    floors: patterns of layers, as recipes have them, and the fewest bits they may have.
    vary: bits may change from one denoising range of the table to the next. Average bits and seconds are then
        those of all steps, and bytes those of every width that a layer has: all of them stay in memory.
    Raises ValueError for ranges that the table does not tell apart, and for a budget that nothing meets, with
    the least that something does.
    """
    problem = _problem(table, budget, measure, metrics or {}, error, floors or {}, seconds, vary)
    solve = {"milp": optimum, "greedy": greedy}.get(method)
    if solve is None:
        raise ValueError(f"method {method!r} is not known; choose milp or greedy.")
    choice = solve(problem)
    bits = {
        path: problem.bits[int(b)] for unit, b in zip(problem.units, choice, strict=True) for path in unit
    }
    text = f"{budget:g} {'average weight bits' if measure == 'bits' else measure}"
    return plan(
        table,
        bits,
        name=name or f"{table.recipe.name}-{'varying' if vary else method}-{budget:g}",
        source=f"bits by {'integer program' if method == 'milp' else 'greedy rule'} for {text},"
        f" on {table.recipe.name}: {table.recipe.source}",
        why=_reasons(problem, choice),
    )


def optimum(problem: Problem) -> np.ndarray:
    """The column of each unit, by integer programming: the least sum of costs within the limit."""
    n, m = problem.cost.shape
    scale = float(problem.cost.max()) or 1.0  # sensitivities may be 1e-6, which solvers take for 0
    one_each = LinearConstraint(np.kron(np.eye(n), np.ones(m)), 1, 1)
    unit = problem.size.max()
    within = LinearConstraint(problem.size.reshape(1, -1) / unit, ub=problem.limit / unit * (1 + 1e-12))
    result = milp(
        problem.cost.reshape(-1) / scale,
        constraints=[one_each, within],
        integrality=np.ones(n * m),
        bounds=Bounds(0, problem.allowed().reshape(-1).astype(float)),
        options={"mip_rel_gap": 0},
    )
    if result.x is None:
        raise ValueError(f"the integer program was not solved: {result.message}")
    return result.x.reshape(n, m).argmax(1)


def greedy(problem: Problem) -> np.ndarray:
    """The paper's rule: each group has the share of the budget that its output error has; inside a group the
    most sensitive unit that still fits goes to the most bits first. What is left over goes to any unit so.
    """
    n = len(problem.units)
    choice = problem.allowed().argmax(1)
    rows = np.arange(n)
    left = problem.limit - problem.size[rows, choice].sum()
    names = sorted(set(problem.groups))
    members = {name: [i for i in range(n) if problem.groups[i] == name] for name in names}
    lowest = problem.cost[rows, choice]
    total = lowest.sum() or 1.0
    shares = {name: left * lowest[each].sum() / total for name, each in members.items()}
    names.sort(key=lambda name: -shares[name])  # what a group cannot use goes to the next one
    top = len(problem.bits) - 1
    spare = 0.0
    for some, share in [(members[name], shares[name]) for name in names] + [(range(n), 0.0)]:
        spare += share
        for i in sorted(some, key=lambda i: -lowest[i]):
            extra = problem.size[i, top] - problem.size[i, choice[i]]
            if choice[i] != top and extra <= spare * (1 + 1e-12):
                choice[i], spare = top, spare - extra
    return choice


def plan(
    table: Table,
    bits: Mapping[str, Bits],
    *,
    name: str,
    source: str = "",
    why: Callable[[str], str] = lambda path: "",
) -> Recipe:
    """The table's recipe with these bits, a rule a layer; what it leaves in floats stays so."""
    varies = any(len(set(each_range(each))) > 1 for each in bits.values())
    rules: list[Rule] = []
    left = list(table.layers)
    for rule in table.recipe.rules:
        if rule.weight is None or rule.weight.kind != "int":
            rules.append(rule)
            continue
        mine = [path for path in left if matches(rule.match, path)]
        left = [path for path in left if path not in mine]
        for path in mine:
            first, *others = (dataclasses.replace(rule.weight, bits=b) for b in each_range(bits[path]))
            weight_in = tuple((r, spec) for r, spec in enumerate(others, 1) if spec != first)
            rules.append(
                dataclasses.replace(
                    rule, match=(path,), weight=first, weight_in=weight_in, optional=False, why=why(path)
                )
            )
    ranges = table.bounds if varies else ()
    return dataclasses.replace(
        table.recipe, rules=tuple(rules), ranges=ranges, name=name, source=source, expect={}
    )


def each_range(bits: Bits) -> tuple[int, ...]:
    """Bits as a number for each range; one where they are the same at all times."""
    return (bits,) if isinstance(bits, int) else bits


def average_bits(table: Table, bits: Mapping[str, Bits]) -> float:
    """Of all numbers of the layers of the table, over all denoising steps."""
    total = sum(layer.numbers for layer in table.layers.values())
    return sum(layer.numbers * _mean(table, bits[path]) for path, layer in table.layers.items()) / total


def plan_bytes(table: Table, bits: Mapping[str, Bits]) -> int:
    """That the layers store: each width that a layer has at any time, as all of them stay in memory."""
    return sum(layer.bytes[b] for path, layer in table.layers.items() for b in set(each_range(bits[path])))


def bits_of(table: Table, recipe: Recipe) -> dict[str, Bits]:
    """The bits that a plan gives to the layers of the table; of one that varies a number for each range."""
    found: dict[str, Bits] = {}
    for rule in recipe.rules:
        if rule.weight and len(rule.match) == 1:
            other = {r: spec.bits for r, spec in rule.weight_in}
            each = tuple(other.get(r, rule.weight.bits) for r in range(len(recipe.ranges) + 1))
            found[rule.match[0]] = each if recipe.ranges else each[0]
    return {path: found[path] for path in table.layers}


def predicted(table: Table, bits: Mapping[str, Bits], metric: str = "latent") -> float:
    """The sum of the sensitivities of the units of a plan: what its samples should lose in this metric."""
    return sum(table.value(unit, bits[unit[0]], metric) for unit in table.units())


def _problem(
    table: Table,
    budget: int | float,
    measure: str,
    metrics: Mapping[str, str],
    error: str,
    floors: Mapping[str, int],
    seconds: Mapping[tuple[str, int], float] | None,
    vary: bool,
) -> Problem:
    units = table.units()
    if not units:
        raise ValueError("the table has no rows; measure the sensitivities first.")
    columns = _columns(table, vary)
    groups = [table.layers[unit[0]].group for unit in units]
    cost = _costs(table, columns, units, groups, metrics, error)
    size = _sizes(table, columns, units, measure, seconds)
    total = sum(layer.numbers for layer in table.layers.values())
    limit = float(budget * total if measure == "bits" else budget)
    if unmatched := [p for p in floors if not any(matches((p,), path) for path in table.layers)]:
        raise ValueError(f"the floor of {unmatched[0]!r} matches no layer of the table.")
    lowest = [
        max([table.bits[0], *(b for p, b in floors.items() if any(matches((p,), path) for path in unit))])
        for unit in units
    ]
    problem = Problem(units, columns, cost, size, limit, lowest, groups)
    allowed = problem.allowed()
    if not allowed.any(1).all():
        raise ValueError(f"a floor is above {table.bits[-1]} bits, the most that a layer may have.")
    least = np.where(allowed, size, np.inf).min(1).sum()
    if least > limit * (1 + 1e-12):
        shown = least / total if measure == "bits" else least
        raise ValueError(f"no plan has {budget:g} {measure}; the least that these bits allow is {shown:g}.")
    return problem


def _columns(table: Table, vary: bool) -> tuple[Bits, ...]:
    """What a unit may have: bits, or every way to give each range bits."""
    if not vary:
        return table.bits
    count = len(table.ranges)
    if count == 1:
        raise ValueError("bits cannot change over denoising ranges that the table does not tell apart.")
    if len(table.bits) ** count > MOST_COLUMNS:
        raise ValueError(
            f"{len(table.bits)} widths in {count} ranges are {len(table.bits) ** count} choices a layer; give"
            f" fewer ranges or widths, for at most {MOST_COLUMNS}."
        )
    return tuple(itertools.product(table.bits, repeat=count))


def _mean(table: Table, bits: Bits) -> float:
    """Bits over all denoising steps."""
    if isinstance(bits, int):
        return float(bits)
    return sum(share * b for share, b in zip(table.shares, bits, strict=True))


def _costs(
    table: Table,
    columns: tuple[Bits, ...],
    units: list[Unit],
    groups: list[str],
    metrics: Mapping[str, str],
    error: str,
) -> np.ndarray:
    fewest = table.bits[0]
    cost = np.zeros((len(units), len(columns)))
    for group in dict.fromkeys(groups):
        members = [i for i, name in enumerate(groups) if name == group]
        metric = metrics.get(group, error)
        values = np.array([[table.value(units[i], b, metric) for b in columns] for i in members])
        if metric != error:
            whole = sum(table.value(units[i], fewest, error) for i in members)
            values = values * (whole / (values[:, 0].sum() or 1.0))
        cost[members] = values
    return np.maximum(cost, 0)


def _sizes(
    table: Table,
    columns: tuple[Bits, ...],
    units: list[Unit],
    measure: str,
    seconds: Mapping[tuple[str, int], float] | None,
) -> np.ndarray:
    if measure not in MEASURES:
        raise ValueError(f"measure {measure!r} is not known; choose {', '.join(MEASURES)}.")
    if (measure == "seconds") != (seconds is not None):
        raise ValueError("seconds of each layer and width belong to the measure 'seconds', and only there.")

    def size(path: str, bits: Bits) -> float:
        layer, each = table.layers[path], each_range(bits)
        if measure == "bits":
            return layer.numbers * _mean(table, bits)
        if measure == "bytes":
            return float(sum(layer.bytes[b] for b in set(each)))
        shares = table.shares if len(each) > 1 else (1.0,)
        return sum(share * (seconds or {})[path, b] for share, b in zip(shares, each, strict=True))

    return np.array([[sum(size(path, b) for path in unit) for b in columns] for unit in units])


def _reasons(problem: Problem, choice: Any) -> Callable[[str], str]:
    """Of each layer, what its bits cost and what fewer would."""
    reasons: dict[str, str] = {}
    whole = problem.cost[:, 0].sum() or 1.0
    for unit, b, costs, floor in zip(problem.units, choice, problem.cost, problem.floors, strict=True):
        each = dict.fromkeys(each_range(problem.bits[b]))
        least = min(each_range(problem.bits[0]))
        bits = ", ".join(map(str, each_range(problem.bits[b]))) if len(each) > 1 else str(next(iter(each)))
        share = f"{costs[0] / whole:.1%} of what all layers lose at {least} bits"
        fewer = f"at {least} bits it would cost {share}" if b else f"costs {share}"
        forced = f"; {floor} bits at least" if floor > least else ""
        for path in unit:
            reasons[path] = f"{bits} bits{' by range' if len(each) > 1 else ''}: {fewer}{forced}"
    return lambda path: reasons[path]
