"""Conversion needs the memory of the result, and little more: measured in a process of its own."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from converters import families, rules, save_safetensors
from converters.tensor import Tensor
from viditq_jax.models import pixart
from viditq_jax.net import abstract

CONFIG = pixart.Config(input_size=64, depth=4, width=1152)  # 100 million parameters
SLACK = 1.3  # of the converted model
TOLD = {"heads": 16, "sample_size": 64, "interpolation_scale": 1.0}

CHILD = """
import resource, sys
import jax
import jax.numpy as jnp
from converters import convert

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

artifact = convert(sys.argv[1], dtype=jnp.dtype(sys.argv[2]), config={told})
jax.block_until_ready(jnp.ones(3, jnp.bfloat16) + 1)
before = peak()
net = artifact.nets["denoiser"]()
print(before, peak(), net.nbytes())
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An original checkpoint in float32; what its values are does not matter."""
    net = abstract(pixart.build, CONFIG)
    table = families.find("pixart").FORMATS["original"](CONFIG)
    arrays = {}
    for name, variable in net.variables():
        rule, sources = rules.choose(name, {}, table)
        parts = jax.eval_shape(rule.transform.write, variable.get_value())
        arrays |= {
            source: np.full(part.shape, 0.5, np.float32) for source, part in zip(sources, parts, strict=True)
        }
    return save_safetensors(tmp_path_factory.mktemp("memory") / "x.safetensors", arrays)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_peak_memory_is_that_of_the_result_and_one_tensor(checkpoint: Path, dtype: str) -> None:
    child = CHILD.replace("{told}", repr(TOLD))
    done = subprocess.run(
        [sys.executable, "-c", child, str(checkpoint), dtype], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    before, peak, result = map(int, done.stdout.split())
    largest = CONFIG.width * 4 * CONFIG.width * np.dtype(np.float32).itemsize  # the MLP
    largest = max(largest, CONFIG.caption_channels * CONFIG.width * 4)
    assert peak - before <= SLACK * result + largest


def test_opening_a_checkpoint_reads_no_tensor(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from converters import convert

    def refuse(_: Tensor) -> None:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(Tensor, "read", refuse)
    assert convert(checkpoint, config=TOLD).facts["denoiser"]["config"]["depth"] == 4
