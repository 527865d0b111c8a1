"""A tensor that still lies in its file: it knows its shape and type, and is read when asked for."""

import dataclasses
import math
from pathlib import Path

import ml_dtypes
import numpy as np
from jaxtyping import Shaped

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class ConversionError(ValueError):
    """A checkpoint that does not become one of our models."""


class SourceError(ConversionError):
    """A file or folder that cannot be read as a checkpoint."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where a tensor lies: element `index` is at byte `offset + itemsize * dot(index, strides)` of `file`.

    strides: in elements, never negative; row-major where not given. Those of axes of one element do not
        count.
    The bytes are read, not mapped: a file that shrinks meanwhile is then an error and not a signal, and no
    page of it counts as memory of the process.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    file: Path
    offset: int
    strides: tuple[int, ...] | None = None

    def span(self) -> int:
        """How many elements lie between the first and the last one, both counted."""
        if 0 in self.shape:
            return 0
        if self.strides is None:
            return math.prod(self.shape)
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))

    def read(self) -> Shaped[np.ndarray, "..."]:
        """The values, in the type of the file.

        Raises SourceError if the file no longer holds them.
        """
        count = self.span() * self.dtype.itemsize
        try:
            data = np.fromfile(self.file, np.uint8, count, offset=self.offset)
        except OSError as error:
            raise SourceError(
                f"{self.file} cannot be read ({error}); check that it is still there."
            ) from error
        if data.size != count:
            raise SourceError(
                f"{self.file} ends {count - data.size} bytes before the end of a tensor at byte "
                f"{self.offset}; it changed while it was read. Copy or download it again."
            )
        values = data.view(self.dtype)
        if self.strides is None:
            return values.reshape(self.shape)
        steps = tuple(
            stride * self.dtype.itemsize if size > 1 else 0
            for size, stride in zip(self.shape, self.strides, strict=True)
        )
        return np.lib.stride_tricks.as_strided(values, self.shape, steps, writeable=False)
