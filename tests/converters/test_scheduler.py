"""scheduler_config.json to samplers: the timesteps of diffusers, and a refusal of what we do not compute."""

import json
from typing import Any

import numpy as np
import pytest
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from converters import ConversionError
from converters.scheduler import read_scheduler
from viditq_jax import plugins


def config_of(scheduler: Any) -> dict[str, Any]:
    """What diffusers writes to the file."""
    return dict(json.loads(scheduler.to_json_string()))


def sampler_of(config: dict[str, Any]) -> Any:
    facts = read_scheduler(config)
    return plugins.find("viditq_jax.sampling", facts["name"], "SAMPLER")(**facts["options"])


@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler(clip_sample=False),
        DDIMScheduler(clip_sample=False, timestep_spacing="trailing", prediction_type="v_prediction"),
        DDIMScheduler(
            clip_sample=False, steps_offset=1, set_alpha_to_one=False, beta_schedule="scaled_linear"
        ),
        DDIMScheduler(clip_sample=False, steps_offset=1, timestep_spacing="linspace"),
        DDPMScheduler(clip_sample=False, variance_type="learned_range"),
        DDPMScheduler(clip_sample=False, beta_schedule="squaredcos_cap_v2"),
        DPMSolverMultistepScheduler(),
        DPMSolverMultistepScheduler(
            timestep_spacing="leading", steps_offset=1, final_sigmas_type="sigma_min"
        ),
        DPMSolverMultistepScheduler(timestep_spacing="trailing", lower_order_final=False),
        FlowMatchEulerDiscreteScheduler(shift=3.0),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, int) else str(value),
)
def test_the_sampler_visits_the_timesteps_of_diffusers(scheduler: Any, steps: int) -> None:
    scheduler.set_timesteps(steps)
    ours = sampler_of(config_of(scheduler)).table(steps)["t"]
    # Timesteps of a flow are float32 numbers up to 1000: one rounding on either side is 2 * 1000 * 2^-24.
    np.testing.assert_allclose(ours, scheduler.timesteps.numpy(), rtol=0, atol=2 * 1000 * 2**-24)


def test_what_a_file_leaves_out_has_the_default_of_diffusers() -> None:
    assert (
        read_scheduler({"_class_name": "DDIMScheduler", "clip_sample": False})["options"]["spacing"]
        == "leading"
    )
    with pytest.raises(ConversionError, match=r"clip_sample=True \(supported: False\)"):
        read_scheduler({"_class_name": "DDIMScheduler"})


@pytest.mark.parametrize(
    ("scheduler", "change", "what"),
    [
        (
            EulerDiscreteScheduler(),
            {},
            "the scheduler 'EulerDiscreteScheduler' is not supported; choose one of",
        ),
        (DDIMScheduler(clip_sample=False), {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr=True"),
        (DDIMScheduler(clip_sample=False), {"trained_betas": [0.1]}, r"trained_betas=\[0\.1\]"),
        (DDIMScheduler(clip_sample=False), {"prediction_type": "sample"}, "prediction_type='sample'"),
        (
            DDPMScheduler(clip_sample=False),
            {"variance_type": "fixed_small_log"},
            "variance_type='fixed_small_log'",
        ),
        (DPMSolverMultistepScheduler(), {"solver_order": 3}, r"solver_order=3 \(supported: 2\)"),
        (
            DPMSolverMultistepScheduler(),
            {"algorithm_type": "sde-dpmsolver++"},
            "algorithm_type='sde-dpmsolver",
        ),
        (DPMSolverMultistepScheduler(), {"use_karras_sigmas": True}, "use_karras_sigmas=True"),
        (
            DDIMScheduler(clip_sample=False),
            {"beta_start": "0.1"},
            r"beta_start='0\.1' \(supported: int or float",
        ),
        (DDIMScheduler(clip_sample=False), {"steps_offset": "1"}, r"steps_offset='1' \(supported: int\)"),
        (DPMSolverMultistepScheduler(), {"brand_new": 3}, r"brand_new=3 \(unknown to us\)"),
        (FlowMatchEulerDiscreteScheduler(), {"use_dynamic_shifting": True}, "use_dynamic_shifting=True"),
    ],
    ids=lambda value: "" if not isinstance(value, dict) else "".join(value),
)
def test_what_we_do_not_compute_is_refused_by_name_and_value(
    scheduler: Any, change: dict[str, Any], what: str
) -> None:
    with pytest.raises(ConversionError, match=what):
        read_scheduler({**config_of(scheduler), **change})


def test_all_faults_are_in_one_error() -> None:
    config = {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 1, "solver_type": "heun"}
    with pytest.raises(ConversionError, match=r"solver_order=1 .*; solver_type='heun'"):
        read_scheduler(config)
