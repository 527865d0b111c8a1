import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from converters.latte import FORMATS
from tests.checkpoints import convert_state, golden
from viditq_jax.models.latte import CONFIGS, Config, build, position_tables
from viditq_jax.net import Net, abstract, initialize

TINY = Config(classes=10, frames=5, input_size=8, depth=4, width=48, heads=4)

forward = jax.jit(Net.__call__)


def close(out: jax.Array, expected: np.ndarray) -> bool:
    """Equal but for rounding, nearly all of it PyTorch's float32 timestep frequencies."""
    return np.abs(out - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> Net:
    state, _ = golden("latte_class")
    return convert_state(build, TINY, state, FORMATS["original"](TINY), tmp_path_factory.mktemp("latte"))


@pytest.fixture(scope="module")
def inputs() -> tuple[jax.Array, ...]:
    """Latents, times and labels of the golden pass; the second label stands for none."""
    _, facts = golden("latte_class")
    x, t, y = (jnp.asarray(facts[f"in/{key}"]) for key in "xty")
    return x.transpose(0, 1, 3, 4, 2), t.astype(jnp.float32), y


def test_forward_equals_the_original_model(net, inputs):
    assert close(forward(net, *inputs), golden("latte_class")[1]["out"].transpose(0, 1, 3, 4, 2))


def test_tables_are_those_of_the_checkpoint():
    """The original rounds the times' table from float64 as here; float32 has 2^-24 at 1."""
    state, _ = golden("latte_class")
    for name, table in position_tables(TINY).items():
        np.testing.assert_allclose(table, state[name], atol=2.0**-23)


def test_frames_in_another_order_are_another_video(net, inputs):
    x, t, y = inputs
    order = jnp.array([2, 0, 1, 4, 3])
    assert not close(forward(net, x[:, order], t, y), np.asarray(forward(net, x, t, y)[:, order]))


@pytest.mark.parametrize(
    ("name", "count"), [("latte-xl-2-ucf101", 674_112_416), ("latte-xl-2-unconditional", 673_994_912)]
)
def test_parameters_and_position_tables_are_as_many_as_published(name, count):
    """Published is the number with classes; 102 labels of 1152 channels are missing without."""
    config = CONFIGS[name]
    tables = sum(table.size for table in position_tables(config).values())
    assert tables == 313_344
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract(build, config))) + tables == count


def test_fresh_model_without_labels_predicts_zero(inputs):
    x, t, y = inputs
    config = Config(frames=5, input_size=8, depth=2, width=48, heads=4)
    fresh = jax.jit(
        functools.partial(initialize, build, config), compiler_options={"xla_backend_optimization_level": 0}
    )()
    assert not forward(fresh, x, t).any()
    with pytest.raises(ValueError, match="a model of 0 classes takes no labels"):
        jax.eval_shape(forward, fresh, x, t, y)
    with pytest.raises(ValueError, match="a model of 10 classes needs labels"):
        jax.eval_shape(forward, abstract(build, TINY), x, t)
