"""Models to time: the packaged one, and full sizes with random weights that are made in seconds.

A time does not depend on how well a model was calibrated. So statistics of the inputs are made up, each
weight is rounded to nearest (every rounding gives the same layout), and of a full size one block is drawn and
quantized, then copied: every block has memory of its own, so that none is found in a cache.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from viditq_jax import plugins
from viditq_jax.load import load_pipeline
from viditq_jax.net import Net, abstract
from viditq_jax.pipeline import Pipeline
from viditq_jax.programs import Call
from viditq_jax.quant.apply import quantize
from viditq_jax.quant.recipe import Recipe
from viditq_jax.quant.stats import LayerStats, Moving, Stats
from viditq_jax.speed import example_call

_NOT_OF_TOKENS = ("cross_attn/kv_linear", "adaLN_modulation/1")  # of the prompt, of a sample
_BLOCK_NAME = re.compile(r"^blocks/\d+/")
_SAMPLERS = {"pixart": "dpm_solver", "dit": "ddim", "stdit": "iddpm"}


@dataclasses.dataclass(frozen=True)
class Workload:
    """A model and what it is given. batch: pictures or videos; guidance doubles what the denoiser sees.

    config: its name in the model's file; "" for the packaged model with its own weights.
    """

    name: str
    model: str = "pixart"
    config: str = ""
    batch: int = 4
    guided: bool = True
    steps: int = 20
    depth: int | None = None  # fewer blocks than the config has


DEFAULT = Workload("packaged model, batch 4")
FULL_SIZES = (
    Workload("pixart-sigma-1024, batch 1", config="pixart-sigma-xl-2-1024-ms", batch=1),
    Workload("pixart-sigma-1024, batch 4", config="pixart-sigma-xl-2-1024-ms", batch=4),
    Workload("dit-xl-2-512, batch 16", "dit", "dit-xl-2-512", batch=16, guided=False),
    Workload("pixart-sigma-512, batch 1", config="pixart-sigma-xl-2-512-ms", batch=1),
    Workload("stdit-16x512x512, batch 1", "stdit", "stdit-xl-2-16x512x512", batch=1),
)


def float_pipeline(workload: Workload, dtype: Any) -> Pipeline:
    """The pipeline in floats; of a full size the denoiser alone, with one block: `deep` gives the others."""
    if not workload.config:
        return load_pipeline(dtype=dtype)
    module = plugins.find("viditq_jax.models", workload.model)
    config = config_of(workload, depth=1)
    guidance = {"scale": 4.5 if workload.guided else 1.0}
    label = workload.model == "dit"
    facts = {
        "denoiser": {"model": workload.model, "config": dataclasses.asdict(config)},
        "sampler": {"name": _SAMPLERS[workload.model], "options": {}, "steps": workload.steps},
        "guidance": guidance,
        "conditions": {"kind": "label", "classes": config.classes} if label else {"kind": "prompt"},
        "image_size": [8 * config.input_size, 8 * config.input_size],
        "source": {"denoiser": {"format": "original"}},
        "dtype": jnp.dtype(dtype).name,
    }
    if hasattr(config, "frames"):
        facts["frames"] = config.frames
    return Pipeline(_random(abstract(module.build, config), dtype), facts)


def deep(net: Net, workload: Workload) -> Net:
    """The net of one block with copies of it in the place of all others; the packaged model as it is."""
    if not workload.config:
        return net
    module = plugins.find("viditq_jax.models", workload.model)
    held = dict(net.variables())

    def copy(name: str, _: Any) -> Any:
        value = held[_BLOCK_NAME.sub("blocks/0/", name)].get_value()
        return jax.tree.map(jnp.copy, value) if _BLOCK_NAME.match(name) else value

    return abstract(module.build, config_of(workload, depth=workload.depth)).map_variables(copy)


def quantized(net: Net, recipe: Recipe) -> Net:
    """The net under the recipe, with made-up statistics and every weight rounded to nearest."""
    rules = tuple(dataclasses.replace(rule, rounding="nearest") for rule in recipe.rules)
    recipe = dataclasses.replace(recipe, rules=rules, tuning="", correction="")
    stats = made_up_stats(net, recipe)
    return jax.jit(lambda net, stats: quantize(net, recipe, stats))(net, stats)


def call(pipeline: Pipeline, workload: Workload, seed: int) -> Call:
    """What a program of this workload takes."""
    return example_call(pipeline, batch=workload.batch, guided=workload.guided, seed=seed)


class Flop(NamedTuple):
    """Of one step: the products of tokens with weights of the blocks, and attention. The rest is little."""

    linear: int
    attention: int

    def ideal_s(self, ceilings: Mapping[str, float], linear: str) -> float:
        """The time at the rates of large products: the linear layers in this type, attention in bfloat16."""
        rates = (ceilings[f"{linear}_flop_per_s"], ceilings["bfloat16_flop_per_s"])
        return self.linear / rates[0] + self.attention / rates[1]


def step_flop(net: Net, config: Any, samples: int) -> Flop:
    """What a step of a model costs. The prompt's keys and values are made before, and are not in it.

    net: any of this config; the shapes of its first block count. samples: guidance included.
    """
    frames, places = getattr(config, "frames", 1), (config.input_size // config.patch_size) ** 2
    tokens = frames * places
    shapes = {path: weight.shape for path, weight in net.weights().items() if path.startswith("blocks/0/")}
    of_tokens = [math.prod(shape) for path, shape in shapes.items() if not path.endswith(_NOT_OF_TOKENS)]
    # Of each attention of a block: within a frame, across frames (STDiT), to the prompt.
    of_names = {"attn/qkv": places, "attn_temp/qkv": frames, "cross_attn/kv_linear": _text_length(config)}
    keys = sum(of_names.get(path.removeprefix("blocks/0/"), 0) for path in shapes)
    per_sample = Flop(2 * tokens * sum(of_tokens), 4 * tokens * keys * config.width)
    return Flop(*(config.depth * samples * each for each in per_sample))


def _text_length(config: Any) -> int:
    return int(getattr(config, "text_length", 0))


def config_of(workload: Workload, *, depth: int | None) -> Any:
    """The model's configuration with so many blocks; its own number where None."""
    module = plugins.find("viditq_jax.models", workload.model)
    config = module.CONFIGS[workload.config]
    return dataclasses.replace(config, depth=depth or config.depth)


