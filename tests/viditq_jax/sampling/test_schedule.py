import numpy as np
import pytest

from viditq_jax.sampling import schedule
from viditq_jax.sampling.ddim import DDIM
from viditq_jax.sampling.dpm_solver import DPMSolver
from viditq_jax.sampling.flow_euler import FlowEuler
from viditq_jax.sampling.iddpm import IDDPM

RESPACED_20 = [0, 53, 105, 158, 210, 263, 315, 368, 421, 473, 526, 578, 631, 684, 736, 789, 841, 894, 946]


def test_spacing_k_is_even_and_rounded_as_in_the_original_codes():
    assert list(schedule.timesteps("K", 20))[::-1] == [*RESPACED_20, 999]
    hundred = list(schedule.timesteps("K", 100))[::-1]
    assert hundred[:3] == [0, 10, 20]
    assert hundred[-3:] == [979, 989, 999]
    assert list(schedule.timesteps("K", 1)) == [0]
    assert list(schedule.timesteps("K", 7, 7)) == [6, 5, 4, 3, 2, 1, 0]


def test_spacing_ddimk_takes_the_smallest_stride_that_gives_exactly_the_count():
    assert list(schedule.timesteps("ddimK", 50)) == list(range(980, -1, -20))
    # Strides 143 to 166 all give 7 of 1000; the smallest wins.
    assert list(schedule.timesteps("ddimK", 7)) == list(range(858, -1, -143))


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
def test_the_other_spacings_are_those_of_diffusers_for_every_count(spacing):
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(timestep_spacing=spacing)
    for count in [*range(1, 260), 333, 500, 999, 1000]:
        theirs.set_timesteps(count)
        ours = schedule.timesteps(spacing, count)
        # For some counts diffusers gets one timestep too many, at or below zero; we return the count.
        assert list(ours) == theirs.timesteps.tolist()[:count], count
        assert len(ours) == count


def test_leading_takes_an_offset_and_another_number_of_training_timesteps():
    assert list(schedule.timesteps("leading", 4, 100, steps_offset=1)) == [76, 51, 26, 1]


def test_continuous_dpm_solver_asks_for_fractional_times():
    times = DPMSolver(grid="continuous").table(20)["t"]
    np.testing.assert_allclose(times, np.linspace(999, 49.95, 20), rtol=1e-7)


def test_integer_dpm_solver_asks_for_whole_times():
    times = DPMSolver(grid="integer").table(20)["t"]
    assert list(times[:3]) == [999, 949, 899]
    assert times[-1] == 50


def test_default_levels_of_sd3_are_shifted_twice():
    times = FlowEuler(shift=3.0, spacing="training").table(28)["t"]
    np.testing.assert_allclose(times[[0, 1, 2, -2, -1]], [1000, 987.4, 974.1, 110.9, 8.93], atol=0.05)


def test_uniform_levels_leave_out_zero():
    levels = schedule.flow_sigmas("uniform", 30, 1.0)
    np.testing.assert_allclose(levels, np.linspace(1, 0, 31), atol=1e-15)


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("count", [10, 1000])
def test_signal_shares_are_those_of_diffusers(kind, count):
    from diffusers import DDIMScheduler

    ours = schedule.VPSchedule(beta_schedule=kind, num_train_timesteps=count).alphas_cumprod()
    theirs = DDIMScheduler(beta_schedule=kind, num_train_timesteps=count).alphas_cumprod.numpy()
    # Theirs are float32: the product of 1000 factors, each within 6e-8 of the truth.
    np.testing.assert_allclose(ours, theirs, rtol=1000 * 6e-8)
    assert ours.dtype == np.float64


def test_video_shift_grows_with_the_root_of_pixels_and_latent_frames():
    assert schedule.video_shift(512, 512) == 1
    assert schedule.video_shift(1024, 512) == pytest.approx(2**0.5)
    assert schedule.video_shift(512, 512, frames=51) == pytest.approx(15**0.5)
    with pytest.raises(ValueError, match="9 frames have no shift"):
        schedule.video_shift(512, 512, frames=9)


def test_dynamic_shift_is_a_line_in_its_logarithm():
    assert np.log(schedule.dynamic_shift(256)) == pytest.approx(0.5)
    assert np.log(schedule.dynamic_shift(4096)) == pytest.approx(1.15)
    assert np.log(schedule.dynamic_shift(2176)) == pytest.approx((0.5 + 1.15) / 2)


@pytest.mark.parametrize(
    "sampler", [DDIM(), IDDPM(), DPMSolver(), DPMSolver(grid="integer"), FlowEuler()], ids=repr
)
def test_fewer_than_one_step_is_an_error(sampler):
    with pytest.raises(ValueError, match="at least 1"):
        sampler.table(0)


def test_more_steps_than_training_timesteps_are_an_error():
    with pytest.raises(ValueError, match=r"1001 distinct timesteps.* trained with 1000"):
        DDIM().table(1001)


def test_a_count_that_no_stride_gives_is_an_error_that_names_its_neighbours():
    with pytest.raises(ValueError, match=r"exactly 300; nearest counts: 200, 250, 334"):
        schedule.timesteps("ddimK", 300)


def test_an_offset_that_is_unused_or_too_large_is_an_error():
    with pytest.raises(ValueError, match="'leading' alone, not by 'trailing'"):
        DDIM(spacing="trailing", steps_offset=1).table(10)
    with pytest.raises(ValueError, match="leads to 1000, past the last one, 999"):
        DDIM(spacing="leading", steps_offset=1).table(1000)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DDIM(spacing="leadin"), "unknown spacing 'leadin'.* did you mean 'leading'"),
        (lambda: IDDPM(prediction="v"), "unknown prediction 'v'; allowed: epsilon, v_prediction"),
        (lambda: IDDPM(variance="fixed"), "unknown variance 'fixed'"),
        (lambda: DPMSolver(grid="whole"), "unknown grid 'whole'"),
        (lambda: DPMSolver(spacing="K"), "unknown spacing 'K'"),
        (lambda: DPMSolver(final_sigma="one"), "unknown final_sigma 'one'"),
        (lambda: FlowEuler(velocity="up"), "unknown velocity 'up'"),
        (lambda: FlowEuler(spacing="even"), "unknown spacing 'even'"),
        (lambda: FlowEuler(shift=0.0), "shift is 0.0; it must be above 0"),
        (lambda: DDIM(eta=1.5), "eta is 1.5; it must be in"),
        (lambda: DDIM(beta_schedule="cosine"), "unknown beta_schedule 'cosine'"),
        (lambda: DDIM(beta_start=0.03), "betas 0.03 to 0.02"),
        (lambda: DDIM(num_train_timesteps=0), "num_train_timesteps is 0"),
    ],
)
def test_options_out_of_range_are_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_continuous_grid_refuses_a_schedule_that_it_would_have_to_cut():
    with pytest.raises(
        ValueError, match=r"'squaredcos_cap_v2' with 1000 timesteps falls to .*grid='integer'"
    ):
        DPMSolver(beta_schedule="squaredcos_cap_v2").table(20)
