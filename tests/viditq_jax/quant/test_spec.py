"""Number formats as text."""

import itertools

import jax.numpy as jnp
import pytest

from viditq_jax.quant.spec import Spec


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("int8/channel", Spec(8, "channel")),
        ("int8/channel/asym", Spec(8, "channel", symmetric=False)),
        ("int4/group64/asym", Spec(4, "group", 64, symmetric=False)),
        ("int8/group128", Spec(8, "group", 128)),
        ("int8/token", Spec(8, "token")),
        ("int6/tensor", Spec(6, "tensor")),
        ("int8/tensor/static", Spec(8, "tensor", static=True)),
        ("int8/tensor/asym/static", Spec(8, "tensor", symmetric=False, static=True)),
        (
            "int8/tensor/asym/static/range",
            Spec(8, "tensor", symmetric=False, static=True, per_range=True),
        ),
        ("int8/position/asym", Spec(8, "position", symmetric=False)),
        ("fp8/channel", Spec(8, "channel", kind="fp")),
        ("fp8/tensor", Spec(8, "tensor", kind="fp")),
        ("fp8/token", Spec(8, "token", kind="fp")),
        ("fp8/tensor/static", Spec(8, "tensor", static=True, kind="fp")),
    ],
)
def test_text_and_spec_are_the_same_thing(text, spec):
    assert Spec.parse(text) == spec
    assert str(spec) == text


def possible():
    """Every spec that is not refused, of all values that the fields could take."""
    where = [*itertools.product(["channel", "tensor", "token", "position"], [None, 64])]
    where += itertools.product(["group"], [None, 32, 64, 128, 48])
    flags = itertools.product([True, False], repeat=3)
    for bits, (granularity, group), kind, (symmetric, static, per_range) in itertools.product(
        range(1, 10), where, ["int", "fp"], flags
    ):
        try:
            yield Spec(bits, granularity, group, symmetric, static, kind, per_range)
        except ValueError:
            continue


def test_every_spec_comes_back_from_its_text_and_is_for_weights_or_for_inputs():
    """7 bits, 2 symmetries, 9 of channel, tensor, 3 groups, token, position, static, range; and 5 floats."""
    specs = list(possible())
    assert len(specs) == len(set(map(str, specs))) == 7 * 2 * 9 + 5
    for spec in specs:
        assert Spec.parse(str(spec)) == spec
        assert spec.for_weight != spec.for_input


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int8", "no number format.*int4/group64/asym"),
        ("bf16/channel", "no number format"),
        ("int8/channel/sym", "no number format"),
        ("int8/tensor/static/asym", "no number format"),
        ("int9/channel", "choose 2 to 8"),
        ("int1/channel", "choose 2 to 8"),
        ("int4/group48", "choose 32, 64 or 128"),
        ("int4/group", "no number format"),
        ("int8/token/static", "int8/tensor/static"),
        ("int8/position/static", "int8/tensor/static"),
        ("int8/channel/static", "weights need no mark"),
        ("int8/channel/range", "int8/tensor/static/range; weights keep their scale"),
        ("int8/token/range", "a dynamic scale follows the input in every range"),
        ("fp6/channel", "write fp8, or int2 to int8"),
        ("fp8/channel/asym", "drop asym, or write int8"),
        ("fp8/group64", "write fp8/channel, or int8/group64"),
        ("fp8/position", "write fp8/token, or int8/position"),
        ("fp8/token/static", "fp8/tensor/static"),
    ],
)
def test_other_texts_are_errors_that_say_what_to_write(text, message):
    with pytest.raises(ValueError, match=message):
        Spec.parse(text)


def test_only_weights_of_up_to_four_bits_are_packed():
    packed = {
        text: Spec.parse(text).packed
        for text in ("int4/channel", "int3/group32", "int6/channel", "int8/group64", "int4/token")
    }
    assert [text for text, is_packed in packed.items() if is_packed] == ["int4/channel", "int3/group32"]


def test_codes_are_int8_or_float8():
    assert Spec.parse("int4/token").dtype == jnp.int8
    assert Spec.parse("fp8/token").dtype == jnp.float8_e4m3fn
