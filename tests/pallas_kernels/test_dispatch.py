"""Choosing an implementation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import devices, dispatch
from pallas_kernels.quantize_rows import quantize_rows
from pallas_kernels.scaled_matmul import reference, scaled_matmul, xla
from tests.pallas_kernels.unsupported import skip_unsupported

X = jnp.ones((2, 4), jnp.int8)
ONE = jnp.ones((2, 1), jnp.float32)


@pytest.mark.parametrize("op", ["scaled_matmul", "packed_matmul", "quantize_rows", "attention"])
def test_xla_is_asked_last_and_the_reference_is_never_chosen(op):
    names = dispatch.implementations(op)
    assert names[-1] == "xla"
    assert "reference" not in names
    assert "cases" not in names


def test_an_unknown_implementation_is_an_error_that_lists_the_known_ones():
    with pytest.raises(LookupError, match=r"'cuda'.*xla, reference"):
        quantize_rows(jnp.ones((1, 4)), implementation="cuda")


def test_a_named_implementation_that_cannot_is_an_error_with_its_reason(monkeypatch):
    monkeypatch.setattr(xla, "unsupported", lambda *_, **__: "needs a Monday")
    with pytest.raises(dispatch.UnsupportedError, match="'xla' was asked for, but needs a Monday"):
        dispatch.run("scaled_matmul", "xla", X, X, ONE, ONE)


def test_when_none_can_the_error_lists_every_reason_and_nothing_falls_back(monkeypatch):
    monkeypatch.setattr(dispatch, "implementations", lambda op: ["xla"])
    monkeypatch.setattr(xla, "unsupported", lambda *_, **__: "needs a Monday")
    monkeypatch.setattr(reference, "run", lambda *_, **__: pytest.fail("fell back to the reference"))
    with pytest.raises(dispatch.UnsupportedError, match="xla: needs a Monday"):
        dispatch.run("scaled_matmul", None, X, X, ONE, ONE)
    assert dispatch.explain("scaled_matmul", X, X, ONE, ONE) == {"xla": "needs a Monday"}


def test_a_kernel_test_is_skipped_with_the_reason_that_its_implementation_gives(monkeypatch):
    monkeypatch.setattr(xla, "unsupported", lambda *_, **__: "needs a Monday")
    with pytest.raises(pytest.skip.Exception, match="needs a Monday"):
        skip_unsupported(scaled_matmul)(X, X, ONE, ONE, implementation="xla")


def test_programs_for_other_processes_are_those_of_xla():
    """Machine code that this process registered, and kernels for the device that it has, stay here."""
    for everywhere in (devices.Portable(), devices.Portable(cpu=True)):
        with devices.tracing_for(everywhere), dispatch.choices() as made:
            jax.eval_shape(lambda: scaled_matmul(X, X, ONE, ONE))
        assert [each.implementation for each in made] == ["xla"]
        assert all(reason for reason in made[0].others.values())


def test_calls_that_are_alike_share_one_trace_and_others_have_their_own(monkeypatch):
    traced = []
    real = xla.run

    def counted(x, *rest, **named):
        traced.append((named["out_dtype"], named["bias"] is None, devices.target()))
        return real(x, *rest, **named)

    monkeypatch.setattr(xla, "run", counted)
    dispatch._traced.clear_cache()
    bias = jnp.ones(2, jnp.float32)

    def products(x):
        same = [scaled_matmul(x, X, ONE, ONE * i, implementation="xla") for i in (1, 2, 3)]
        other = scaled_matmul(x, X, ONE, ONE, implementation="xla", out_dtype=jnp.float32)
        return *same, other, scaled_matmul(x, X, ONE, ONE, bias=bias, implementation="xla")

    found = jax.jit(products)(X)
    half, single = jnp.bfloat16, jnp.float32
    assert traced == [(half, True, None), (single, True, None), (half, False, None)]
    for i, y in zip((1, 2, 3), found[:3], strict=True):
        np.testing.assert_array_equal(y, np.full((2, 2), 4 * i, y.dtype))
    np.testing.assert_array_equal(found[4], np.full((2, 2), 5, found[4].dtype))
    with devices.tracing_for(devices.Portable()):
        jax.eval_shape(lambda x: products(x), X)  # a function that was not traced before
    assert traced[3:] == [(kind, alone, devices.Portable()) for kind, alone, _ in traced[:3]]
    dispatch._traced.clear_cache()
    with dispatch.choices() as made:
        jax.eval_shape(lambda x: [scaled_matmul(x, X, ONE, ONE * i) for i in (1, 2)], X)
    assert len(made) == 2, "a choice is heard for every call, traced or not"


def test_kernels_for_other_devices_are_not_imported_to_learn_that_they_cannot(monkeypatch):
    asked, real = [], dispatch._module
    monkeypatch.setattr(dispatch, "_module", lambda op, name: (asked.append(name), real(op, name))[1])
    reasons = dispatch.explain("quantize_rows", X.astype(jnp.float32), spec=None)
    assert (reasons["mosaic_gpu"], reasons["triton"], reasons["tpu"]) == (
        devices.NO_GPU, devices.NO_GPU, devices.NO_TPU,
    )  # fmt: skip
    assert not {"mosaic_gpu", "triton", "tpu"} & {*asked}
    with devices.tracing_for(devices.Tpu("TPU v5e")):
        dispatch.explain("hadamard", X.astype(jnp.float32), block=4, regular=False)
    assert "tpu" in asked
    assert "mosaic_gpu" not in asked
