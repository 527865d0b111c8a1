"""GPTQ: inputs are rounded one after the other, and each makes up for the errors of those before it.

Source: arXiv 2210.17323. With H the damped Gram matrix of the inputs, E the error of the rounded weight, and
the factorization H = (1 + F)^T D (1 + F) of a strictly lower F and a positive diagonal D, the error of the
outputs is

    tr(E H E^T) = sum over inputs j of D[j] * |E[:, j] + sum over i < j of F[j, i] * E[:, i]|^2

so if w[:, j] + sum F[j, i] * E[:, i] is what gets rounded, term j is D[j] times a rounding error of half a
step at most. Nearest rounding has H[j, j] in place of D[j] (its errors being unrelated), and D[j] <= H[j, j]:
it is the part of input j that later inputs do not predict. These are the codes of the paper's loop over
columns, which updates by the Cholesky factor of the inverse of H (tests/viditq_jax/quant/rounding has both);
no inverse is taken here.

What gets rounded can leave the range of its scale and is then clipped, so a single row can end worse than by
nearest rounding; such a row is rounded to nearest. An input that calibration never saw has no F and is
rounded to nearest (the paper sets its weights to 0).
"""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int8

from pallas_kernels.quantize_rows import quantize_rows
from viditq_jax.quant.qtensor import QTensor
from viditq_jax.quant.rounding import nearest, search
from viditq_jax.quant.rounding._grid import best, columns_of, damped, recoded, refuse, required
from viditq_jax.quant.spec import Spec

NEEDS_GRAM = True
BLOCK = 128  # inputs whose errors are passed on at once, by one matrix product
RANGES = ("nearest", "search")


@dataclasses.dataclass(frozen=True)
class Options:
    """damping: added to the diagonal of the Gram matrix, relative to its mean.

    range: how scales are found: by the whole range ("nearest"), or by a search for the best ("search").
    order: round inputs with the most energy first, while many are left to make up for them (the paper's
        code calls it act-order).
    static_groups: scales of groups are those of the original weight; else those of the weight as it is when
        its group begins, which needs order=false: order=true scatters the inputs of a group.

    The defaults are what measured best: errors at the outputs relative to nearest rounding, of a 192 x 384
    weight at int4/group64 with correlated inputs (covariance with eigenvalues 1/i), are 0.21 by default, 0.30
    with order=false, 0.29 also with static_groups=false, and 0.40 also with range=nearest, the original GPTQ.
    """

    damping: float = 0.01
    range: str = "search"
    order: bool = True
    static_groups: bool = True

    def __post_init__(self) -> None:
        if not 1e-4 <= self.damping <= 1:
            raise ValueError(
                f"damping={self.damping}; choose 0.0001 to 1: with less, float32 cannot factor the Gram"
                f" matrix of few rows."
            )
        if self.range not in RANGES:
            raise ValueError(f"range={self.range}; choose {' or '.join(RANGES)}.")
        if self.order and not self.static_groups:
            raise ValueError(
                "order=true scatters the inputs of a group, so static_groups=false needs order=false."
            )


def fit(
    weight: Float[Array, "n k"],
    spec: Spec,
    gram: Float32[Array, "k k"] | None = None,
    options: Options = Options(),
) -> QTensor:
    """The weight in codes whose errors make up for each other; no row is worse than by nearest."""
    gram = required("gptq", gram)
    refuse("gptq", weight, spec)
    weight = weight.astype(jnp.float32)
    if not isinstance(gram, jax.core.Tracer | jax.ShapeDtypeStruct) and not bool(
        jnp.isfinite(_feedback(damped(gram, options.damping))).all()
    ):
        raise ValueError(
            f"gptq cannot factor the Gram matrix of {weight.shape[1]} inputs in float32; raise damping above"
            f" {options.damping}, or calibrate on more samples."
        )
    start = (search if options.range == "search" else nearest).fit(weight, spec, gram)
    return best(weight, gram, nearest.fit(weight, spec), _rounded(weight, start, gram, options))


