"""What people write, and what comes with a model: recipes, prompts, tokenizers, indices of folders."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from converters import convert
from tests import tiny
from tests.hostile.door import table, written
from viditq_jax.cli._common import conditions
from viditq_jax.conditions import Tokenizer
from viditq_jax.quant.recipe import load_recipe

SHAPES = {
    path: jax.ShapeDtypeStruct((64, 64), "float32") for path in ("blocks/0/fc1", "blocks/0/fc2", "head")
}


def recipe(rule: Any = None, **fields: Any) -> Callable[[Path], Any]:
    rules = [{"match": "*", "weight": "int8/channel"} if rule is None else rule]
    return written("r.json", json.dumps({"rules": rules, **fields}))


CASES = table(
    "recipe",
    lambda folder, out: load_recipe(folder / "r.json").resolve(SHAPES),
    {
        "no JSON": (written("r.json", "{rules: []}"), "r.json: line 1: .*; a recipe is a JSON object"),
        "no text": (written("r.json", b"\x80\4\xff"), "is no text"),
        "deep nesting": (written("r.json", "[" * 100_000), "nested too deeply"),
        "deep nesting of a field": (written("r.json", '{"expect":' * 5_000), "nested too deeply|line 1"),
        "a list": (written("r.json", "[]"), "found list, expected an object"),
        "nothing": (written("r.json", ""), "line 1"),
        "an unknown field": (recipe(eval="__import__('os')"), "unknown field 'eval'"),
        "an unknown field of a rule": (
            recipe({"match": "*", "weigth": "int8/channel"}),
            "did you mean weight",
        ),
        "a field twice": (written("r.json", '{"rules": [], "rules": []}'), "'rules' stands twice"),
        "0 bits": (recipe({"match": "*", "weight": "int0/channel"}), "0 bits; choose 2 to 8"),
        "1000 bits": (recipe({"match": "*", "weight": "int1000/channel"}), "1000 bits; choose 2 to 8"),
        "10**5000 bits": (recipe({"match": "*", "weight": f"int{'9' * 5000}/channel"}), "weight: "),
        "groups of 0": (recipe({"match": "*", "weight": "int4/group0"}), "groups of 0"),
        "NaN": (written("r.json", '{"expect": {"psnr_db": NaN}, "rules": []}'), "NaN is no number"),
        "an alpha of NaN": (
            recipe({"match": "*", "weight": "int8/channel", "prepare": ["balance:alpha=nan"]}),
            "alpha is nan; it lies in",
        ),
        "an endless rank": (
            recipe({"match": "*", "weight": "int8/channel", "low_rank": 10**30}),
            "is more than",
        ),
        "a method by a path": (
            recipe({"match": "*", "weight": "int8/channel", "rounding": "../../os"}),
            "'../../os' is not known",
        ),
        "a method by a module": (
            recipe({"match": "*", "weight": "int8/channel", "prepare": ["os.system"]}),
            "'os.system' is not known",
        ),
        "a pattern that matches nothing": (
            recipe({"match": "nowhere", "weight": None}),
            "matches none of the 3",
        ),
        "a pattern that takes years": (
            recipe({"match": "*a" * 400 + "b", "weight": "int8/channel"}),
            "matches none of the 3",
        ),
        "a pattern of 100,000 characters": (recipe({"match": "x" * 100_000}), "more than 1000 characters"),
        "20,000 patterns": (recipe({"match": [str(i) for i in range(20_000)]}), "20000 patterns"),
        "20,000 rules": (recipe(attention=[{}] * 20_000), "20001 rules"),
        "64 MB": (lambda f: (f / "r.json").write_bytes(b" " * (1 << 26)), "has 67108864 bytes"),
        "ranges that are no numbers": (recipe(ranges=[math.pi, "x", None]), "expected a list of integers"),
        "ranges of the universe": (recipe(ranges=[10**40]), "do not rise between 1 and 999"),
    },
    lines=True,
)

CASES += table(
    "prompts",
    lambda folder, out: conditions((), folder / "p.txt", (), tiny.pipeline()),
    {
        "a picture": (written("p.txt", b"\x89PNG\r\n\x1a\n\xff"), "p.txt is not a text file"),
        "invalid UTF-8": (written("p.txt", b"a cat\n\xc3\x28\n"), "p.txt is not a text file"),
        "UTF-16": (written("p.txt", "a cat\n".encode("utf-16")), "p.txt is not a text file"),
        "half of a pair": (written("p.txt", "a \ud800 cat"), "p.txt is not a text file"),
        "nothing": (written("p.txt", b""), "p.txt holds no prompt"),
        "a mark and blank lines": (written("p.txt", b"\xef\xbb\xbf\n \n"), "p.txt holds no prompt"),
        "NUL": (written("p.txt", b"a cat\na \0 dog\n"), "p.txt prompt 2 holds a NUL"),
        "a line of 1,000,000 characters": (
            written("p.txt", "a cat\n" + "a" * 1_000_000),
            "prompt 2 has 1000000",
        ),
        "a folder": (lambda f: (f / "p.txt").mkdir(), "is a folder"),
    },
)

CASES += [
    *table(
        "prompt",
        lambda folder, out: tiny.pipeline().encoder.encode_text(
            ["\ud800" if folder.name == "" else "\udcff cat"]
        ),
        {"half of a pair": (lambda folder: None, "half a character")},
    ),
    *table(
        "tokenizer",
        lambda folder, out: Tokenizer.load(folder / "t")(["a cat"], 12),
        {
            "a pickle": (written("t", b"\x80\4cos\nsystem\n."), "neither a SentencePiece model nor"),
            "JSON of something else": (
                written("t", b'{"model": {"type": "Evil"}}'),
                "neither a SentencePiece",
            ),
            "deep nesting": (written("t", b'{"a":' * 10_000), "neither a SentencePiece model nor"),
            "nothing": (written("t", b""), "it is empty"),
        },
    ),
]

CASES += table(
    "checkpoint folder",
    lambda folder, out: convert(folder),
    {
        "an index nested deeply": (written("model_index.json", "[" * 100_000), "is not valid JSON"),
        "an index that leads nowhere": (
            written("model_index.json", '{"transformer": "../../nowhere"}'),
            "there is no such folder",
        ),
        "an index that is a list": (written("model_index.json", "[]"), "holds a JSON list"),
    },
)
