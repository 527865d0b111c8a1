"""Plant channel outliers in a denoiser without changing what it computes.

Large diffusion transformers have input channels that are tens of times larger than the others, and at some
times more than at others (ViDiT-Q, arXiv 2406.02540, section 4: incoherence 41 at t = 999 and 13 at t = 0).
Small models have none, so every recipe looks good on them. `stress` multiplies a few channels of the inputs
of linear layers by a gain and divides the columns that consume them by the same gain: the float model is the
same function, and a quantizer meets the outliers of a large model.

    input of               gain goes into                                                  undone in
    attn/qkv, mlp/fc1      shift and 1 + scale of the modulation, with its time embedding  attn/qkv, mlp/fc1
    attn/proj              the rows of the values in attn/qkv, and their biases            attn/proj
    attn_temp/proj         likewise, of STDiT's attention across frames                    attn_temp/proj
    cross_attn/proj        the rows of the values in cross_attn/kv_linear                  cross_attn/proj

The other inputs have nothing linear before them (a GELU before mlp/fc2, the residual itself before
cross_attn/q_linear and attn_temp/qkv, a norm before attn/proj where keys and values are compressed) and stay
as they are. Where a block has two halves, over space and over time, each counts as a block.

Gains are powers of two. A factor of exactly 50 would round the divided columns anew, in bfloat16 by up to
2^-9 of each weight; a power of two rounds nothing but the sum (gain - 1) + gain * scale.
"""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from viditq_jax.net import Net

_TIMES = np.linspace(0.0, 999.0, 200, dtype=np.float32)
_LABELS = 8  # how many labels of a class-conditional model are looked at
_FIRST_ROW = {"attn/qkv": 0, "mlp/fc1": 3}  # shift and scale among the six rows of a modulation
_VALUES = {  # values are the last rows
    "attn/proj": "attn/qkv",
    "attn_temp/proj": "attn_temp/qkv",
    "cross_attn/proj": "cross_attn/kv_linear",
}
_HALVES = ("spatial", "temporal")
_FAINTEST = 2.0**-6  # a channel that is always quieter than this is amplified as if it were not


@dataclasses.dataclass(frozen=True)
class Outliers:
    """The channels of one layer's input that are amplified, each with its gain.

    quiet, loud: size of the amplified channel against the median channel of the layer, at the time where it
    is smallest and at the time where it is largest. Read from the weights: from the modulation over all
    times, or, for the inputs that are values of an attention, from the rows that make them, which know no
    time.
    """

    layer: str
    channels: tuple[int, ...]
    gains: tuple[float, ...]
    quiet: tuple[float, ...]
    loud: tuple[float, ...]


def stress(net: Net, *, factor: float = 50.0, channels: int = 4, seed: int = 0) -> Net:
    """The same function with channels that are `factor` to 2 `factor` times as large as the median channel.

    net: a denoiser of images or videos in floating point. The arguments are those of `outliers`, which says
    what is done. Outputs are equal up to rounding: in float32 to about 1e-6 relative, in bfloat16 to its
    noise.
    Raises ValueError for another model, a quantized one, or impossible numbers.
    """
    values = _float_values(net)
    planned = outliers(net, factor=factor, channels=channels, seed=seed)
    first = _split(planned[0].layer)[0]
    changed: dict[str, Any] = dict(values)
    for item in planned:
        block, layer = _split(item.layer)
        rows, gains = np.array(item.channels), np.array(item.gains, np.float32)
        columns = changed[f"{item.layer}/weight"]
        changed[f"{item.layer}/weight"] = _scaled(columns.T, rows, 1 / gains).T
        if layer in _VALUES:
            source = f"{block}/{_VALUES[layer]}"
            rows = rows - columns.shape[1]
            for name in (f"{source}/weight", f"{source}/bias"):
                changed[name] = _scaled(changed[name], rows, gains)
            continue
        width = columns.shape[1]
        shift, scale = (row * width + rows for row in (_FIRST_ROW[layer], _FIRST_ROW[layer] + 1))
        table, sources = f"{block}/scale_shift_table", [f"{block}/adaLN_modulation/1"]
        if table in values:
            flat: Any = changed[table].reshape(-1)
            flat = _scaled(_scaled(flat, shift, gains), scale, gains, gains - 1)
            changed[table] = flat.reshape(values[table].shape)
            sources = ["t_block/1"] if block == first else []  # one for all blocks
        for source in sources:
            both = np.concatenate([shift, scale]), np.concatenate([gains, gains])
            changed[f"{source}/weight"] = _scaled(changed[f"{source}/weight"], *both)
            more = np.zeros(len(both[0]), np.float32)
            if table not in values:
                more[len(rows) :] = gains - 1
            changed[f"{source}/bias"] = _scaled(changed[f"{source}/bias"], *both, more)
    return net.map_variables(
        lambda name, variable: (
            jnp.asarray(changed[name], variable.get_value().dtype)
            if changed.get(name) is not values.get(name)
            else variable.get_value()
        )
    )


