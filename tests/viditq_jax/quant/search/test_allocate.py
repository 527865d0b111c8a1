"""The plan of a budget: the optimum of the integer program, the greedy rule, and recipes made of them."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from viditq_jax.quant.recipe import Recipe, Rule
from viditq_jax.quant.search.allocate import (
    MOST_COLUMNS,
    Problem,
    allocate,
    average_bits,
    bits_of,
    greedy,
    optimum,
    plan_bytes,
    predicted,
)
from viditq_jax.quant.search.table import Layer, Row, Table
from viditq_jax.quant.spec import Spec

RULES = (
    Rule(("final_layer*",), None, why="stays"),
    Rule(("blocks/*",), Spec.parse("int4/channel/asym"), Spec.parse("int8/token"), ("hadamard",)),
)
RECIPE = Recipe(RULES, name="base", source="a source")


def layer(numbers: int = 100, group: str = "visual") -> Layer:
    return Layer(numbers, group, {4: numbers // 2 + 8, 8: numbers + 8})


def table(values: dict[str, float], **layers: Layer) -> Table:
    """Layers a, b, ... with these errors at 4 bits."""
    known = {f"blocks/0/{name}": layers.get(name, layer()) for name in values}
    rows = [Row((f"blocks/0/{name}",), 4, {"latent": value}) for name, value in values.items()]
    return Table(RECIPE, (4, 8), known, tuple(rows))


def widths(recipe: Recipe, of: Table) -> str:
    """The bits of the layers in the order of their names, as "844"."""
    return "".join(str(bits) for _, bits in sorted(bits_of(of, recipe).items()))


@st.composite
def problems(draw):
    n = draw(st.integers(1, 6))
    bits = draw(st.sampled_from([(4, 8), (4, 6, 8)]))
    costs = st.lists(st.floats(0, 1e-3), min_size=len(bits), max_size=len(bits))
    cost = np.array([sorted(draw(costs), reverse=True) for _ in range(n)])
    numbers = np.array([draw(st.integers(1, 50)) for _ in range(n)])
    floors = [draw(st.sampled_from(bits)) if draw(st.booleans()) else bits[0] for _ in range(n)]
    size = numbers[:, None] * np.array(bits)[None].astype(float)
    least = sum(size[i, bits.index(floors[i])] for i in range(n))
    limit = least + draw(st.floats(0, 1)) * (size[:, -1].sum() - least)
    names = [draw(st.sampled_from(["text", "visual"])) for _ in range(n)]
    return [(str(i),) for i in range(n)], bits, cost, size, float(limit), floors, names


def brute_force(problem: Problem) -> float:
    """The least cost of all choices that fit."""
    n, m = problem.cost.shape
    best = np.inf
    for choice in itertools.product(range(m), repeat=n):
        rows = np.arange(n), np.array(choice)
        fits = problem.size[rows].sum() <= problem.limit * (1 + 1e-12) and problem.allowed()[rows].all()
        if fits:
            best = min(best, problem.cost[rows].sum())
    return best


@settings(max_examples=60, deadline=None)
@given(problems())
def test_the_program_finds_what_trying_everything_finds(drawn):
    problem = Problem(*drawn)
    rows = np.arange(len(problem.units)), optimum(problem)
    assert problem.size[rows].sum() <= problem.limit * (1 + 1e-9)
    assert problem.allowed()[rows].all()
    scale = problem.cost.max() or 1.0
    assert problem.cost[rows].sum() <= brute_force(problem) + 1e-6 * scale


@settings(max_examples=60, deadline=None)
@given(problems())
def test_the_greedy_rule_keeps_the_budget_and_the_floors_and_is_never_better(drawn):
    problem = Problem(*drawn)
    rows = np.arange(len(problem.units)), greedy(problem)
    assert problem.size[rows].sum() <= problem.limit * (1 + 1e-9)
    assert problem.allowed()[rows].all()
    assert problem.cost[rows].sum() >= brute_force(problem) - 1e-12


def test_the_most_sensitive_layer_gets_the_bits():
    three = table({"a": 1e-4, "b": 3e-2, "c": 2e-4})
    assert widths(allocate(three, budget=16 / 3), three) == "484"
    assert widths(allocate(three, budget=4), three) == "444"
    assert widths(allocate(three, budget=8), three) == "888"


def test_two_cheap_layers_beat_one_dear_layer_of_their_size_where_the_greedy_rule_takes_the_dear_one():
    """3 is less than 2 + 2."""
    three = table({"a": 3.0, "b": 2.0, "c": 2.0}, a=layer(200), b=layer(100), c=layer(100))
    assert widths(allocate(three, budget=6), three) == "488"
    assert widths(allocate(three, budget=6, method="greedy"), three) == "844"


def test_a_budget_of_bytes_counts_all_that_is_stored():
    three = table({"a": 1.0, "b": 2.0, "c": 3.0})
    least = 3 * 58
    found = allocate(three, budget=least + 50, measure="bytes")
    assert widths(found, three) == "448"
    assert plan_bytes(three, bits_of(three, found)) == least + 50


def test_a_budget_of_seconds_takes_those_that_are_given():
    two = table({"a": 1.0, "b": 2.0})
    seconds = {
        (path, bits): t for path, t in {"blocks/0/a": 1.0, "blocks/0/b": 5.0}.items() for bits in (4, 8)
    }
    seconds |= {("blocks/0/a", 8): 2.0, ("blocks/0/b", 8): 9.0}
    assert widths(allocate(two, budget=7.5, measure="seconds", seconds=seconds), two) == "84"
    with pytest.raises(ValueError, match="belong to the measure 'seconds'"):
        allocate(two, budget=7.5, seconds=seconds)


def test_inside_a_group_its_metric_ranks_and_between_groups_the_error():
    """Of the text layers b matters most to the text, though a changes the latents more."""
    layers = {name: layer(group="text" if name in "ab" else "visual") for name in "abcd"}
    rows = {"a": (3.0, 1.0), "b": (1.0, 3.0), "c": (0.5, 9.0), "d": (0.1, 9.0)}
    known = Table(RECIPE, (4, 8), {f"blocks/0/{name}": each for name, each in layers.items()}).with_rows(
        [Row((f"blocks/0/{n}",), 4, {"latent": e, "structure": m}) for n, (e, m) in rows.items()]
    )
    alone = allocate(known, budget=5)
    decoupled = allocate(known, budget=5, metrics={"text": "structure"})
    assert widths(alone, known) == "8444"
    assert widths(decoupled, known) == "4844"


def test_floors_are_kept_and_named():
    three = table({"a": 1.0, "b": 2.0, "c": 3.0})
    found = allocate(three, budget=16 / 3, floors={"*/a": 8})
    assert widths(found, three) == "844"
    assert "8 bits at least" in next(rule.why for rule in found.rules if rule.match == ("blocks/0/a",))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"budget": 3.5}, "the least that these bits allow is 4"),
        ({"budget": 5, "floors": {"*/a": 8, "*/b": 8, "*/c": 8}}, "the least that these bits allow is 8"),
        ({"budget": 5, "floors": {"*/z": 8}}, "matches no layer"),
        ({"budget": 5, "floors": {"*/a": 16}}, "above 8 bits"),
        ({"budget": 5, "method": "best"}, "choose milp or greedy"),
        ({"budget": 5, "measure": "watts"}, "choose bits, bytes, seconds"),
        ({"budget": 5, "metrics": {"visual": "clip"}}, "lacks 'clip'"),
    ],
)
def test_what_cannot_be_is_refused_with_the_way_out(options, words):
    with pytest.raises(ValueError, match=words):
        allocate(table({"a": 1.0, "b": 2.0, "c": 3.0}), **options)


def test_a_plan_is_an_ordinary_recipe_with_a_reason_for_every_layer():
    three = table({"a": 1.0, "b": 2.0, "c": 3.0})
    found = allocate(three, budget=16 / 3, name="mine")
    assert Recipe.from_json(found.to_json()) == found
    assert found.rules[0] == RULES[0]
    assert [str(rule.weight) for rule in found.rules[1:]] == ["int4/channel/asym"] * 2 + ["int8/channel/asym"]
    assert all(rule.why and rule.prepare == ("hadamard",) for rule in found.rules[1:])
    weights = {path: np.empty((64, 64)) for path in (*three.layers, "final_layer/linear")}
    assert len(found.resolve(weights)) == 4


def test_sizes_and_predictions_are_sums_over_the_layers():
    two = table({"a": 1.0, "b": 2.0}, a=layer(300), b=layer(100))
    bits = {"blocks/0/a": 4, "blocks/0/b": 8}
    assert average_bits(two, bits) == 5
    assert predicted(two, bits) == 1.0


def test_layers_of_one_unit_share_their_bits():
    rows = (Row(("blocks/0/q", "blocks/0/k"), 4, {"latent": 1.0}), Row(("blocks/0/v",), 4, {"latent": 0.6}))
    three = Table(RECIPE, (4, 8), {f"blocks/0/{name}": layer() for name in "qkv"}, rows)
    assert bits_of(three, allocate(three, budget=6)) == {"blocks/0/q": 4, "blocks/0/k": 4, "blocks/0/v": 8}
    assert bits_of(three, allocate(three, budget=7)) == {"blocks/0/q": 8, "blocks/0/k": 8, "blocks/0/v": 4}


def test_ranges_add_up_and_a_range_that_is_missing_is_no_table():
    rows = [Row(("blocks/0/a",), 4, {"latent": value}, r) for r, value in enumerate((1.0, 2.0))]
    one = Table(RECIPE, (4, 8), {"blocks/0/a": layer()}, tuple(rows), bounds=(500,))
    assert one.value(("blocks/0/a",), 4, "latent") == 3.0
    with pytest.raises(ValueError, match="not finished"):
        dataclasses.replace(one, rows=one.rows[:1]).value(("blocks/0/a",), 4, "latent")


def ranged(values: dict[str, tuple[float, ...]], **facts) -> Table:
    """Layers with an error at 4 bits in each denoising range."""
    bounds = tuple(range(100, 100 * len(next(iter(values.values()))), 100))
    known = {f"blocks/0/{name}": layer() for name in values}
    rows = [
        Row((f"blocks/0/{name}",), 4, {"latent": value}, r)
        for name, each in values.items()
        for r, value in enumerate(each)
    ]
    return Table(RECIPE, (4, 8), known, tuple(rows), bounds, facts)


def test_a_plan_over_time_gives_each_range_what_it_is_sensitive_to():
    two = ranged({"a": (9.0, 1.0), "b": (1.0, 5.0)})
    found = allocate(two, budget=6, vary=True)
    assert bits_of(two, found) == {"blocks/0/a": (8, 4), "blocks/0/b": (4, 8)}
    assert average_bits(two, bits_of(two, found)) == 6
    assert predicted(two, bits_of(two, found)) == 2.0
    assert predicted(two, bits_of(two, allocate(two, budget=6))) == 6.0  # the best that stays the same
    a = next(rule for rule in found.rules if rule.weight)
    assert (str(a.weight), a.weight_in) == ("int8/channel/asym", ((1, Spec.parse("int4/channel/asym")),))
    assert found.ranges == (100,)
    assert Recipe.from_json(found.to_json()) == found
    assert a.why.startswith("8, 4 bits by range: ")


def test_steps_count_as_often_as_they_are_in_a_range():
    """Three of four steps are in range 0, so its 8 bits are dear."""
    two = ranged({"a": (2.0, 1.5), "b": (2.0, 1.5)}, shares=[0.75, 0.25])
    assert set(bits_of(two, allocate(two, budget=5, vary=True)).values()) == {(4, 8)}
    seconds = {(path, bits): bits / 4 for path in two.layers for bits in (4, 8)}
    found = allocate(two, budget=2 * 1.25, measure="seconds", seconds=seconds, vary=True)
    assert set(bits_of(two, found).values()) == {(4, 8)}


def test_every_width_that_a_layer_has_at_any_time_takes_memory():
    """58 bytes at 4 bits and 108 at 8: both together cost more than 8 bits at all times."""
    two = ranged({"a": (9.0, 1.0), "b": (1.0, 5.0)})
    assert plan_bytes(two, {"blocks/0/a": (8, 4), "blocks/0/b": (4, 4)}) == 58 + 108 + 58
    for budget in (116, 166, 216):
        found = bits_of(two, allocate(two, budget=budget, measure="bytes", vary=True))
        assert plan_bytes(two, found) <= budget
        assert all(isinstance(bits, int) or len(set(bits)) == 1 for bits in found.values())


def test_a_plan_that_has_no_use_for_ranges_has_none():
    two = ranged({"a": (9.0, 9.0), "b": (1.0, 1.0)})
    found = allocate(two, budget=6, vary=True)
    assert found.ranges == ()
    assert bits_of(two, found) == {"blocks/0/a": 8, "blocks/0/b": 4}


def test_ranges_that_are_not_there_or_too_many_are_refused():
    with pytest.raises(ValueError, match="ranges that the table does not tell apart"):
        allocate(table({"a": 1.0}), budget=6, vary=True)
    many = ranged({"a": (1.0,) * 9})
    with pytest.raises(ValueError, match=f"512 choices a layer; .* at most {MOST_COLUMNS}"):
        allocate(many, budget=6, vary=True)
