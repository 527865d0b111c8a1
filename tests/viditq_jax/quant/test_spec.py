"""Number formats as text."""

import pytest

from viditq_jax.quant.spec import Spec


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("int8/channel", Spec(8, "channel")),
        ("int8/channel/asym", Spec(8, "channel", symmetric=False)),
        ("int4/group64/asym", Spec(4, "group", 64, symmetric=False)),
        ("int8/token", Spec(8, "token")),
        ("int6/tensor", Spec(6, "tensor")),
        ("int8/tensor/static", Spec(8, "tensor", static=True)),
        ("int8/tensor/asym/static", Spec(8, "tensor", symmetric=False, static=True)),
    ],
)
def test_text_and_spec_are_the_same_thing(text, spec):
    assert Spec.parse(text) == spec
    assert str(spec) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int8", "no number format.*int4/group64/asym"),
        ("fp8/channel", "no number format"),
        ("int8/channel/sym", "no number format"),
        ("int8/tensor/static/asym", "no number format"),
        ("int9/channel", "choose 2 to 8"),
        ("int1/channel", "choose 2 to 8"),
        ("int4/group48", "choose 32, 64 or 128"),
        ("int4/group", "no number format"),
        ("int8/group64", "use channel at 8 bits"),
        ("int8/token/static", "int8/tensor/static"),
        ("int8/channel/static", "weights need no mark"),
    ],
)
def test_other_texts_are_errors_that_say_what_to_write(text, message):
    with pytest.raises(ValueError, match=message):
        Spec.parse(text)


def test_only_weights_of_up_to_four_bits_are_packed():
    packed = {
        text: Spec.parse(text).packed
        for text in ("int4/channel", "int3/group32", "int6/channel", "int4/token")
    }
    assert packed == {"int4/channel": True, "int3/group32": True, "int6/channel": False, "int4/token": False}
