"""The programs of a pipeline on the devices of a mesh, with axes "data" and "model".

    data    replicas, each with a batch of its own
    model   devices of one replica, which share the channels of its quantized weights (`quant.sharing`)

Each replica has a program of its own, as if there were no others, so samples do not depend on their number.
One program for several devices XLA may rewrite otherwise than for one: it has turned divisions into products
for one device alone, and samples in bfloat16 part for good where a last bit differs.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
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


@dataclasses.dataclass(frozen=True)
class Replica:
    """Nets as one replica holds them, and the mesh of the devices that share it, if there are several."""

    denoiser: Net
    decoder: Net | None
    devices: Mesh | None = None

    def denoise(
        self, call: Call, correction: Float[Array, " steps"] | None, plan: Plan
    ) -> Float[Array, "b *t h w c"]:
        """`programs.denoise` on this replica. Does not wait for it."""
        if self.devices is None:
            return programs.denoise(self.denoiser, call, correction, plan=plan)
        return _denoise(self.denoiser, call, correction, plan=plan, devices=self.devices)

    def pixels(self, latents: Float[Array, "b *t h w c"]) -> UInt8[Array, "b *t i j 3"]:
        """`programs.decode` on this replica, which has a decoder. Does not wait for it."""
        assert self.decoder is not None
        if self.devices is None:
            return programs.decode(self.decoder, latents)
        return _decode(self.decoder, latents, devices=self.devices)


def replicas_on(mesh: Mesh, denoiser: Net, decoder: Net | None) -> list[Replica]:
    """The replicas of nets that lie on a mesh, as `placed` leaves them. Copies nothing."""
    rows = [Mesh(row, (AXIS,)) for row in mesh.devices]
    return [
        Replica(
            _on(row, denoiser), None if decoder is None else _on(row, decoder), row if row.size > 1 else None
        )
        for row in rows
    ]


def _on(row: Mesh, net: Net) -> Net:
    """The part of a Net that the devices of one replica hold."""
    devices = list(row.devices)

    def part(array: jax.Array, spec: P) -> jax.Array:
        held = {shard.device: shard.data for shard in array.addressable_shards}
        if row.size == 1:
            return held[devices[0]]
        pieces = [held[device] for device in devices]
        return jax.make_array_from_single_device_arrays(array.shape, NamedSharding(row, spec), pieces)

    return jax.tree.map(part, net, specs(net))


@partial(jax.jit, static_argnames=("plan", "devices"))
def _denoise(
    net: Net, call: Call, correction: Float[Array, " steps"] | None, *, plan: Plan, devices: Mesh
) -> Float[Array, "b *t h w c"]:
    def alone(net: Net, call: Call, correction: Any) -> Array:
        return programs.trajectory(net, call, correction, plan)[0]

    return _together(alone, devices, net)(net, call, correction)


@partial(jax.jit, static_argnames="devices")
def _decode(net: Net, latents: Float[Array, "b *t h w c"], *, devices: Mesh) -> UInt8[Array, "b *t i j 3"]:
    return _together(programs.pixels, devices, net)(net, latents)


def _together(function: Any, devices: Mesh, net: Net) -> Any:
    """The function as each of the devices runs it: with its part of the Net, and all of everything else."""

    def call(net: Net, *rest: Any) -> Any:
        specs_in = (specs(net), *[P()] * len(rest))
        return jax.shard_map(function, mesh=devices, in_specs=specs_in, out_specs=P(), check_vma=False)(
            net, *rest
        )

    return call


def _is_spec(node: Any) -> bool:
    return isinstance(node, P)
