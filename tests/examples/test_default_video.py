"""The training of the packaged video model: its clips and captions, its start, and that it can be resumed."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
pytest.importorskip("optax", reason="needs the extra train")

import optax
from default_model import loop
from default_model.data import Icon
from default_model.text import Tokenizer
from default_video import clips, denoiser, motion, package

from converters import convert
from viditq_jax.models import stdit
from viditq_jax.net import Net, initialize

ASSETS = Path(__file__).parents[2] / "viditq_jax/assets"
# No symmetry, so that a turn can be seen; two colours, so that no background hides both.
DRAWING = (
    '<svg xmlns="http://www.w3.org/2000/svg" {box}><path fill="#d63031" d="M24 8h80v112H24z"/>'
    '<path fill="#141418" d="M24 8h80v40H24z"/><path fill="#f39c92" d="M24 90h30v30H24z"/></svg>'
)
ICON = Icon("red-thing", "noto", "Objects", DRAWING, 128, False, 1.0)


@pytest.fixture(scope="module")
def pictures() -> dict[str, Net]:
    return {name: load() for name, load in convert(ASSETS / "default", dtype=jnp.float32).nets.items()}


@pytest.fixture(scope="module")
def text(pictures: dict[str, Net]) -> denoiser.Text:
    return denoiser.Text(pictures["text_encoder"], Tokenizer(ASSETS / "default/tokenizer"))


@pytest.mark.parametrize("name", clips.MOTIONS)
def test_a_clip_moves_as_its_caption_says(name):
    pytest.importorskip("resvg_py", reason="needs the extra train")
    random = np.random.default_rng(3)
    for colour in ("white", "blue"):
        clip = clips.clip(ICON, name, colour, random)
        assert clip.shape == (clips.FRAMES, 64, 64, 3)
        assert motion.read(clip).motion == name
        backwards = {**clips.FILMED, **{back: name for name, back in clips.FILMED.items()}}.get(name)
        if backwards:
            assert motion.read(clip[::-1]).motion == backwards


def test_a_still_clip_and_an_empty_one_show_no_motion():
    still = np.ones((clips.FRAMES, 64, 64, 3), np.float32)
    assert motion.read(still).motion == "none"
    still[:, 20:40, 25:50] = -1
    assert motion.read(still).motion == "none"


def test_a_caption_names_subject_motion_and_any_colour_but_white():
    assert clips.caption("red apple", "growing", "white") == "red apple growing"
    assert clips.caption("pizza", "moving left", "yellow") == "pizza moving left on a yellow background"
    table = denoiser.caption_table(["a", "b"])
    assert len(table) == len(set(table)) == 2 * len(clips.MOTIONS) * len(clips.BACKGROUNDS)


def test_an_unknown_motion_is_refused_by_name():
    with pytest.raises(ValueError, match=r"no motion 'dancing'.*spinning"):
        clips.track("dancing", np.random.default_rng(0))


def test_one_pair_of_each_motion_is_held_out_and_asked_for():
    words = [f"thing {i}" for i in range(len(clips.SUBJECTS))]
    hidden = clips.held_out(len(words))
    assert (hidden.sum(axis=0) == 1).all()
    assert hidden.sum(axis=1).max() == 1
    prompts = [clips.caption(words[0], clips.MOTIONS[j], "blue") for j in np.flatnonzero(~hidden[0])]
    asked = package.questions(words, prompts, more=2)
    assert [each.prompt for each in asked[: len(prompts)]] == prompts
    assert len({each.prompt for each in asked}) == len(asked) == len(prompts) + 3 * len(clips.MOTIONS)
    assert sum(not each.shown for each in asked) == len(clips.MOTIONS)
    for each in asked:
        assert each.shown != hidden[words.index(each.subject), clips.MOTIONS.index(each.motion)]


def test_films_are_made_once_and_encode_what_they_show(tmp_path):
    pytest.importorskip("resvg_py", reason="needs the extra train")

    def mean(pixels):
        return pixels.reshape(clips.FRAMES, 16, 4, 16, 4, 3).mean(axis=(2, 4))

    def refuse(pixels):
        raise AssertionError("made twice")

    films = clips.make([ICON], mean, tmp_path / "film", variants=2)
    again = clips.make([ICON], refuse, tmp_path / "film", variants=2)
    np.testing.assert_array_equal(films.latents, again.latents)
    np.testing.assert_array_equal(films.colours, again.colours)
    assert films.latents.shape == (1, len(clips.FILMED), 2, clips.FRAMES, 16, 16, 3)
    for i, j in np.ndindex(films.colours.shape[1:]):
        background = clips.COLOURS[clips.BACKGROUNDS[films.colours[0, i, j]]]
        corner = films.latents[0, i, j, :, 0, 0]  # no track covers the upper left corner with a middle frame
        # Half-precision floats in [-1, 1] are exact to 2^-11.
        np.testing.assert_allclose(corner[clips.FRAMES // 2], np.array(background) / 127.5 - 1, atol=2**-11)


def test_training_starts_from_the_image_model_that_is_told_which_frame_it_draws(pictures, text):
    """Without what the first block says of its number, each frame is what the image model makes of it."""
    net, still = denoiser.start(pictures["denoiser"]), pictures["denoiser"]
    first = "blocks/0/attn_temp/proj/weight"
    mute = net.map_variables(
        lambda name, v: jnp.zeros_like(v.get_value()) if name == first else v.get_value()
    )
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 16, 16, 4)), jnp.float32)
    t, (features, mask) = jnp.array([400.0]), text(["red apple moving left"], batch=1)

    @jax.jit
    def velocity(net, x):
        return net(x, t, net.call("encode_prompt", features, mask))

    twice = jnp.stack([x, x], axis=1)
    # The same sums in another order: some units in the last place of outputs below 5, block by block.
    rounding = 2e-4
    np.testing.assert_allclose(velocity(mute, twice)[:, 1], velocity(still, x), atol=rounding)
    told = velocity(net, twice)
    assert jnp.abs(told[:, 0] - told[:, 1]).max() > 100 * rounding


def test_a_budget_of_steps_goes_on_at_the_step_where_it_was_stopped(tmp_path):
    def run(steps):
        plan = loop.Plan("toy", 0.0, 1, 0.1, steps=steps)

        def distance(params, target, key):
            return jnp.square(params["x"] - target).mean(), {}

        start = {"x": jnp.zeros(4)}
        loop.train(plan, start, distance, jnp.ones(4), tmp_path, optimizer=optax.sgd(1.0))
        np.testing.assert_array_equal(start["x"], 0)  # what the caller holds is still there
        return [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()][-1]

    assert run(3) == 3
    assert run(5) == 5
    assert max(int(folder.name) for folder in (tmp_path / "checkpoints").iterdir()) == 5


def test_the_denoiser_is_trained_on_films_and_its_average_is_kept(pictures, text, tmp_path, monkeypatch):
    monkeypatch.setattr(denoiser, "draw", lambda *args, **_: np.ones((1, clips.FRAMES, 8, 8, 3)))
    monkeypatch.setattr(denoiser, "muon", lambda plan: optax.sgd(1.0))  # compiles in a tenth of Muon's time
    config = stdit.Config(
        frames=clips.FRAMES, input_size=4, text_length=24, depth=1, width=16, heads=2, out_channels=4,
        caption_channels=denoiser.CONFIG.caption_channels, with_null_caption=False,
    )  # fmt: skip
    net = initialize(stdit.build, config)
    random = np.random.default_rng(0)
    count = len(clips.MOTIONS)  # so that each motion has a pair to hold out
    films = clips.Films(
        random.normal(size=(count, len(clips.FILMED), 1, clips.FRAMES, 4, 4, 4)).astype(np.float16),
        np.zeros((count, len(clips.FILMED), 1), int),
    )

    plan = loop.Plan("toy", 0.0, 2, 1e-3, warmup=0.0, steps=1)
    words = [f"thing {i}" for i in range(count)]
    trained = denoiser.fit(net, films, words, text, pictures["decoder"], ["a"], plan, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 1]
    assert all(np.isfinite(line.get("loss", line.get("watch", {}).get("loss"))) for line in lines)
    after = loop.values(trained)
    assert any((value != after[name]).any() for name, value in loop.values(net).items())
    for name, value in loop.values(denoiser.latest(net, tmp_path)).items():
        np.testing.assert_array_equal(value, after[name])
