"""quantize: from a Net and a Recipe to a Net with quantized weights.

The graphdef stays as it is, but for the attention modules that the recipe gives 8 bits.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from viditq_jax.net import Net
from viditq_jax.quant import low_rank
from viditq_jax.quant.attention import attentions, with_attention
from viditq_jax.quant.fold import fold, folded
from viditq_jax.quant.methods import find_method
from viditq_jax.quant.qweight import QWeight, quantized_part, quantized_weight
from viditq_jax.quant.ranges import ByRange, PerRange
from viditq_jax.quant.recipe import Recipe, RecipeError, Rule
from viditq_jax.quant.stats import LayerStats, Stats, abstract_stats


def quantize(net: Net, recipe: Recipe, stats: Stats | None = None) -> Net:
    """Replace every weight that the recipe names by its quantized form; leave the others as they are.

    Each weight is prepared and rounded once. Balances that the layer before can take over go into its weight
    and bias.
    net: real, or of shapes alone. Shapes give the shapes of the quantized Net, the target into which an
        artifact is restored; statistics are then not needed.
    stats: of layers whose rule needs them, from `calibrate` or `observe`, with a range for each of the
        recipe's.
    Raises RecipeError, with all that is wrong, if the recipe does not fit the net, statistics are missing, or
    weights are not finite (not seen under a trace).
    """
    weights = net.weights()
    rules = recipe.resolve(weights)
    net = with_attention(net, recipe.resolve_attention(attentions(net)))
    if done := [path for path, rule in rules.items() if rule.weight and quantized_part(weights[path])]:
        raise RecipeError(
            f"{len(done)} layers are quantized already ({done[0]}, ...); quantize the unquantized net."
        )
    if any(isinstance(weights[path], jax.ShapeDtypeStruct) for path in rules):
        return _shapes(net, _nearest(rules), recipe.range_count)
    known = [
        path for path, rule in rules.items() if rule.weight and not isinstance(weights[path], jax.core.Tracer)
    ]
    finite = jax.device_get({path: _finite(weights[path]) for path in known})
    if broken := [path for path in known if not finite[path]]:
        raise RecipeError(
            f"the weights of {', '.join(broken)} are not finite; check the checkpoint they are from."
        )
    _check_stats(recipe, rules, stats or {}, weights)
    return _convert(net, stats or {}, rules=rules, ranges=recipe.range_count)


def check_recipe(net: Net, recipe: Recipe) -> None:
    """Raise what `quantize` and the recipe's tuning would of a net of these shapes; nothing is computed."""
    small = quantize(jax.eval_shape(lambda net: net, net), recipe)
    if recipe.tuning:
        find_method("tuning", recipe.tuning).module.check(small)


def _check_stats(recipe: Recipe, rules: dict[str, Rule], stats: Stats, weights: dict[str, Any]) -> None:
    """Raise RecipeError for statistics that are missing or not those of the recipe."""
    wanted = [path for path, rule in rules.items() if rule.needs_stats]
    missing = [path for path in wanted if path not in stats]
    if missing:
        raise RecipeError(
            f"recipe {recipe.name}: {len(missing)} of its layers have no statistics: {_listed(missing)}."
            f" Calibrate on conditions that reach them."
        )
    faults = []
    for path in wanted:
        layer, found = stats[path], stats[path].low
        if layer.initial.shape[0] != weights[path].shape[1]:
            faults.append(f"{path}: {layer.initial.shape[0]} inputs instead of {weights[path].shape[1]}")
        elif found is not None and len(found) != recipe.range_count:
            faults.append(f"{path}: {len(found)} ranges instead of {recipe.range_count}")
        elif rules[path].needs_gram and stats[path].gram is None:
            faults.append(f"{path}: no Gram matrix, which {rules[path].rounding} and low_rank use")
        elif any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(layer)):
            continue  # numbers are not seen under a trace
        elif not (np.asarray(layer.count) > 0).all():
            faults.append(f"{path}: a range in which no input was seen; calibrate with more steps")
        elif not _finite(layer):
            faults.append(f"{path}: numbers that are not finite")
    if faults:
        raise RecipeError(
            f"recipe {recipe.name}: these statistics are not for it: {_listed(faults)}. Calibrate again with"
            f" this recipe."
        )


