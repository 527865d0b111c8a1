"""The peak device memory of one step of one variant; `pipelines.measured_peak` runs it as a process.

python -m viditq_jax.bench.peak WORKLOAD VARIANT prints bytes. WORKLOAD is the fields of a Workload as JSON.
"""

import json
import sys

import jax

from viditq_jax.bench.models import Workload
from viditq_jax.bench.pipelines import step, variant


def main(workload: str, name: str) -> int:
    """Build the variant, run a step, and ask the device."""
    asked = Workload(**json.loads(workload))
    work, _ = step(variant(asked, name), asked)
    jax.block_until_ready(work.launch(0))
    return int(jax.devices()[0].memory_stats()["peak_bytes_in_use"])


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
