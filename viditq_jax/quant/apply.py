"""quantize: from a Net and a Recipe to a Net with quantized weights. The graphdef stays as it is."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from viditq_jax import plugins
from viditq_jax.net import Net
from viditq_jax.quant.qweight import QWeight, quantized_weight
from viditq_jax.quant.recipe import Recipe, RecipeError, Rule
from viditq_jax.quant.stats import Stats, abstract_stats


def quantize(net: Net, recipe: Recipe, stats: Stats | None = None) -> Net:
    """Replace every weight that the recipe names by its quantized form; leave the others as they are.

    net: real, or of shapes alone. Shapes give the shapes of the quantized Net, the target into which an
        artifact is restored; statistics are then not needed.
    stats: of layers whose rule says static, from `calibrate` or `observe`.
    Raises RecipeError, with all that is wrong, if the recipe does not fit the net, statistics are missing, or
    weights are not finite (not seen under a trace).
    """
    weights = net.weights()
    rules = recipe.resolve(weights)
    if done := [path for path, rule in rules.items() if rule.weight and isinstance(weights[path], QWeight)]:
        raise RecipeError(
            f"{len(done)} layers are quantized already ({done[0]}, ...); quantize the unquantized net."
        )
    if any(isinstance(weights[path], jax.ShapeDtypeStruct) for path in rules):
        return jax.eval_shape(partial(_convert, rules=rules), net, abstract_stats(net))
    known = [
        path for path, rule in rules.items() if rule.weight and not isinstance(weights[path], jax.core.Tracer)
    ]
    if broken := [path for path in known if not bool(jnp.isfinite(weights[path]).all())]:
        raise RecipeError(
            f"the weights of {', '.join(broken)} are not finite; check the checkpoint they are from."
        )
    missing = [path for path, rule in rules.items() if rule.needs_stats and path not in (stats or {})]
    if missing:
        listed = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
        raise RecipeError(
            f"recipe {recipe.name}: {len(missing)} layers with static scales have no statistics: {listed}."
            f" Calibrate on conditions that reach them, or give their rule dynamic inputs."
        )
    return _convert(net, stats or {}, rules=rules)


def _convert(net: Net, stats: Stats, *, rules: dict[str, Rule]) -> Net:
    def convert(path: str, weight: Any) -> Any:
        rule = rules.get(path)
        if rule is None or rule.weight is None:
            return weight
        fit = plugins.find("viditq_jax.quant.rounding", rule.rounding, "fit")
        layer = stats.get(path)
        return quantized_weight(fit(weight, rule.weight, layer), rule.act, layer)

    return net.map_weights(convert)
