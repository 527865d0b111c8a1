import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from tests.torch_params import load_state_dict, randomize
from viditq_jax.models.t5 import CONFIGS, Config, build, distance_buckets
from viditq_jax.net import abstract, initialize

TINY = Config(num_layers=3, d_model=32, d_ff=64, num_heads=4, d_kv=8, vocab_size=100)
LENGTH = 150  # distances beyond 128, where the last bucket begins
IDS = np.random.default_rng(0).integers(0, TINY.vocab_size, (2, LENGTH)).astype(np.int32)
MASK = np.arange(LENGTH) < np.array([[20], [97]])


@pytest.fixture(scope="module")
def reference() -> transformers.T5EncoderModel:
    facts = dataclasses.asdict(TINY)
    return randomize(
        transformers.T5EncoderModel(transformers.T5Config(feed_forward_proj="gated-gelu", **facts))
    )


@pytest.fixture(scope="module")
def net(reference):
    state = {
        key: value for key, value in reference.state_dict().items() if key != "encoder.embed_tokens.weight"
    }
    return load_state_dict(abstract(build, TINY), state)


@torch.no_grad()
@pytest.mark.parametrize("mask", [MASK, None], ids=["masked", "unmasked"])
def test_features_equal_transformers_at_every_token(net, reference, mask):
    mask_t = None if mask is None else torch.tensor(mask.astype(np.int64))
    expected = reference(torch.tensor(IDS), attention_mask=mask_t).last_hidden_state
    features = net(jnp.asarray(IDS), None if mask is None else jnp.asarray(mask))
    # Sums err with the size of the features, here up to 3.7: the error is relative to the peak.
    assert np.abs(features - expected.numpy()).max() <= 1e-5 * expected.abs().max().item()


def test_distance_buckets_equal_transformers():
    from transformers.models.t5.modeling_t5 import T5Attention

    offset = torch.arange(600)[None, :] - torch.arange(600)[:, None]
    expected = T5Attention._relative_position_bucket(offset, num_buckets=32, max_distance=128)
    assert (distance_buckets(600, 32, 128) == expected.numpy()).all()


def test_tokens_that_are_masked_change_no_other_token(net):
    other = np.where(MASK, IDS, (IDS + 1) % TINY.vocab_size)
    left, right = (np.asarray(net(jnp.asarray(ids), jnp.asarray(MASK))) for ids in (IDS, other))
    assert (left[MASK] == right[MASK]).all()


def test_a_prompt_without_any_token_gives_finite_features(net):
    assert jnp.isfinite(net(jnp.asarray(IDS), jnp.zeros((2, LENGTH), bool))).all()


def test_fresh_weights_keep_scores_and_features_of_unit_size():
    """T5 has no 1/sqrt(d_kv) in its scores; its fresh queries are smaller by that factor instead."""
    config = Config(num_layers=1, d_model=256, d_ff=512, num_heads=4, vocab_size=500)
    weights = initialize(build, config).weights()
    x = jax.random.normal(jax.random.key(0), (400, 256))
    q, k = ((x @ weights[f"encoder/block/0/layer/0/SelfAttention/{name}"].T)[:, :64] for name in ("q", "k"))
    assert float((q @ k.T).std()) == pytest.approx(
        1, abs=0.1
    )  # 64 random directions: 1/sqrt(2 * 64) of spread


@torch.no_grad()
def test_bfloat16_loses_no_more_than_the_bfloat16_of_pytorch(net, reference):
    """Both round inputs and weights alike; the order of sums and the place of a few roundings differ: 50%."""
    inputs = {"input_ids": torch.tensor(IDS), "attention_mask": torch.tensor(MASK.astype(np.int64))}
    exact = reference(**inputs).last_hidden_state
    torch_error = (copy.deepcopy(reference).bfloat16()(**inputs).last_hidden_state - exact).norm()
    rough = net.astype(jnp.bfloat16)
    features = rough(jnp.asarray(IDS), jnp.asarray(MASK))
    assert features.dtype == jnp.bfloat16
    assert np.linalg.norm(features.astype(jnp.float32) - exact.numpy()) < 1.5 * torch_error.item()


def test_parameters_are_those_of_the_released_checkpoint():
    """4,762,310,656 numbers, of which 4,630,511,616 are in linear layers."""
    net = abstract(build, CONFIGS["t5-v1_1-xxl"])
    assert sum(leaf.size for leaf in jax.tree.leaves(net.params)) == 4_762_310_656
    assert sum(weight.size for weight in net.weights().values()) == 4_630_511_616


def test_names_and_shapes_are_those_of_transformers():
    sizes = CONFIGS["t5-v1_1-small"]
    with torch.device("meta"):
        config = transformers.T5Config(feed_forward_proj="gated-gelu", **dataclasses.asdict(sizes))
        expected = transformers.T5EncoderModel(config).state_dict()
    shapes = {key.replace(".", "/"): tuple(value.shape) for key, value in expected.items()}
    shapes.pop("encoder/embed_tokens/weight")
    net = abstract(build, sizes)
    assert {path: variable.get_value().shape for path, variable in net.variables()} == shapes
