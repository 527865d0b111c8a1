"""What the numbers of a weight or an input become: kind, bits, granularity, symmetric or static or not.

Written "int8/channel", "int4/group64/asym", "fp8/token", "int8/tensor/static"; the text is what recipes and
reports show. Where they apply:

    weights   channel               one scale per output channel
              group64               one scale per output channel and 64 inputs; 32, 64 or 128
              tensor                one scale
    inputs    token                 one scale per row, computed from the row (dynamic)
              tensor/static         one scale, from calibration
              tensor/static/range   one scale per denoising range, from calibration
              position              one dynamic scale per token position, shared by all samples of the batch

"int" has 2 to 8 bits and may have a zero point ("asym"). "fp8" is a float with four exponent and three
mantissa bits, at most 448 (float8_e4m3fn): symmetric, and without groups or positions. "position" is what the
released first-generation code does; the result of a sample then depends on its batch, so it is for parity
studies only.

Weights of 2 to 4 bits are stored two a byte: half the memory of 8 bits, and no less at 2 or 3 bits than at 4.
Weights of 5 to 7 bits are stored as int8 codes with a smaller range: the memory of 8 bits. Products are those
of 8 bits in all cases: 2, 3, 5, 6 or 7 bits, and inputs under 8 bits, save no time and exist to measure
quality.
"""

import dataclasses
import re
from typing import Literal, cast

import jax.numpy as jnp
from jax.typing import DTypeLike

EXAMPLES = "int8/channel, int4/group64/asym, fp8/channel, int8/token, fp8/token, int8/tensor/static"
GROUPS = (32, 64, 128)
Kind = Literal["int", "fp"]
Granularity = Literal["channel", "group", "tensor", "token", "position"]

_TEXT = re.compile(
    r"(?P<kind>int|fp)(?P<bits>\d+)/(?P<where>channel|group(?P<group>\d+)|tensor|token|position)"
    r"(?P<asym>/asym)?(?P<static>/static)?(?P<range>/range)?"
)


@dataclasses.dataclass(frozen=True)
class Spec:
    """Numbers of `bits`; `group` inputs share a scale where the granularity is "group".

    symmetric: no zero point; integers are then in [-(2^(bits-1) - 1), 2^(bits-1) - 1], else all 2^bits.
    static: of inputs, the scale comes from calibration. Weights are always known, so they are not marked.
    kind: integers, or float8_e4m3fn. per_range: the static scale is another one in each denoising range.
    """

    bits: int
    granularity: Granularity
    group: int | None = None
    symmetric: bool = True
    static: bool = False
    kind: Kind = "int"
    per_range: bool = False

    def __post_init__(self) -> None:
        if fault := self._fault():
            raise ValueError(f"{self}: {fault}.")

    def _fault(self) -> str | None:
        """Why there is no such format, and what to write."""
        number, where = f"{self.kind}{self.bits}", self.granularity
        if self.kind == "int" and not 2 <= self.bits <= 8:
            return f"{self.bits} bits; choose 2 to 8"
        if self.kind == "fp" and self.bits != 8:
            return "floats have 8 bits here; write fp8, or int2 to int8"
        if self.kind == "fp" and where == "group":
            return "floats have no groups; write fp8/channel, or int8/group64"
        if where == "group" and self.group not in GROUPS:
            return f"groups of {self.group}; choose 32, 64 or 128"
        if where != "group" and self.group is not None:
            return f"a group size needs the granularity group; write {number}/group{self.group}"
        if self.kind == "fp" and not self.symmetric:
            return "floats have no zero point; drop asym, or write int8 for fp8"
        if self.kind == "fp" and where == "position":
            return "positions are what the released integers have; write fp8/token, or int8/position"
        if self.static and where != "tensor":
            return (
                f"static is for inputs with one scale, {number}/tensor/static; weights need no mark, and the"
                f" scale of a token or position is always its own"
            )
        if self.per_range and not self.static:
            return (
                f"range is for static inputs, {number}/tensor/static/range; weights keep their scale over"
                f" denoising, and a dynamic scale follows the input in every range"
            )
        return None

    @classmethod
    def parse(cls, text: str) -> "Spec":
        """The spec that a text such as "int4/group64/asym" names; raises ValueError for others."""
        match = _TEXT.fullmatch(text)
        if match is None:
            raise ValueError(
                f"{text!r} is no number format; write <int<bits>|fp8>/<channel|group<size>|tensor|token|"
                f"position>[/asym][/static][/range], such as {EXAMPLES}."
            )
        return cls(
            int(match["bits"]),
            cast(Granularity, match["where"].rstrip("0123456789")),
            int(match["group"]) if match["group"] else None,
            symmetric=match["asym"] is None,
            static=match["static"] is not None,
            kind=cast(Kind, match["kind"]),
            per_range=match["range"] is not None,
        )

    def __str__(self) -> str:
        where = self.granularity + ("" if self.group is None else str(self.group))
        marks = {"asym": not self.symmetric, "static": self.static, "range": self.per_range}
        return "/".join([f"{self.kind}{self.bits}", where, *(mark for mark, on in marks.items() if on)])

    @property
    def for_weight(self) -> bool:
        """Whether a weight can be stored so."""
        return self.granularity in ("channel", "group", "tensor") and not self.static

    @property
    def for_input(self) -> bool:
        """Whether an input can be quantized so."""
        return self.granularity in ("token", "position") or self.static

    @property
    def dtype(self) -> DTypeLike:
        """Of a code, where it has a byte of its own."""
        return jnp.int8 if self.kind == "int" else jnp.float8_e4m3fn

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
