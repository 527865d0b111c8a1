"""Budgets in seconds: from what was measured on this device, and refused where nothing was."""

import pytest

from pallas_kernels import measured
from tests import tiny
from viditq_jax.quant.recipe import Recipe, Rule
from viditq_jax.quant.search.allocate import allocate, bits_of
from viditq_jax.quant.search.table import Layer, Row, Table
from viditq_jax.quant.spec import Spec
from viditq_jax.search.seconds import layer_seconds

RECIPE = Recipe((Rule(("blocks/*",), Spec.parse("int8/channel"), Spec.parse("int8/token")),), name="plain")


@pytest.fixture
def told(monkeypatch):
    """As if a product took 4 us with 8 bits and 1 us with 4, and its input 1 us."""

    def speed(op, sizes, traits=None):
        own = {"quantize_rows": 1e-6, "packed_matmul": 1e-6, "scaled_matmul": 4e-6}[op]
        return measured.Speed(
            tuple(sizes), traits or "", {**dict.fromkeys(measured.FLOATS, 9e-6), "xla": own}
        )

    monkeypatch.setattr(measured, "speed", speed)


def test_a_layer_takes_what_was_measured_and_nothing_where_it_runs_once_a_prompt(told):
    found = layer_seconds(tiny.pipeline(depth=1), RECIPE, (4, 8), batch=2)
    assert found["blocks/0/mlp/fc1", 4] == pytest.approx(2e-6)
    assert found["blocks/0/mlp/fc1", 8] == pytest.approx(5e-6)
    assert found["blocks/0/cross_attn/kv_linear", 8] == 0
    assert len(found) == 2 * 7


def test_a_plan_keeps_its_budget_of_seconds(told):
    pipeline = tiny.pipeline(depth=1)
    seconds = layer_seconds(pipeline, RECIPE, (4, 8), batch=2)
    layers = {path: Layer(10, "visual", {4: 5, 8: 10}) for path, _ in seconds}
    rows = [Row((path,), 4, {"latent": 1.0 + i}) for i, path in enumerate(layers)]
    table = Table(RECIPE, (4, 8), layers).with_rows(rows)
    plan = bits_of(table, allocate(table, budget=2e-6 * 6 + 3e-6 * 2, measure="seconds", seconds=seconds))
    assert sum(seconds[path, bits] for path, bits in plan.items()) <= 18e-6 * (1 + 1e-9)
    assert plan["blocks/0/cross_attn/kv_linear"] == 8  # costs no time
    assert sorted(plan.values()) == [4, 4, 4, 4, 8, 8, 8]


def test_a_device_that_was_not_measured_is_refused(monkeypatch):
    monkeypatch.setattr(measured, "speed", lambda *_, **__: None)
    with pytest.raises(ValueError, match=r"12 products were not measured on .*viditq bench --tune"):
        layer_seconds(tiny.pipeline(depth=1), RECIPE, (4, 8), batch=2)
