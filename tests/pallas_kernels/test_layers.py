"""The shapes that benchmarks share are those of the models."""

import dataclasses

import pytest

from pallas_kernels.layers import LAYERS, QUICK
from viditq_jax.models import dit, pixart
from viditq_jax.net import abstract

MODELS = {
    "pixart-sigma-512": (pixart, "pixart-sigma-xl-2-512-ms"),
    "pixart-sigma-1024": (pixart, "pixart-sigma-xl-2-1024-ms"),
    "dit-xl-2-512 batch 16": (dit, "dit-xl-2-512"),
}


@pytest.mark.parametrize("name", MODELS)
def test_layers_have_the_shapes_of_the_model(name):
    module, config = MODELS[name]
    net = abstract(module.build, dataclasses.replace(module.CONFIGS[config], depth=1))
    shapes = {path.removeprefix("blocks/0/"): weight.shape for path, weight in net.weights().items()}
    layers = {
        key.removeprefix(f"{name} "): layer for key, layer in LAYERS.items() if key.startswith(f"{name} ")
    }
    assert layers
    assert {path: (layer.n, layer.k) for path, layer in layers.items()} == {
        path: shapes[path] for path in layers
    }


@pytest.mark.parametrize("name", MODELS)
def test_rows_are_the_tokens_of_whole_samples(name):
    module, config = MODELS[name]
    tokens = (module.CONFIGS[config].input_size // 2) ** 2
    assert LAYERS[f"{name} attn/qkv"].rows % tokens == 0


def test_the_quick_layers_are_among_them():
    assert set(QUICK) < set(LAYERS)