def outliers(net: Net, *, factor: float = 50.0, channels: int = 4, seed: int = 0) -> tuple[Outliers, ...]:
    """What `stress` plants: which channels of which layers, how large, and how that changes with time.

    Modulated inputs: the `channels` whose modulation rises furthest above its own median over time. The gain
    makes them `factor` to 2 `factor` times the median channel where they are loudest; elsewhere they are as
    much smaller as the model itself makes them. The projection of the time is shared by all blocks of PixArt,
    and so are its channels and gains, chosen by the geometric mean over the blocks; in DiT each block has its
    own.
    Values of attentions: channels drawn by `seed`, as nothing tells their course over time.
    """
    values = _float_values(net)
    blocks = sorted({_split(name)[0] for name in values if name.startswith("blocks/")}, key=_number)
    width = values[f"{blocks[0]}/attn/proj/weight"].shape[1]
    if not 1 <= channels <= width:
        raise ValueError(f"asked for {channels} outlier channels; a layer of this model has {width} inputs.")
    if not 1 <= factor <= 4096:
        raise ValueError(f"asked for outliers of {factor} x; give a factor from 1 to 4096.")
    rng = np.random.default_rng(seed)
    found = []
    for layer in _FIRST_ROW:
        courses = [_course(net, values, block, layer) for block in blocks]  # [t, d] each
        shared = np.exp(np.mean(np.log(courses), 0)) if "t_block/1/weight" in values else None
        for block, own in zip(blocks, courses, strict=True):
            course = own if shared is None else shared
            rise = course.max(0) / np.median(course, 0)
            chosen = np.sort(np.argsort(-rise, kind="stable")[:channels])
            gains = _gains(factor, course[:, chosen].max(0))
            found.append(_outliers(f"{block}/{layer}", chosen, gains, own[:, chosen]))
    for layer, source in _VALUES.items():
        for block in blocks:
            compressed = layer == "attn/proj" and f"{block}/attn/norm/weight" in values
            if compressed or f"{block}/{source}/weight" not in values:
                continue
            names = (f"{block}/{source}/{part}" for part in ("weight", "bias"))
            weight, bias = (np.asarray(values[name], np.float32) for name in names)
            size = np.sqrt(np.square(weight[-width:]).sum(1) + np.square(bias[-width:]))[None]
            chosen = np.sort(rng.choice(width, channels, replace=False))
            course = _relative(size)[:, chosen]
            found.append(_outliers(f"{block}/{layer}", chosen, _gains(factor, course[0]), course))
    return tuple(sorted(found, key=lambda item: (_number(_split(item.layer)[0]), item.layer)))


def _course(net: Net, values: dict[str, Array], block: str, layer: str) -> Float[np.ndarray, "t d"]:
    """Size of each channel of a modulated input against the median channel, over time, if its norm is
    even."""
    e = net.call("t_embedder", jnp.asarray(_TIMES), jnp.dtype("float32"))[:, None]  # [t, 1, d]
    name = f"{block}/adaLN_modulation/1"
    if "t_block/1/weight" in values:
        name = "t_block/1"
    elif "y_embedder/embedding_table/weight" in values:
        classes = values["y_embedder/embedding_table/weight"].shape[0] - 1
        labels = np.linspace(0, classes, _LABELS).astype(np.int32)  # the last stands for none
        e = e + net.call("y_embedder", jnp.asarray(labels)).astype(jnp.float32)
    weight, bias = (jnp.asarray(values[f"{name}/{part}"], jnp.float32) for part in ("weight", "bias"))
    out = np.asarray(jax.nn.silu(e) @ weight.T + bias)
    rows = out.reshape(*out.shape[:2], 6, -1)
    if f"{block}/scale_shift_table" in values:
        rows = rows + np.asarray(values[f"{block}/scale_shift_table"], np.float32)
    first = _FIRST_ROW[layer]
    shift, scale = rows[:, :, first], rows[:, :, first + 1]
    return _relative(np.sqrt(np.square(1 + scale) + np.square(shift)).mean(1))


def _relative(size: Float[np.ndarray, "t d"]) -> Float[np.ndarray, "t d"]:
    return np.maximum(size / np.maximum(np.median(size, 1, keepdims=True), 1e-12), _FAINTEST)


def _gains(factor: float, loudest: Float[np.ndarray, " c"]) -> Float[np.ndarray, " c"]:
    """The smallest powers of two that make the loudest moment at least `factor`."""
    return np.exp2(np.ceil(np.log2(factor / loudest)))


def _outliers(
    layer: str, chosen: np.ndarray, gains: Float[np.ndarray, " c"], course: Float[np.ndarray, "t c"]
) -> Outliers:
    quiet, loud = course.min(0) * gains, course.max(0) * gains
    return Outliers(layer, *(tuple(each.tolist()) for each in (chosen, gains, quiet, loud)))


def _scaled(
    value: Array | np.ndarray, rows: np.ndarray, gains: np.ndarray, more: np.ndarray | float = 0.0
) -> np.ndarray:
    """The array in float32 with some of its rows multiplied, and increased."""
    out = np.array(value, np.float32)
    shape = (-1,) + (1,) * (out.ndim - 1)
    out[rows] = out[rows] * gains.reshape(shape) + np.broadcast_to(more, gains.shape).reshape(shape)
    return out


def _float_values(net: Net) -> dict[str, Array]:
    """The variables by name. Raises ValueError if the model is none that can be stressed."""
    values = {name: variable.get_value() for name, variable in net.variables()}
    if "t_block/1/weight" not in values and "blocks/0/adaLN_modulation/1/weight" not in values:
        raise ValueError("this model modulates its blocks in no way that is known; it cannot be stressed.")
    held = [path for path, weight in net.weights().items() if not isinstance(weight, jax.Array)]
    if held:
        raise ValueError(
            f"{len(held)} layers hold no float weights ({held[0]}, ...); "
            "stress the float model, then quantize it."
        )
    return values


def _split(name: str) -> tuple[str, str]:
    """ "blocks/7/attn/qkv" as "blocks/7" and "attn/qkv"; "blocks/7/spatial" is a block where there is one."""
    parts = name.split("/")
    count = 3 if len(parts) > 2 and parts[2] in _HALVES else 2
    return "/".join(parts[:count]), "/".join(parts[count:])


def _number(block: str) -> tuple[int, str]:
    return int(re.sub(r"\D", "", block)), block
