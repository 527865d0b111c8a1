import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from viditq_jax.net import Net, abstract, initialize
from viditq_jax.nn.embed import Mlp


class Toy(nnx.Module):
    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.blocks = nnx.List([Mlp(width, 2 * width, rngs=rngs) for _ in range(2)])

    def __call__(self, x: jax.Array) -> jax.Array:
        for block in self.blocks:
            x = x + block(x)
        return x

    def halved(self, x: jax.Array) -> jax.Array:
        return self(x) / 2


@pytest.fixture(scope="module")
def net() -> Net:
    return initialize(Toy, 8, seed=1)


def test_weights_are_named_after_the_path_of_their_layer(net: Net) -> None:
    assert list(net.weights()) == ["blocks/0/fc1", "blocks/0/fc2", "blocks/1/fc1", "blocks/1/fc2"]


def test_a_net_goes_through_jit_as_an_argument(net: Net) -> None:
    x = jnp.ones((3, 8))
    np.testing.assert_allclose(
        jax.jit(lambda n, x: n(x))(net, x), net(x), rtol=1e-6
    )  # two fusions of float32


def test_other_methods_than_the_forward_pass_can_be_called(net: Net) -> None:
    x = jnp.ones((3, 8))
    np.testing.assert_array_equal(net.call("halved", x), net(x) / 2)


def test_the_same_seed_gives_the_same_weights_and_another_seed_does_not() -> None:
    first, again, other = (initialize(Toy, 8, seed=s).weights()["blocks/0/fc1"] for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_map_weights_changes_the_slots_and_nothing_else(net: Net) -> None:
    doubled = net.map_weights(lambda path, w: 2 * w if path.endswith("fc1") else w)
    before, after = dict(net.variables()), dict(doubled.variables())
    for name in before:
        factor = 2 if name.endswith("fc1/weight") else 1
        np.testing.assert_array_equal(after[name].get_value(), factor * before[name].get_value())
    assert doubled.graphdef == net.graphdef


def test_an_abstract_net_has_the_structure_and_shapes_of_the_real_one(net: Net) -> None:
    shapes = abstract(Toy, 8)
    assert shapes.graphdef == net.graphdef
    assert jax.tree.structure(shapes) == jax.tree.structure(net)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes.params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), net.params
    )


def test_astype_halves_the_bytes_of_float32(net: Net) -> None:
    half = net.astype(jnp.bfloat16)
    assert half.nbytes() * 2 == net.nbytes() == sum(4 * (8 * 16 + 16 + 16 * 8 + 8) for _ in range(2))
    assert half.dtype == jnp.bfloat16
    assert abstract(Toy, 8).astype(jnp.bfloat16).nbytes() == half.nbytes()
