import jax.numpy as jnp
import numpy as np
import pytest

from viditq_jax.sampling.guidance import guided

X = jnp.zeros((1, 1, 1, 4))
T, STEP = jnp.array([500.0]), jnp.int32(0)
COND = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]  # four channels of prediction, four of variance
UNCOND = [0.0, 1.0, 1.0, 2.0, 50.0, 60.0, 70.0, 80.0]


def two_halves(first, second):
    """A model whose batch of two gives `first`, then `second`."""
    return lambda x, t, i: jnp.array([first, second])[:, None, None, :]


def call(denoise):
    return np.asarray(denoise(X, T, STEP))[0, 0, 0]


def test_all_channels_of_the_prediction_are_guided_and_the_variance_is_not():
    # u + 3 (c - u) = 0 + 3, 1 + 3, 1 + 6, 2 + 6
    np.testing.assert_array_equal(call(guided(two_halves(COND, UNCOND), 3.0)), [3, 4, 7, 8, 5, 6, 7, 8])


def test_three_channels_are_guided_and_the_fourth_is_conditional():
    found = call(guided(two_halves(COND, UNCOND), 3.0, channels=3))
    np.testing.assert_array_equal(found, [3, 4, 7, 4, 5, 6, 7, 8])


def test_the_other_order_swaps_the_halves():
    found = call(guided(two_halves(UNCOND, COND), 3.0, channels=3, order="uncond_first"))
    np.testing.assert_array_equal(found, [3, 4, 7, 4, 5, 6, 7, 8])


@pytest.mark.parametrize(("scale", "wanted"), [(1.0, COND[:4]), (0.0, UNCOND[:4])])
def test_scale_one_is_the_conditional_and_zero_the_unconditional_prediction(scale, wanted):
    np.testing.assert_array_equal(call(guided(two_halves(COND[:4], UNCOND[:4]), scale)), wanted)


def test_a_traced_scale_gives_what_a_number_gives():
    import jax

    traced = jax.jit(lambda scale: guided(two_halves(COND, UNCOND), scale)(X, T, STEP))(3.0)
    np.testing.assert_array_equal(traced[0, 0, 0], call(guided(two_halves(COND, UNCOND), 3.0)))


def test_the_model_is_called_once_with_state_and_time_doubled():
    calls = []

    def model(x, t, i):
        calls.append((x, t, i))
        return x

    x = jnp.arange(24.0).reshape(3, 1, 2, 4)
    t = jnp.array([1.0, 2.0, 3.0])
    guided(model, 2.0)(x, t, STEP)
    assert len(calls) == 1
    np.testing.assert_array_equal(calls[0][0], np.concatenate([x, x]))
    np.testing.assert_array_equal(calls[0][1], [1, 2, 3, 1, 2, 3])


def test_mixing_is_done_in_float32():
    model = two_halves([1.0078125] * 4, [1.0] * 4)
    found = call(guided(lambda x, t, i: model(x, t, i).astype(jnp.bfloat16), 1.5))
    np.testing.assert_array_equal(found, [1.01171875] * 4)  # needs 9 bits after the point; bfloat16 has 7


def test_bad_requests_are_errors():
    with pytest.raises(ValueError, match=r"unknown order 'cond_frist'.* did you mean 'cond_first'"):
        guided(two_halves(COND, UNCOND), 3.0, order="cond_frist")
    for channels in (0, 5):
        with pytest.raises(ValueError, match=f"asked to guide {channels} channels of a state with 4"):
            guided(two_halves(COND, UNCOND), 3.0, channels=channels)(X, T, STEP)
    with pytest.raises(ValueError, match="the model gave 1 samples for a doubled batch of 2"):
        guided(lambda x, t, i: x[:1], 3.0)(X, T, STEP)
