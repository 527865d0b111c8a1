"""Which devices hold what of a Net: quantized weights shared by channels, everything else on all of them."""

import dataclasses
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from viditq_jax.net import Net
from viditq_jax.quant.columns import AXIS, ColumnShard
from viditq_jax.quant.low_rank import LowRank
from viditq_jax.quant.qtensor import QTensor
from viditq_jax.quant.qweight import QWeight
from viditq_jax.quant.ranges import ByRange, PerRange


def shared(net: Net, count: int) -> Net:
    """The Net with its quantized weights made to be shared by `count` devices; one shares nothing.

    Raises ValueError, with all layers whose output channels `count` does not divide.
    """
    if count == 1:
        return net
    uneven: list[str] = []

    def wrap(path: str, weight: Any) -> Any:
        if isinstance(weight, PerRange):
            return PerRange(wrap(path, weight.stacked))
        if isinstance(weight, ByRange):
            return ByRange(tuple(wrap(path, each) for each in weight.values), weight.index)
        if not isinstance(weight, QWeight):
            return weight
        n = weight.weight.values.shape[-2]
        if n % count:
            uneven.append(f"{path} has {n}")
        return ColumnShard(weight)

    found = net.map_weights(wrap)
    if uneven:
        raise ValueError(
            f"{count} devices cannot share the output channels of {len(uneven)} layers evenly:"
            f" {'; '.join(uneven[:5])}. Let another number of devices share a replica."
        )
    return found


def specs(net: Net) -> Net:
    """Of each array of the Net the axes of the mesh that it lies along, as a Net of `PartitionSpec`."""
    return net.map_variables(lambda _, variable: _specs(variable.get_value(), 0))


def _specs(value: Any, lead: int) -> Any:
    """lead: axes before those of the weight itself."""
    if isinstance(value, PerRange):
        return PerRange(_specs(value.stacked, lead + 1))
    if isinstance(value, ByRange):
        return ByRange(tuple(_specs(each, lead) for each in value.values), value.index)
    if isinstance(value, ColumnShard):
        return ColumnShard(_own_channels(value.part, lead))
    return jax.tree.map(lambda _: P(), value)


def _own_channels(weight: QWeight, lead: int) -> QWeight:
    n = weight.weight.values.shape[lead]
    channels = P(*[None] * lead, AXIS)

    def of(array: Any) -> Any:
        if array is None:
            return None
        return channels if array.shape[lead] == n else P()  # a scale of the whole matrix is every device's

    q = weight.weight
    branch = weight.branch and LowRank(P(), channels)
    return dataclasses.replace(
        jax.tree.map(lambda _: P(), weight),
        weight=QTensor(channels, of(q.scale), of(q.zero), q.spec),
        weight_sum=of(weight.weight_sum),
        branch=branch,
    )
