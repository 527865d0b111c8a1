"""What the numbers of a weight or an input become: bits, granularity, symmetric or not, static or dynamic.

Written "int8/channel", "int4/group64/asym", "int8/token", "int8/tensor/static"; the text is what recipes and
reports show. Where they apply:

    weights   channel   one scale per output channel
              group64   one scale per output channel and 64 inputs; 32, 64 or 128, at 2 to 4 bits
              tensor    one scale
    inputs    token             one scale per row, computed from the row (dynamic)
              tensor/static     one scale, from calibration

Weights of 2 to 4 bits are stored two a byte. Weights of 5 to 7 bits are stored as int8 codes with a smaller
range: they save neither memory nor time over 8 bits, and exist to measure quality. The same holds for inputs
under 8 bits.
"""

import dataclasses
import re
from typing import Literal, cast

EXAMPLES = "int8/channel, int4/group64/asym, int8/token, int8/tensor/static"
GROUPS = (32, 64, 128)
Granularity = Literal["channel", "group", "tensor", "token"]

_TEXT = re.compile(
    r"int(?P<bits>\d+)/(?P<where>channel|group(?P<group>\d+)|tensor|token)(?P<options>(/\w+)*)"
)


@dataclasses.dataclass(frozen=True)
class Spec:
    """Integers of `bits`; `group` inputs share a scale where the granularity is "group".

    symmetric: codes in [-(2^(bits-1) - 1), 2^(bits-1) - 1] and no zero point; else all 2^bits codes and a
    zero point.
    static: of inputs, the scale comes from calibration. Weights are always known, so they are not marked.
    """

    bits: int
    granularity: Granularity
    group: int | None = None
    symmetric: bool = True
    static: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"{self}: {self.bits} bits; choose 2 to 8.")
        if self.granularity == "group":
            if self.group not in GROUPS:
                raise ValueError(f"{self}: groups of {self.group}; choose 32, 64 or 128.")
            if self.bits > 4:
                raise ValueError(
                    f"{self}: groups need weights of 2 to 4 bits; use channel at {self.bits} bits."
                )
        elif self.group is not None:
            raise ValueError(f"{self}: a group size needs the granularity group.")
        if self.static and self.granularity != "tensor":
            raise ValueError(
                f"{self}: static is for inputs with one scale, int{self.bits}/tensor/static; weights need no"
                f" mark, and a token's scale is always its own."
            )

    @classmethod
    def parse(cls, text: str) -> "Spec":
        """The spec that a text such as "int4/group64/asym" names; raises ValueError for others."""
        match = _TEXT.fullmatch(text)
        options = match["options"].split("/")[1:] if match else []
        if match is None or options not in ([], ["asym"], ["static"], ["asym", "static"]):
            raise ValueError(
                f"{text!r} is no number format; write int<bits>/<channel|group<size>|tensor|token>"
                f"[/asym][/static], such as {EXAMPLES}."
            )
        group = int(match["group"]) if match["group"] else None
        granularity = cast(Granularity, match["where"].rstrip("0123456789"))
        return cls(int(match["bits"]), granularity, group, "asym" not in options, "static" in options)

    def __str__(self) -> str:
        where = self.granularity + ("" if self.group is None else str(self.group))
        return (
            f"int{self.bits}/{where}"
            + ("" if self.symmetric else "/asym")
            + ("/static" if self.static else "")
        )

    @property
    def for_weight(self) -> bool:
        """Whether a weight can be stored so."""
        return self.granularity != "token" and not self.static

    @property
    def for_input(self) -> bool:
        """Whether an input can be quantized so."""
        return self.granularity == "token" or self.static

    @property
    def packed(self) -> bool:
        """Whether codes are stored two a byte."""
        return self.bits <= 4 and self.for_weight

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Why a weight of this shape cannot be stored so, or None."""
        if len(shape) != 2:
            return f"{self} stores matrices, and the weight has shape {shape}"
        if self.group is not None and shape[1] % self.group:
            fitting = [str(size) for size in GROUPS if shape[1] % size == 0]
            hint = f"choose groups of {' or '.join(fitting)}" if fitting else "use channel"
            return f"groups of {self.group} do not divide its {shape[1]} inputs; {hint}"
        if self.packed and shape[1] % 2:
            return f"two codes a byte need an even number of inputs, and it has {shape[1]}"
        return None
