"""`--target` and `--record` of the machine-code checks (`make check-kernels`, `make record-kernels`)."""

from collections.abc import Iterator

import pytest

from tests.machine_code.record import Record
from tests.machine_code.targets import TARGETS


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("machine code")
    group.addoption("--target", choices=TARGETS, help="the GPU to compile for; one a process")
    group.addoption("--record", action="store_true", help="write what is found as the record of the target")


@pytest.fixture(scope="session")
def target(pytestconfig: pytest.Config) -> str:
    return pytestconfig.getoption("--target")


@pytest.fixture(scope="session")
def record(target: str, request: pytest.FixtureRequest) -> Iterator[Record]:
    writing = request.config.getoption("--record")
    record = Record(target, writing=writing)
    yield record
    if writing and not request.session.testsfailed:
        record.write(TARGETS[target].name)