def _random(net: Net, dtype: Any) -> Net:
    """Values that keep activations in range: matrices as Xavier draws them, the rest small.

    Drawn by NumPy: a program for each shape would take longer to compile than all of them to draw.
    """
    rng = np.random.default_rng(0)

    def draw(_: str, variable: Any) -> jax.Array:
        shape = variable.get_value().shape
        spread = (2 / sum(shape)) ** 0.5 if len(shape) == 2 else 0.05
        return jnp.asarray((spread * rng.standard_normal(shape, np.float32)).astype(dtype))

    return net.map_variables(draw)


def made_up_stats(net: Net, recipe: Recipe) -> Stats:
    """Of inputs that fill -1 to 1 evenly, in every range."""
    weights, ranges = net.weights(), recipe.range_count
    rules: Mapping[str, Any] = recipe.resolve(weights)

    def layer(path: str, k: int) -> LayerStats:
        ones = jnp.ones((ranges, k), jnp.float32)
        gram = jnp.eye(k, dtype=jnp.float32) if rules[path].needs_gram else None
        moving = Moving(ones, 0 * ones, 0 * ones[:, 0])
        return LayerStats(-ones, ones, ones / 2, ones[:, 0], ones[0], moving, gram)

    return {path: layer(path, weights[path].shape[1]) for path, rule in rules.items() if rule.needs_stats}
