"""An index may say where a pipeline's parts lie, and how it is guided; so two pipelines share parts."""

import json
from pathlib import Path

import pytest

from converters import ConversionError, convert

DEFAULT = Path(__file__).parents[2] / "viditq_jax/assets/default"
PARTS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")


def pipeline(folder: Path, **index: object) -> Path:
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def test_parts_are_read_where_the_index_says_and_guided_as_it_says(tmp_path):
    named = {name: str(DEFAULT / name) for name in PARTS}
    found = convert(pipeline(tmp_path, _class_name="PixArtSigmaPipeline", guidance={"scale": 3.0}, **named))
    beside = convert(DEFAULT)
    assert found.facts["guidance"] == beside.facts["guidance"] | {"scale": 3.0}
    assert {**found.facts, "guidance": None} == {**beside.facts, "guidance": None}
    assert found.files == beside.files


def test_a_folder_that_the_index_names_and_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ConversionError, match=r"names \.\./image/vae as its vae; there is no such folder"):
        convert(pipeline(tmp_path, transformer=str(DEFAULT / "transformer"), vae="../image/vae"))
