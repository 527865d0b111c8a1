"""Sensitivities: which units are measured, against what, and how a table on disk goes on."""

import dataclasses
import json

import pytest

from viditq_jax.quant.recipe import Recipe, Rule
from viditq_jax.quant.search.sensitivity import sensitivity, units
from viditq_jax.quant.search.table import Layer, Table, gather
from viditq_jax.quant.spec import Spec

PATHS = ["blocks/0/attn/qkv", "blocks/0/attn/proj", "blocks/0/mlp/fc1", "blocks/1/attn/qkv"]
RECIPE = Recipe((Rule(("blocks/*",), Spec.parse("int4/channel"), Spec.parse("int8/token")),), name="base")
EMPTY = Table(RECIPE, (4, 6, 8), {path: Layer(10, "visual", {4: 5, 6: 10, 8: 10}) for path in PATHS})
METRICS = {"loss": lambda samples, reference: samples - reference}


def run(bits):
    """Layer i loses 10^-i a missing bit."""
    lost = [8 - b if isinstance(b, int) else sum(8 - each for each in b) for b in bits.values()]
    return sum(each * 10.0**-i for i, each in enumerate(lost))


def test_units_are_layers_kinds_or_blocks():
    assert units(PATHS) == [(path,) for path in PATHS]
    assert units(PATHS, "kind") == [tuple(PATHS[:2]), (PATHS[2],), (PATHS[3],)]
    assert units(PATHS, "block") == [tuple(PATHS[:3]), (PATHS[3],)]
    with pytest.raises(ValueError, match="choose layer, kind or block"):
        units(PATHS, "model")


def test_every_unit_is_measured_alone_with_all_others_at_the_most_bits():
    table = sensitivity(run, EMPTY, METRICS)
    found = {(row.layers[0], row.bits): row.values["loss"] for row in table.rows}
    assert found == pytest.approx(
        {(path, b): (8 - b) * 10.0**-i for i, path in enumerate(PATHS) for b in (4, 6)}
    )


def test_in_ranges_a_unit_loses_bits_in_one_of_them():
    seen = []

    def look(bits):
        seen.append(dict(bits))
        return run(bits)

    table = sensitivity(look, dataclasses.replace(EMPTY, bounds=(500,)), METRICS, by="block")
    assert len(table.rows) == 2 * 2 * 2
    assert seen[0] == dict.fromkeys(PATHS, (8, 8))
    assert seen[2] == {**dict.fromkeys(PATHS[:3], (8, 4)), PATHS[3]: (8, 8)}


def test_a_killed_search_goes_on_with_the_same_table(tmp_path):
    """The last line was being written."""
    file, whole, calls = tmp_path / "table.jsonl", tmp_path / "whole.jsonl", []

    def count(bits):
        calls.append(bits)
        return run(bits)

    wanted = sensitivity(run, EMPTY, METRICS, file=whole)
    lines = whole.read_bytes().split(b"\n")
    file.write_bytes(b"\n".join(lines[:4]) + b"\n" + lines[4][:20])
    done = []
    found = sensitivity(count, EMPTY, METRICS, file=file, advance=done.append)
    assert found == wanted
    assert file.read_bytes() == whole.read_bytes()
    assert len(calls) == 1 + 8 - 3  # the reference, and what was missing
    assert sum(done) == 8
    assert sensitivity(count, EMPTY, METRICS, file=file) == wanted
    assert len(calls) == 6, "a finished table samples nothing"


@pytest.mark.parametrize("kept", [0, 30])
def test_a_search_that_was_killed_in_its_first_line_begins_again(tmp_path, kept):
    file = tmp_path / "table.jsonl"
    sensitivity(run, EMPTY, METRICS, file=file)
    whole = file.read_bytes()
    file.write_bytes(whole[:kept])
    sensitivity(run, EMPTY, METRICS, file=file)
    assert file.read_bytes() == whole


def test_a_table_takes_over_what_shards_have_measured(tmp_path):
    files = [tmp_path / f"table-{i}-of-2.jsonl" for i in range(2)]
    parts = [sensitivity(run, EMPTY, METRICS, shard=(i, 2), file=file) for i, file in enumerate(files)]
    whole = tmp_path / "table.jsonl"
    sensitivity(run, EMPTY, METRICS, shard=(1, 2), file=whole)  # a row that is there already comes once
    gather(EMPTY, whole, files)
    assert len(Table.read(whole).rows) == sum(len(part.rows) for part in parts)
    assert {row.key: row for row in Table.read(whole).rows} == {
        row.key: row for row in sensitivity(run, EMPTY, METRICS).rows
    }
    other = dataclasses.replace(EMPTY, facts={"seed": 1})
    with pytest.raises(ValueError, match=r"table-0-of-2\.jsonl was made with another facts"):
        gather(other, tmp_path / "other.jsonl", files)


def test_shards_share_the_work_and_together_are_the_table(tmp_path):
    parts = [sensitivity(run, EMPTY, METRICS, shard=(i, 3)).rows for i in range(3)]
    assert [len(part) for part in parts] == [3, 3, 2]
    keys = {row.key for part in parts for row in part}
    assert keys == {row.key for row in sensitivity(run, EMPTY, METRICS).rows}


def test_a_table_of_other_settings_is_refused(tmp_path):
    sensitivity(run, EMPTY, METRICS, file=tmp_path / "table.jsonl")
    other = dataclasses.replace(EMPTY, facts={"seed": 1})
    with pytest.raises(ValueError, match="made with another facts"):
        sensitivity(run, other, METRICS, file=tmp_path / "table.jsonl")


@pytest.mark.parametrize("line", ["{}", "nonsense", '{"layers": 3, "bits": 4, "values": {}, "range": null}'])
def test_a_damaged_line_is_named(tmp_path, line):
    file = tmp_path / "table.jsonl"
    sensitivity(run, EMPTY, METRICS, file=file)
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(ValueError, match="line 10 is damaged"):
        Table.read(file)


@pytest.mark.parametrize("text", ["[]\n", "no table\n", json.dumps({"recipe": {}}) + "\n"])
def test_a_file_that_is_no_table_is_refused(tmp_path, text):
    file = tmp_path / "table.jsonl"
    file.write_text(text)
    with pytest.raises(ValueError, match="is no table of a search"):
        Table.read(file)


def test_a_measure_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="gives a loss that is not finite"):
        sensitivity(run, EMPTY, {"loss": lambda samples, reference: float("nan")})
