"""What a record says of the machine that it was measured on."""

import os

import jax

from pallas_kernels.tuning import host_name


def device_text() -> str:
    """The accelerator; or the processor as it calls itself, with the threads that this process may use."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{host_name()}, {threads} thread{'s' if threads != 1 else ''}"
