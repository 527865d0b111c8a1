"""Time and memory of the test run, most of which are those of programs that are compiled and run once."""

import collections
import gc
import os
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

# Programs compile in less than half the time, and every number that is not a sum in another order stays.
# XLA_FLAGS="" gives programs as users have them.
QUICK_TO_COMPILE = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
FOUR_DEVICES = "--xla_force_host_platform_device_count=4"  # of which all but a few tests use the first
# Before JAX reads them, at its first use of a device.
os.environ.setdefault("XLA_FLAGS", f"{QUICK_TO_COMPILE} {FOUR_DEVICES}")
os.environ.setdefault("VIDITQ_COMPILATION_CACHE", "off")  # no test leaves anything in the user's folders

# Half a minute and more, the longest first: begun last, one would run alone at the end.
LONGEST = (
    "test_examples.py", "test_post_training.py", "test_scale.py", "test_cli.py", "test_compare.py",
    "test_hostile.py", "test_pipeline.py", "test_stdit.py", "test_bits.py", "test_replicas.py",
    "test_doctor.py", "test_exported.py", "test_families.py", "test_brecq.py", "test_apply.py",
    "test_attention_rules.py", "test_calibrate.py", "test_end_to_end.py",
)  # fmt: skip
MOST_BYTES = 2 << 30
_PAGE = 4096


def resident_bytes() -> int:
    """Of this process; 0 where the system does not tell."""
    file = Path("/proc/self/statm")
    return _PAGE * int(file.read_text().split()[1]) if file.is_file() else 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; the others in their order."""
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests counted by `record_property`, summed: hostile inputs, kills."""
    counts: collections.Counter[str] = collections.Counter()
    for report in terminalreporter.getreports("passed"):
        counts.update(dict(report.user_properties))
    for what, count in counts.items():
        terminalreporter.write_line(f"{what}: {count}")


@pytest.fixture(scope="module", autouse=True)
def _small_heap() -> Iterator[None]:
    """After a file, programs are dropped if there are many; what stays is no business of the collector.

    Every collection would walk all programs that live: the last files of a run took twice their time.
    """
    yield
    if resident_bytes() > MOST_BYTES:
        gc.unfreeze()
        jax.clear_caches()
        gc.collect()
    gc.freeze()