@jax.jit
def _finite(tree: Any) -> Bool[Array, ""]:
    """Whether all numbers of all arrays are."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def _listed(items: list[str]) -> str:
    return "; ".join(items[:5]) + (" ..." if len(items) > 5 else "")


def _nearest(rules: dict[str, Rule]) -> dict[str, Rule]:
    """The rules with a rounding whose result has the same layout, and that is quick to trace."""
    return {path: dataclasses.replace(rule, rounding="nearest") for path, rule in rules.items()}


def _convert(net: Net, stats: Stats, *, rules: dict[str, Rule], ranges: int) -> Net:
    done = folded(net, rules)
    net, stats = fold(net, rules, stats)

    def convert(path: str, weight: Any) -> Any:
        rule = rules.get(path)
        if rule is None or rule.weight is None:
            return weight
        return _layer(weight, stats.get(path), path=path, rule=rule, folded=path in done, ranges=ranges)

    return net.map_weights(convert)


def _shapes(net: Net, rules: dict[str, Rule], ranges: int) -> Net:
    """The shapes of what `_convert` gives for a net of shapes. Layers of one kind are traced once."""
    done = folded(net, rules)
    net, stats = jax.eval_shape(partial(fold, rules=rules), net, stats=abstract_stats(net, ranges))
    traced: dict[Any, Any] = {}

    def convert(path: str, weight: Any) -> Any:
        rule = rules.get(path)
        if rule is None or rule.weight is None:
            return weight
        leaves, structure = jax.tree.flatten((weight, stats.get(path)))
        kind = (rule, path in done, structure, *((leaf.shape, leaf.dtype) for leaf in leaves))
        if kind not in traced:
            layer = partial(_layer, path=path, rule=rule, folded=path in done, ranges=ranges)
            traced[kind] = jax.eval_shape(layer, weight, stats.get(path))
        return traced[kind]

    return net.map_weights(convert)


def _layer(
    weight: Any, stats: LayerStats | None, *, path: str, rule: Rule, folded: bool, ranges: int
) -> QWeight | ByRange | PerRange:
    """What stands for one weight. folded: its balance is in the layer before."""
    prepare = [find_method("prepare", item) for item in rule.prepare[folded:]]
    with jax.default_matmul_precision("highest"):  # float32 means float32, on accelerators too
        if rule.weight_in:
            specs = [dict(rule.weight_in).get(r, rule.weight) for r in range(ranges)]
            kinds = list(dict.fromkeys(specs))
            alone = [dataclasses.replace(rule, weight=spec, weight_in=()) for spec in kinds]
            values = (_quantized(path, weight, each, prepare, stats) for each in alone)
            return ByRange(tuple(values), tuple(map(kinds.index, specs)))
        if stats is None or not any(getattr(method.options, "ranges", False) for method in prepare):
            return _quantized(path, weight, rule, prepare, stats)
        each = [_quantized(path, weight, rule, prepare, stats.at(r)) for r in range(len(stats.low))]
        return PerRange.of(each)


def _quantized(path: str, weight: Any, rule: Rule, prepare: list[Any], stats: LayerStats | None) -> QWeight:
    """The object for one slot: prepare, split off a low-rank part, round once."""
    steps: list[Any] = []
    weight = weight.astype(jnp.float32)
    for method in prepare:
        step = method.module.fit(weight, stats, method.options, path=path)
        weight = step.weight(weight)
        stats = None if stats is None else stats.through(step)
        steps.append(step)
    assert rule.weight is not None
    rounding = find_method("rounding", rule.rounding)
    gram = stats.gram if stats is not None and rule.needs_gram else None
    fit = partial(rounding.module.fit, spec=rule.weight, gram=gram, options=rounding.options)
    branch = None
    if rule.low_rank:
        values, branch = low_rank.split(weight, rule.weight, fit, gram, rank=rule.low_rank)
    else:
        values = fit(weight)
    return quantized_weight(values, rule.act, stats, prepare=tuple(steps), branch=branch)
