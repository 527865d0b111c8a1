"""The programs of a pipeline on the devices of a mesh, with axes "data" and "model".

    data    replicas, each with a batch of its own
    model   devices of one replica, which share the channels of its quantized weights (`quant.sharing`)

Every device runs the program of one device on arrays of the same shapes: nothing is left to XLA to divide.
So samples are those of one device, up to what XLA fuses otherwise where it compiles for more of them.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, UInt8

from viditq_jax import programs
from viditq_jax.net import Net
from viditq_jax.programs import Call, Plan
from viditq_jax.quant.columns import AXIS
from viditq_jax.quant.sharing import shared, specs

AXES = ("data", AXIS)


def replica_mesh(replicas: int = 1, share: int = 1) -> Mesh:
    """A mesh of the first devices of this process: `replicas`, and `share` devices for each of them.

    Raises ValueError where this process has fewer.
    """
    have, need = jax.local_devices(), replicas * share
    if replicas < 1 or share < 1:
        raise ValueError(f"{replicas} replicas of {share} devices each; both are at least 1.")
    if need > len(have):
        raise ValueError(
            f"{replicas} replicas of {share} devices each need {need} devices, and this process has"
            f" {len(have)}; on a CPU, XLA_FLAGS=--xla_force_host_platform_device_count={need} makes more."
        )
    return Mesh(np.array(have[:need]).reshape(replicas, share), AXES)


def check(mesh: Mesh) -> None:
    """Raise ValueError for a mesh that these programs do not run on."""
    if mesh.axis_names != AXES:
        raise ValueError(f"the axes of the mesh are {mesh.axis_names}; make it by replica_mesh, with {AXES}.")
    if any(device.process_index != jax.process_index() for device in mesh.devices.flat):
        raise ValueError(
            "the mesh has devices of other processes; give each process a mesh of its own devices, and its"
            " share of the samples."
        )


def shardings(net: Net, mesh: Mesh) -> Net:
    """Where each array of the Net lies, as a Net of `NamedSharding`."""
    return jax.tree.map(partial(NamedSharding, mesh), specs(net), is_leaf=_is_spec)


def placed(net: Net, mesh: Mesh) -> Net:
    """The Net on the devices of the mesh, its quantized weights shared along "model"."""
    net = shared(net, mesh.shape[AXIS])
    return jax.device_put(net, shardings(net, mesh))


def stacked(calls: Sequence[Call], mesh: Mesh) -> Call:
    """A call for each replica, as one; all of the same shapes."""
    along = NamedSharding(mesh, P("data"))
    return jax.tree.map(lambda *leaves: jax.device_put(jnp.stack(leaves), along), *calls)


@partial(jax.jit, static_argnames=("plan", "mesh"))
def denoise(
    net: Net, calls: Call, correction: Float[Array, " steps"] | None = None, *, plan: Plan, mesh: Mesh
) -> Float[Array, "r b *t h w c"]:
    """`programs.denoise` of the call of each replica."""

    def alone(net: Net, calls: Call, correction: Any) -> Array:
        call = jax.tree.map(lambda leaf: leaf[0], calls)
        return programs.trajectory(net, call, correction, plan)[0][None]

    return _everywhere(alone, mesh, (specs(net), P("data"), P()))(net, calls, correction)


@partial(jax.jit, static_argnames="mesh")
def decode(net: Net, latents: Float[Array, "r b *t h w c"], *, mesh: Mesh) -> UInt8[Array, "r b *t i j 3"]:
    """`programs.decode` of the latents of each replica."""

    def alone(net: Net, latents: Array) -> Array:
        return programs.pixels(net, latents[0])[None]

    return _everywhere(alone, mesh, (specs(net), P("data")))(net, latents)


def _everywhere(function: Any, mesh: Mesh, in_specs: Any) -> Any:
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=P("data"), check_vma=False)


def _is_spec(node: Any) -> bool:
    return isinstance(node, P)
