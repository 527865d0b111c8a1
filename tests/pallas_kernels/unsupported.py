"""What every kernel test does with an implementation that is not for this device."""

import functools
from collections.abc import Callable
from typing import Any

import pytest

from pallas_kernels.dispatch import UnsupportedError


def skip_unsupported(op: Callable[..., Any]) -> Callable[..., Any]:
    """The op; where it says that it is unsupported, the test is skipped with that reason."""

    @functools.wraps(op)
    def call(*args: Any, **options: Any) -> Any:
        try:
            return op(*args, **options)
        except UnsupportedError as error:
            pytest.skip(str(error))

    return call