@partial(jax.jit, static_argnames="options")
def _rounded(
    weight: Float32[Array, "n k"], start: QTensor, gram: Float32[Array, "k k"], options: Options
) -> QTensor:
    """The weight in the scales of `start`, or in groups with scales of their own."""
    k, spec = weight.shape[1], start.spec
    moving = spec.granularity == "group" and not options.static_groups
    order = jnp.argsort(-jnp.diag(gram)) if options.order else jnp.arange(k)
    columns = weight.T[order]  # [k n]: one input after the other, each contiguous
    feedback = _feedback(damped(gram, options.damping)[order][:, order])
    size = spec.group if moving and spec.group else math.gcd(k, BLOCK)
    ranges = search if options.range == "search" else nearest
    fixed = jax.tree.map(lambda shared: columns_of(shared, weight.shape).T[order], (start.scale, start.zero))

    def grid(at: Array, wanted: Float32[Array, "size n"]) -> tuple[Array, Array | None]:
        """Scale and zero point of each number of a block."""
        if not moving:
            return jax.tree.map(lambda columns: lax.dynamic_slice_in_dim(columns, at, size), fixed)
        own = dataclasses.replace(spec, granularity="channel", group=None)
        q = ranges.fit(wanted.T, own, lax.dynamic_slice(gram, (at, at), (size, size)))
        zero = None if q.zero is None else jnp.broadcast_to(q.zero.T, wanted.shape)
        return jnp.broadcast_to(q.scale.T, wanted.shape), zero

    def block(errors: Float32[Array, "k n"], at: Array) -> tuple[Array, tuple[Array, Array, Array | None]]:
        """Round the inputs of one block. errors: weight - value of the inputs before it, 0 for the others."""
        original = lax.dynamic_slice_in_dim(columns, at, size)
        incoming = lax.dynamic_slice_in_dim(feedback, at, size)
        wanted = original + incoming @ errors
        scale, zero = grid(at, wanted)
        inside = lax.dynamic_slice_in_dim(incoming, at, size, axis=1)
        codes, lost = _one_by_one(original, wanted, inside, scale, zero, spec)
        errors = lax.dynamic_update_slice_in_dim(errors, lost, at, axis=0)
        return errors, (codes, scale, zero)

    _, (codes, scale, zero) = lax.scan(block, jnp.zeros_like(columns), jnp.arange(0, k, size))
    found = recoded(start, codes.reshape(columns.shape)[jnp.argsort(order)].T)
    if moving:
        found = dataclasses.replace(found, scale=scale[:, 0].T, zero=None if zero is None else zero[:, 0].T)
    return found


def _feedback(h: Float32[Array, "k k"]) -> Float32[Array, "k k"]:
    """F of the module's docstring: Cholesky factorization starts at the first input, this at the last."""
    upper = jnp.linalg.cholesky(h[::-1, ::-1])[::-1, ::-1]
    return jnp.triu(upper / jnp.diag(upper), 1).T


def _one_by_one(
    original: Float32[Array, "size n"],
    wanted: Float32[Array, "size n"],
    feedback: Float32[Array, "size size"],
    scale: Float32[Array, "size n"],
    zero: Int8[Array, "size n"] | None,
    spec: Spec,
) -> tuple[Int8[Array, "size n"], Float32[Array, "size n"]]:
    """Codes of a block, and original - value. wanted: what to round, but for errors within the block."""

    def one(wanted: Array, row: tuple[Array, ...]) -> tuple[Array, tuple[Array, Array]]:
        j, original, outgoing, scale, *zeros = row
        zero = zeros[0] if zeros else None
        rows = quantize_rows(
            wanted[j][:, None],
            bits=spec.bits,
            symmetric=spec.symmetric,
            scale=scale[:, None],
            zero=None if zero is None else zero[:, None],
            implementation="xla",  # one input at a time is no work for a kernel
        )
        codes = rows.codes[:, 0]
        lost = original - (codes.astype(jnp.float32) - (0 if zero is None else zero)) * scale
        return wanted + outgoing[:, None] * lost, (codes, lost)

    rows = (jnp.arange(len(wanted)), original, feedback.T, scale, *(() if zero is None else (zero,)))
    return lax.scan(one, wanted, rows)[1]
