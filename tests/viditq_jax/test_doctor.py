"""What is said of a model before it is loaded is what is found once it is."""

import json

import jax
import pytest

from pallas_kernels import dispatch
from tests import tiny
from viditq_jax import doctor, programs
from viditq_jax.cli import main
from viditq_jax.load import describe, load_pipeline
from viditq_jax.quant.recipe import Recipe, Rule, load_recipe
from viditq_jax.quant.spec import Spec

RECIPE = Recipe(
    (Rule(("blocks/*",), Spec.parse("int4/channel/asym"), Spec.parse("int8/token"), ("hadamard",)),)
)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("doctor") / "artifact"
    tiny.quantized(tiny.pipeline(depth=1), RECIPE).save(folder)
    return folder


def test_the_memory_of_each_part_is_known_without_a_weight(artifact):
    told, loaded = describe(artifact), load_pipeline(artifact)
    found = doctor.memory(told, 4)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(told.denoiser))
    assert {name: found[name] for name in loaded.nets()} == {
        n: net.nbytes() for n, net in loaded.nets().items()
    }
    assert (
        found["latents"]
        == 4 * 4 * loaded.latent_shape()[0] * loaded.latent_shape()[1] * loaded.latent_shape()[2]
    )
    assert doctor.bfloat16_bytes(told.denoiser) == tiny.pipeline(depth=1).denoiser.astype("bfloat16").nbytes()


def test_the_compiler_says_what_the_programs_need(artifact):
    told, loaded = describe(artifact), load_pipeline(artifact)
    found = doctor.memory(told, 2, compiled=True)
    call = loaded.call(["a red apple", "gold"], seed=0)
    analysis = (
        programs.denoise.lower(loaded.denoiser, call, None, plan=loaded.plan()).compile().memory_analysis()
    )
    assert found["sampling loop"] == analysis.temp_size_in_bytes + analysis.output_size_in_bytes > 0
    assert found["decoding"] > 0


def test_every_op_of_a_step_is_named_with_what_computes_it(artifact):
    found = doctor.kernels(describe(artifact), batch=2)
    assert {each["op"] for each in found} == {"attention", "quantize_rows", "packed_matmul"}
    for each in found:
        assert set(each["others"]) | {each["implementation"]} == set(dispatch.implementations(each["op"]))
    products = [each for each in found if each["op"] == "packed_matmul"]
    assert all(each["others"]["mosaic_gpu"] for each in products)  # a CPU has a reason
    assert sum(each["calls"] for each in products) == 7


def test_the_command_says_it_and_refuses_a_second_recipe(artifact, capsys):
    assert main(["doctor", "-m", str(artifact), "--batch", "2"]) == 0
    text = capsys.readouterr().out
    assert "packed_matmul" in text
    assert "not mosaic_gpu for packed_matmul: " in text
    assert main(["doctor", "-m", "default", "--recipe", "w8a8", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["memory"]["denoiser"] < 0.62 * told["bfloat16_denoiser_bytes"]
    assert told["recipe"] == "w8a8"
    assert main(["doctor", "-m", str(artifact), "--recipe", "w8a8"]) == 1
    assert "is quantized already" in capsys.readouterr().err


def test_a_recipe_that_does_not_fit_is_refused_before_anything_is_loaded():
    with pytest.raises(ValueError, match="matches"):
        describe("default", Recipe((Rule(("nothing/*",), Spec.parse("int8/channel")),)))
    assert describe("default", load_recipe("w4a8")).recipe.name == "w4a8"
