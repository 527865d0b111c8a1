"""The training of the metric network: its loss, its pictures, and that it learns."""

import sys
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
pytest.importorskip("optax", reason="needs the extra train")

from default_metric import contrast
from default_model import data
from default_model.loop import Plan, filled

from viditq_jax.evaluate import _network
from viditq_jax.net import initialize


def test_the_loss_of_pictures_that_find_their_captions_is_a_formula():
    """Unit vectors at right angles, cosines times s: -log(e^s / (e^s + b - 1)), both ways."""
    x, same = jnp.eye(5), jnp.eye(5, dtype=bool)
    expected = -np.log(np.exp(3) / (np.exp(3) + 4))
    found = contrast.contrastive_loss(7 * x, x, same, jnp.float32(3))
    assert float(found) == pytest.approx(expected, rel=1e-6)
    assert float(contrast.contrastive_loss(x, jnp.roll(x, 1, 0), same, jnp.float32(3))) > expected + 2


def test_captions_that_are_the_same_share_the_truth():
    """Two of the same are both right: each takes half, and ln 2 is the least that is left."""
    x = jnp.repeat(jnp.eye(3), 2, axis=0)
    same = jnp.asarray(np.kron(np.eye(3), np.ones((2, 2))) > 0)
    found = contrast.contrastive_loss(x, x, same, jnp.float32(50))
    assert float(found) == pytest.approx(np.log(2), abs=1e-6)


def test_altered_pictures_stay_pictures_and_plain_ones_stay_plain():
    plain = jnp.full((8, 6, 6, 3), 0.5)
    out = np.asarray(contrast.altered(plain, jax.random.key(0)))
    assert np.abs(out).max() <= 1
    # A gain of at most 1 +- 0.15 and noise of at most 0.15.
    np.testing.assert_allclose(out, 0.5, atol=0.5 * contrast.CONTRAST + contrast.NOISE + 1e-6)


class Words:
    """A tokenizer that knows each caption by a number."""

    size = 64

    def __call__(self, texts):
        ids = np.zeros((len(texts), 24), np.int32)
        ids[:, 0] = [2 + zlib.crc32(text.encode()) % 62 for text in texts]
        ids[:, 1] = 1
        return ids


def test_training_brings_pictures_and_their_captions_together(tmp_path):
    """Four icons of one colour each, told apart after 30 steps of 16."""
    icons = [data.Icon(f"thing-{i}", "noto", "Objects", "", 64, False, 1.0) for i in range(5)]
    pictures = np.zeros((5, data.PLACEMENTS, 64, 64, 4), np.uint8)
    for i, colour in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0), (255, 255, 0)]):
        pictures[i, :, 8:56, 8:56] = (*colour, 255)
    config = _network.Config(widths=(8, 8, 16, 16), features=8, vocab_size=64, text_width=16, text_hidden=16)
    net = initialize(_network.build, config)
    words = Words()
    plan = Plan("metric", 0.0, 16, 2e-2, average=0.5, steps=30)
    arrays = contrast.fit(net, icons, pictures, np.array([4]), words, plan, tmp_path)
    ids = contrast.caption_ids(icons, words)[:4, 0, 1]
    before, after = (contrast.retrieval(each, pictures[:4, 0], ids) for each in (net, filled(net, arrays)))
    assert before["caption_top1"] < 1  # by chance all four would be right once in 256 times
    assert after["caption_top1"] == 1
