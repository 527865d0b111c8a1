"""diffusers' scheduler_config.json to the facts of one of our samplers.

A key that a file leaves out has the default of the diffusers class, which is not always ours. What we do not
compute is refused by name and value; keys that only tune a feature which is off are ignored.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from converters.tensor import ConversionError


@dataclasses.dataclass(frozen=True)
class _Kind:
    """A scheduler class: its sampler, `options` (key -> ours, default of diffusers), `only` (key -> default
    of
    diffusers, supported values), `inert` keys, and `fixed` options of ours."""

    sampler: str
    options: Mapping[str, tuple[str, Any]]
    only: Mapping[str, tuple[Any, tuple[Any, ...]]]
    inert: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_SCHEDULE = {
    "beta_schedule": ("beta_schedule", "linear"),
    "beta_start": ("beta_start", 0.0001),
    "beta_end": ("beta_end", 0.02),
    "num_train_timesteps": ("num_train_timesteps", 1000),
    "prediction_type": ("prediction", "epsilon"),
    "steps_offset": ("steps_offset", 0),
}
_OFF = (False, (False, None))
_COMMON = {"trained_betas": (None, (None,)), "thresholding": _OFF, "rescale_betas_zero_snr": _OFF}
_CLIPPING = ("dynamic_thresholding_ratio", "sample_max_value", "clip_sample_range")
# A sigma list of its own is refused, whatever it is called.
_SIGMAS = {f"use_{name}_sigmas": _OFF for name in ("karras", "exponential", "beta")}

KINDS = {
    "DDIMScheduler": _Kind(
        "ddim",
        {
            **_SCHEDULE,
            "timestep_spacing": ("spacing", "leading"),
            "set_alpha_to_one": ("set_alpha_to_one", True),
        },
        {**_COMMON, "clip_sample": (True, (False,))},
        (*_CLIPPING, "skip_prk_steps"),
    ),
    "DDPMScheduler": _Kind(
        "iddpm",
        {
            **_SCHEDULE,
            "timestep_spacing": ("spacing", "leading"),
            "variance_type": ("variance", "fixed_small"),
        },
        {**_COMMON, "clip_sample": (True, (False,))},
        _CLIPPING,
    ),
    "DPMSolverMultistepScheduler": _Kind(
        "dpm_solver",
        {
            **_SCHEDULE,
            "timestep_spacing": ("spacing", "linspace"),
            "final_sigmas_type": ("final_sigma", "zero"),
            "lower_order_final": ("lower_order_final", True),
        },
        {
            **_COMMON,
            **_SIGMAS,
            "algorithm_type": ("dpmsolver++", ("dpmsolver++",)),
            "solver_type": ("midpoint", ("midpoint",)),
            "solver_order": (2, (2,)),
            "euler_at_final": _OFF,
            "use_lu_lambdas": _OFF,
            "use_flow_sigmas": _OFF,
            "lambda_min_clipped": (float("-inf"), (float("-inf"), None, "-Infinity")),
            "variance_type": (
                None,
                (None, "learned", "learned_range"),
            ),  # a learned one is dropped by this sampler
        },
        (*_CLIPPING, "flow_shift", "time_shift_type", "use_dynamic_shifting", "base_shift", "max_shift"),
        {"grid": "integer"},
    ),
    "FlowMatchEulerDiscreteScheduler": _Kind(
        "flow_euler",
        {"num_train_timesteps": ("num_train_timesteps", 1000), "shift": ("shift", 1.0)},
        {
            **_SIGMAS,
            "use_dynamic_shifting": _OFF,
            "invert_sigmas": _OFF,
            "stochastic_sampling": _OFF,
            "shift_terminal": (None, (None,)),
        },
        ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len", "time_shift_type"),
        {"spacing": "training"},
    ),
}
# What a value of ours may be; a sampler refuses the rest too, but only when it is built.
_ALLOWED = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction": ("epsilon", "v_prediction"),
    "spacing": ("leading", "linspace", "trailing"),
    "final_sigma": ("zero", "sigma_min"),
    "variance": ("fixed_small", "fixed_large", "learned_range"),
}


def read_scheduler(config: Mapping[str, Any]) -> dict[str, Any]:
    """{"name": ..., "options": ...} of our sampler for the content of a scheduler_config.json.

    Raises ConversionError, which lists every key and value that we do not compute.
    """
    name = config.get("_class_name")
    kind = KINDS.get(str(name))
    if kind is None:
        raise ConversionError(f"the scheduler {name!r} is not supported; choose one of {', '.join(KINDS)}.")
    faults = []
    for key, (default, allowed) in kind.only.items():
        value = config.get(key, default)
        if value not in allowed:
            faults.append(f"{key}={value!r} (supported: {', '.join(map(repr, allowed))})")
    options = dict(kind.fixed)
    for key, (ours, default) in kind.options.items():
        value = options[ours] = config.get(key, default)
        kinds = (int, float) if isinstance(default, float) else (type(default),)
        if type(value) not in kinds:
            faults.append(f"{key}={value!r} (supported: {' or '.join(kind.__name__ for kind in kinds)})")
            continue
        if ours in _ALLOWED and value not in (allowed := _ALLOWED[ours]):
            faults.append(f"{key}={value!r} (supported: {', '.join(map(repr, allowed))})")
    known = kind.options.keys() | kind.only.keys() | set(kind.inert)
    for key, value in config.items():
        if key not in known and not key.startswith("_") and value not in (None, False):
            faults.append(f"{key}={value!r} (unknown to us)")
    if options.get("steps_offset") and options.get("spacing") != "leading":
        options["steps_offset"] = 0  # diffusers reads it for this spacing alone
    if faults:
        raise ConversionError(
            f"{name} with {'; '.join(sorted(faults))} is not supported; change the scheduler_config.json."
        )
    return {"name": kind.sampler, "options": options}
