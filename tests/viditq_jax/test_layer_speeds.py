"""The comparison of quantized layers with their float form, before anything runs."""

import dataclasses
import warnings

import jax.numpy as jnp
import pytest

from pallas_kernels import measured
from tests.tiny import PIXART
from tests.tiny import pipeline as tiny_pipeline
from viditq_jax.cli import main
from viditq_jax.load import load_pipeline
from viditq_jax.post_training import quantize_pipeline
from viditq_jax.quant.recipe import load_recipe
from viditq_jax.speed import Heard, SlowerWarning, layer_calls, layer_speeds, slower, warn_if_slower

TOKENS = 2 * PIXART.base_size**2  # of one sample with guidance
WIDTH = PIXART.width


@pytest.fixture(scope="module")
def small():
    return quantize_pipeline(tiny_pipeline(), load_recipe("w8a8-dynamic"))


@pytest.fixture
def told(monkeypatch):
    """As if these seconds had been measured for every shape; the float form takes 1 ms, modulation 0.5 ms."""

    def tell(seconds):
        def speed(op, sizes, traits=None):
            floats = dict.fromkeys(measured.FLOATS, 5e-4 if op == "quantize_rows" else 1e-3)
            return measured.Speed(tuple(sizes), traits or "", {**floats, "xla": seconds(op, traits)})

        monkeypatch.setattr(measured, "speed", speed)
        monkeypatch.setattr(measured, "speeds", lambda op: (speed(op, (1, 1, 1)),))

    return tell


def test_a_trace_tells_the_tokens_of_each_layer_and_what_is_fused_with_it():
    heard = layer_calls(tiny_pipeline(), batch=3)
    assert heard["blocks/0/attn/qkv"] == Heard(3 * TOKENS, "modulated", "none")
    assert heard["blocks/1/attn/proj"] == Heard(3 * TOKENS, "plain", "gate")
    assert heard["blocks/0/cross_attn/proj"] == Heard(3 * TOKENS, "plain", "residual")
    assert heard["blocks/0/mlp/fc1"] == Heard(3 * TOKENS, "modulated", "gelu")
    assert "blocks/0/cross_attn/kv_linear" not in heard  # once a prompt, not once a step


def test_a_layer_is_a_pass_over_its_input_and_a_product(small, told):
    told(lambda op, traits: 1e-4 if op == "quantize_rows" else 4e-4)
    layers = {each.layer: each for each in layer_speeds(small)}
    assert len(layers) == 6 * PIXART.depth
    plain, modulated = layers["blocks/0/attn/proj"], layers["blocks/0/attn/qkv"]
    assert (plain.seconds, plain.float_seconds) == (5e-4, 1e-3)
    assert modulated.ratio == pytest.approx(3.0)
    assert (modulated.rows, modulated.k, modulated.n) == (TOKENS, WIDTH, 3 * WIDTH)
    assert modulated.implementation == "xla"
    assert slower(layers.values()) == []


def test_slower_layers_are_named_with_their_cost_when_a_model_is_quantized_or_loaded(told, tmp_path):
    told(lambda op, traits: 2e-3 if traits == "epilogue=gate" else 1e-4)
    with pytest.warns(SlowerWarning, match=r"4 quantized layers .* blocks/0/attn/proj \(0\.48x\)") as caught:
        small = quantize_pipeline(tiny_pipeline(), load_recipe("w8a8-dynamic"))
    assert "costs 4.40 ms a step" in str(caught[0].message)
    small.save(tmp_path / "small")
    with pytest.warns(SlowerWarning, match="4 quantized layers"):
        load_pipeline(tmp_path / "small")


def test_nothing_is_said_of_floats_nor_of_a_device_that_was_not_measured(small, told, monkeypatch):
    monkeypatch.setattr(measured, "speeds", lambda op: ())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_slower(small)
        told(lambda op, traits: 1.0)
        warn_if_slower(tiny_pipeline())
    with pytest.warns(SlowerWarning):
        warn_if_slower(small)


def test_times_of_code_that_has_changed_since_are_no_times(small, monkeypatch):
    floats = dict.fromkeys(measured.FLOATS, 1e-3)
    monkeypatch.setattr(measured, "speed", lambda op, sizes, traits=None: measured.Speed((), "", floats))
    assert all(layer.ratio is None for layer in layer_speeds(small))


def test_weights_without_an_integer_product_are_not_compared(small, told):
    told(lambda op, traits: 1.0)
    rules = [dataclasses.replace(rule, act=None) for rule in load_recipe("w8a8-dynamic").rules]
    recipe = dataclasses.replace(load_recipe("w8a8-dynamic"), rules=tuple(rules))
    for layer in layer_speeds(quantize_pipeline(tiny_pipeline(), recipe)):
        assert layer.ratio is None


def test_float32_layers_are_compared_with_float32(small, told, monkeypatch):
    told(lambda op, traits: 1e-4)
    floats = {"bfloat16": 1e-3, "float32": 4e-3, "xla": 1e-4}
    monkeypatch.setattr(measured, "speed", lambda op, sizes, traits=None: measured.Speed((), "", floats))
    for dtype, seconds in ((jnp.bfloat16, 1e-3), (jnp.float32, 4e-3)):
        layers = {each.layer: each for each in layer_speeds(small.astype(dtype))}
        assert layers["blocks/0/attn/proj"].float_seconds == seconds


def test_inspect_lists_the_speeds(small, told, tmp_path, capsys):
    small.save(tmp_path / "small")
    assert main(["inspect", str(tmp_path / "small"), "--speed"]) == 0
    assert "not measured on" in capsys.readouterr().out
    told(lambda op, traits: 1e-4)
    assert main(["inspect", str(tmp_path / "small"), "--speed", "--batch", "2"]) == 0
    shown = capsys.readouterr().out
    assert "blocks/1/mlp/fc2" in shown
    assert "no layer is slower than in floats" in shown
