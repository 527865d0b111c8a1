import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from viditq_jax import plugins
from viditq_jax.sampling.ddim import DDIM
from viditq_jax.sampling.dpm_solver import DPMSolver
from viditq_jax.sampling.flow_euler import FlowEuler
from viditq_jax.sampling.guidance import guided
from viditq_jax.sampling.iddpm import IDDPM
from viditq_jax.sampling.sample import advance, draw_noise, rows, sample, sample_keys

SAMPLERS = [DDIM(), IDDPM(variance="fixed_large"), DPMSolver(), FlowEuler()]
CARRYING = [DDIM(eta=1.0), DPMSolver()]  # one draws noise in each step, the other remembers the step before
NAMES = ["ddim", "iddpm", "dpm_solver", "flow_euler"]


def elementwise(x, t, i):
    """A denoiser that treats every number alone, so that a batch cannot change the order of any sum."""
    return 0.9 * x + 0.1 * jnp.sin(x) + t[:, None, None, None] / 10000


@pytest.mark.parametrize("sampler", CARRYING, ids=lambda sampler: type(sampler).__name__)
def test_a_sample_depends_on_the_seed_and_its_index_alone(sampler):
    """Bit for bit: sample 3 made alone is sample 3 of a batch of 5."""

    @jax.jit
    def make(keys):
        return sample(elementwise, sampler, draw_noise(keys, (2, 2, 4)), keys, steps=6)

    five = make(sample_keys(11, 0, 5))
    np.testing.assert_array_equal(make(sample_keys(11, 3, 1))[0], five[3])
    assert np.abs(make(sample_keys(12, 3, 1))[0] - five[3]).max() > 0.01
    assert np.abs(five[2] - five[3]).max() > 0.01


def test_keys_are_folds_of_the_seed():
    for j, key in enumerate(sample_keys(5, 7, 3)):
        assert key == jax.random.fold_in(jax.random.key(5), 7 + j)


def test_initial_noise_is_standard_normal_and_unlike_the_noise_of_any_step(step_noise, keys):
    noise = draw_noise(keys, (3, 5, 4))
    assert noise.dtype == jnp.float32
    np.testing.assert_array_equal(noise, step_noise(-1))  # fold 0; step i is fold i + 1
    many = draw_noise(sample_keys(0, 0, 100), (10, 10))
    # 10,000 numbers: the mean is within 0.01, the variance within 0.014 of the truth, one standard error.
    assert abs(float(many.mean())) < 0.04
    assert abs(float(many.var()) - 1) < 0.056


@pytest.mark.parametrize("sampler", CARRYING, ids=lambda sampler: type(sampler).__name__)
def test_contiguous_slices_of_rows_give_the_whole_trajectory(toy, start, keys, sampler):
    """State and memory are all there is to carry, so weights may change between two scans."""
    whole = jax.jit(lambda x: sample(toy.jax, sampler, x, keys, steps=9))(start)
    piece = jax.jit(lambda x, memory, part: advance(toy.jax, sampler, x, memory, keys, part))
    x, memory = start, sampler.init(start)
    for first in (0, 3, 6):
        part = {name: column[first : first + 3] for name, column in rows(sampler, 9).items()}
        x, memory = piece(x, memory, part)
    # Another program may contract other pairs of operations: a few roundings.
    np.testing.assert_allclose(x, whole, rtol=1e-5, atol=1e-6)


def test_denoise_sees_the_time_of_each_sample_and_the_index_of_the_step(start, keys):
    seen = []

    def denoise(x, t, i):
        assert x.dtype == t.dtype == jnp.float32
        assert t.shape == x.shape[:1]
        jax.debug.callback(lambda t, i: seen.append((int(i), *map(float, t))), t, i, ordered=True)
        return x

    jax.block_until_ready(sample(denoise, DDIM(spacing="ddimK"), start, keys, steps=4))
    jax.effects_barrier()
    assert seen == [(0, 750, 750), (1, 500, 500), (2, 250, 250), (3, 0, 0)]


def test_state_is_float32_whatever_the_model_gives(start, keys):
    made = sample(
        lambda x, t, i: x.astype(jnp.bfloat16), DPMSolver(), start.astype(jnp.bfloat16), keys, steps=3
    )
    assert made.dtype == jnp.float32


def test_a_new_seed_prompt_or_scale_compiles_nothing():
    """The trajectory is traced once, and the whole call, keys and initial noise included, compiles once."""
    traces, compiled = [], []
    weights = np.float32(0.5)

    @jax.jit
    def make(weights, prompt, scale, noise, keys):
        def model(x, t, i):
            traces.append(x.shape)
            both = jnp.concatenate([prompt, jnp.zeros_like(prompt)])
            return weights * x + both[:, None, None, None]

        return sample(guided(model, scale), DDIM(eta=1.0), noise, keys, steps=4)

    def call(seed, start, prompt, scale):
        keys = sample_keys(seed, start, 2)
        noise = draw_noise(keys, (2, 2, 4))
        return jax.block_until_ready(make(weights, np.full(2, prompt, np.float32), scale, noise, keys))

    first = call(0, 0, 1.0, 4.0)
    traced = len(traces)
    assert traced >= 1

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        others = [call(1, 0, 1.0, 4.0), call(0, 6, 1.0, 4.0), call(0, 0, 2.0, 4.0), call(0, 0, 1.0, 1.5)]
        again = (len(traces), len(compiled))
        jax.jit(lambda x: x * 7 + 3)(np.float32(1))  # the listener does hear
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert again == (traced, 0)
    assert len(compiled) == 1
    assert make._cache_size() == 1
    for other in others:
        assert np.abs(other - first).max() > 0.01


@pytest.mark.parametrize("name", NAMES)
def test_a_sampler_is_found_by_name_and_rebuilt_from_json(name):
    kind = plugins.find("viditq_jax.sampling", name, "SAMPLER")
    sampler = kind()
    fields = json.loads(json.dumps(dataclasses.asdict(sampler)))
    assert kind(**fields) == sampler
    assert hash(kind(**fields)) == hash(sampler)


@pytest.mark.parametrize("name", NAMES)
def test_a_table_is_float32_with_one_row_a_step(name):
    table = plugins.find("viditq_jax.sampling", name, "SAMPLER")().table(6)
    assert "t" in table
    for column in table.values():
        assert column.shape == (6,)
        assert column.dtype == np.float32
        assert np.isfinite(column).all()


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: type(sampler).__name__)
def test_output_with_channels_that_do_not_fit_is_an_error(sampler, start, keys):
    with pytest.raises(
        ValueError, match=r"denoise gave \[2, 3, 5, 6\] for a state \[2, 3, 5, 4\].* 8 channels"
    ):
        sample(lambda x, t, i: jnp.ones((*x.shape[:-1], 6)), sampler, start, keys, steps=3)


def test_old_style_or_missing_keys_are_an_error(toy, start):
    with pytest.raises(ValueError, match=r"uint32\[2, 2\]; need one typed key a sample, \[2\]"):
        sample(toy.jax, DDIM(), start, jax.random.split(jax.random.PRNGKey(0)), steps=3)
    with pytest.raises(ValueError, match=r"key<fry>\[3\]; need one typed key a sample, \[2\]"):
        sample(toy.jax, DDIM(), start, sample_keys(0, 0, 3), steps=3)
