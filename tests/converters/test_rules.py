"""The engine: tables of names in both directions, and all faults of a checkpoint in one error."""

from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from converters import ConversionError
from converters.rules import (
    CONV,
    LEFT_OUT,
    POINTWISE,
    SAME,
    Rule,
    Table,
    Transform,
    convert,
    copies,
    export,
    fused,
    patch,
    plan,
    same,
)
from converters.sources import open_source
from converters.tensor import Tensor
from viditq_jax.net import Net, abstract, initialize
from viditq_jax.nn.linear import NOTHING, After, Linear


class Toy(nnx.Module):
    def __init__(self, depth: int, *, rngs: nnx.Rngs):
        self.blocks = nnx.List([Linear(4, 6, rngs=rngs) for _ in range(depth)])


def build(depth: int, *, rngs: nnx.Rngs) -> Toy:
    return Toy(depth, rngs=rngs)


TABLE = Table((same("blocks.{i}.{leaf}", "layers.{i}.{leaf}"),))


def tensors(folder: Path, arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / "x.safetensors")
    return dict(open_source(folder / "x.safetensors").tensors)


def values(net: Net) -> dict[str, np.ndarray]:
    return {name: np.asarray(variable.get_value()) for name, variable in net.variables()}


TRANSFORMS: list[tuple[Transform, tuple[int, ...]]] = [
    (SAME, (3, 5)),
    (CONV, (3, 2, 4, 5)),
    (POINTWISE, (3, 5)),
    (patch(2), (6, 12)),
    (fused(3), (12, 5)),
    (fused(2), (8,)),
    (copies(4), (3, 2)),
]


@given(st.sampled_from(TRANSFORMS), st.integers(0, 2**31))
def test_reading_undoes_writing(case: tuple[Transform, tuple[int, ...]], seed: int) -> None:
    transform, shape = case
    x = np.random.default_rng(seed).standard_normal(shape)
    np.testing.assert_array_equal(transform.read(iter(transform.write(x))), x)


def test_a_patch_convolution_is_the_linear_layer_on_its_patches() -> None:
    """Torch flattens a patch as (channel, row, column), which is the order of its kernel [d, c, p, p]."""
    kernel = np.random.default_rng(0).standard_normal((5, 3, 2, 2))
    pixels = np.random.default_rng(1).standard_normal((3, 2, 2))
    np.testing.assert_allclose(
        patch(2).read(iter([kernel])) @ pixels.ravel(), np.einsum("dcpq,cpq->d", kernel, pixels), rtol=1e-12
    )


def test_placeholders_bind_a_number_one_part_or_anything() -> None:
    rule = Rule("b.{i}.{leaf}", ("x.{i}.q.{leaf}", "x.{i}.k.{leaf}"), fused(2))
    assert rule.match("b.12.bias") == ("x.12.q.bias", "x.12.k.bias")
    assert rule.match("b.x.bias") is None
    assert rule.match("b.1.a.bias") is None
    assert same("{name}.kernel", "{name}.weight").match("a.b.0.kernel") == ("a.b.0.weight",)
    assert same("a.b", "c").match("aXb") is None


def test_the_first_rule_whose_names_are_all_there_is_taken(tmp_path: Path) -> None:
    table = Table((same("blocks.{i}.{leaf}", "new.{i}.{leaf}"), *TABLE.rules))
    source = export(initialize(build, 2), TABLE)
    net = convert(abstract(build, 2), tensors(tmp_path, source), table, jnp.float32)
    assert export(net, table).keys() == {name.replace("layers", "new") for name in source}


@pytest.mark.parametrize("stored", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_values_are_rounded_once_to_the_type_asked_for(tmp_path: Path, stored: type, dtype: type) -> None:
    source = {name: array.astype(stored) for name, array in export(initialize(build, 2), TABLE).items()}
    net = convert(abstract(build, 2), tensors(tmp_path, source), TABLE, dtype)
    for name, array in export(net, TABLE).items():
        assert array.dtype == dtype
        np.testing.assert_array_equal(array, source[name].astype(dtype))


def test_every_fault_is_in_one_error_with_the_nearest_name(tmp_path: Path) -> None:
    source = export(initialize(build, 4), TABLE)
    source["layers.0.waight"] = source.pop("layers.0.weight")
    source["layers.1.bias"] = np.zeros(7, np.float32)
    source["layers.2.weight"] = source["layers.2.weight"].astype(np.int32)
    del source["layers.3.bias"]
    with pytest.raises(ConversionError) as caught:
        plan(abstract(build, 4), tensors(tmp_path, source), TABLE)
    message = str(caught.value)
    assert "5 faults" in message
    assert "missing: layers.0.weight, nearest: layers.0.waight" in message
    assert "missing: layers.3.bias" in message
    assert "unexpected: layers.0.waight" in message
    assert "layers.1.bias is [7], expected [6]" in message
    assert "layers.2.weight is int32, expected floating point" in message


def test_faults_that_differ_only_in_numbers_are_one_line(tmp_path: Path) -> None:
    source = {"layers.0.bias": np.zeros(6, np.float32)}
    with pytest.raises(ConversionError) as caught:
        plan(abstract(build, 40), tensors(tmp_path, source), TABLE)
    assert "79 faults" in str(caught.value)
    assert "layers.0.weight (40 of this kind)" in str(caught.value)
    assert "layers.1.bias (39 of this kind)" in str(caught.value)


def test_names_to_drop_are_no_fault(tmp_path: Path) -> None:
    source = {**export(initialize(build, 1), TABLE), "pos_embed": np.zeros(3, np.float32)}
    plan(abstract(build, 1), tensors(tmp_path, source), Table(TABLE.rules, drop=("pos_*",)))
    with pytest.raises(ConversionError, match="unexpected: pos_embed"):
        plan(abstract(build, 1), tensors(tmp_path, source), TABLE)


def test_copies_that_differ_are_refused(tmp_path: Path) -> None:
    table = Table((Rule("blocks.0.{leaf}", ("a.{leaf}", "b.{leaf}"), copies(2)),))
    source = export(initialize(build, 1), table)
    convert(abstract(build, 1), tensors(tmp_path, source), table, jnp.float32)
    source["b.bias"] = source["b.bias"] + 1
    with pytest.raises(ConversionError, match="blocks/0/bias: the 2 copies differ"):
        convert(abstract(build, 1), tensors(tmp_path, source), table, jnp.float32)


def test_a_parameter_without_a_place_is_refused_unless_it_is_left_out() -> None:
    net = initialize(build, 1)
    with pytest.raises(ConversionError, match="no place for the parameter blocks/0/bias"):
        export(net, Table((same("{name}.weight"),)))
    assert export(net, Table((same("{name}.weight"), Rule("{name}.bias", (), LEFT_OUT)))).keys() == {
        "blocks.0.weight"
    }


def test_a_quantized_model_is_not_exported() -> None:
    class Coded:
        """An object in a weight slot."""

        def linear(self, x: jax.Array, bias: jax.Array | None, after: After = NOTHING) -> jax.Array:
            return x

    net = initialize(build, 2).map_weights(lambda path, weight: Coded())
    with pytest.raises(
        ConversionError, match=r"2 parameters are not plain arrays, for instance blocks/0/weight"
    ):
        export(net, TABLE)


def test_the_result_is_the_module_that_was_exported(tmp_path: Path) -> None:
    net = initialize(build, 3, seed=1)
    again = convert(abstract(build, 3), tensors(tmp_path, export(net, TABLE)), TABLE, jnp.float32)
    assert again.graphdef == net.graphdef
    jax.tree.map(np.testing.assert_array_equal, values(again), values(net))
