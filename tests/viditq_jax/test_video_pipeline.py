"""Videos through the whole pipeline: every family, with the facts that its converter writes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from viditq_jax import programs
from viditq_jax.load import packaged_model
from viditq_jax.models.stdit3 import Clip
from viditq_jax.pipeline import Pipeline
from viditq_jax.post_training import calibration_conditions, default_conditions
from viditq_jax.programs import encode_prompt
from viditq_jax.sampling.schedule import latent_video_shift, video_shift

PROMPTS = ["a red apple", "two blue dogs"]
FRAME = jnp.full((2, 8, 8, 4), 0.3)
CONDITIONS = {"stdit": PROMPTS, "stdit3": PROMPTS, "latte_t2v": PROMPTS, "latte": [0, 3]}


@functools.cache
def latents(model: str) -> jax.Array:
    return tiny.video(model).latents(CONDITIONS[model], seed=1)


def close(found: jax.Array, wanted: jax.Array) -> bool:
    """Equal but for the order in which float32 sums are made."""
    return bool(jnp.abs(found - wanted).max() <= 1e-5 * jnp.abs(wanted).max())


def split(x: np.ndarray, video: Pipeline) -> tuple[np.ndarray, np.ndarray]:
    """The conditional and the other half of a doubled batch."""
    halves = np.split(np.asarray(x), 2)
    return (halves[0], halves[1]) if video.guidance.order == "cond_first" else (halves[1], halves[0])


@pytest.mark.parametrize("model", CONDITIONS)
def test_a_video_of_every_model_is_decoded_frame_by_frame(model: str) -> None:
    pictures = tiny.video(model).decode(latents(model))
    assert (pictures.shape, pictures.dtype) == ((2, 5, 16, 16, 3), np.uint8)
    apart = tiny.video(model).decode(latents(model)[:, 3])  # as pictures
    assert np.abs(pictures[:, 3].astype(int) - apart).max() <= 1  # a sum in another order may round elsewhere
    assert np.any(pictures[:, 0] != pictures[:, 1])
    assert np.any(pictures[0] != pictures[1])


def test_video_i_depends_on_seed_and_i_alone() -> None:
    """Alone it is made by another program; as the second of a later batch by the same."""
    video = tiny.video()
    assert close(video.latents(PROMPTS[1:], seed=1, first=1)[0], latents("stdit")[1])
    shifted = video.latents(["gold", PROMPTS[1]], seed=1)
    np.testing.assert_array_equal(shifted[1], latents("stdit")[1])


def test_other_sizes_and_numbers_of_frames_can_be_made() -> None:
    assert tiny.video()(PROMPTS[:1], size=(24, 16), frames=3, steps=1, guidance=1.0).shape == (
        1,
        3,
        24,
        16,
        3,
    )
    assert tiny.video("stdit3").latent_shape((18, 16), 1) == (1, 9, 8, 4)  # fills up patches of 2


@pytest.mark.parametrize(
    ("model", "arguments", "words"),
    [
        ("stdit", {"frames": 0}, "frames is 0"),
        ("stdit", {"size": (18, 16)}, "multiples of 4 pixels"),
        ("stdit3", {"frames": 3}, "3 frames of latents have no shift"),
        ("stdit", {"given": {0: FRAME}}, "stdit was not trained with frames that are given"),
        ("stdit3", {"given": {5: FRAME}}, r"frames \[5\] are given"),
    ],
)
def test_impossible_videos_are_refused(model: str, arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tiny.video(model).latents(PROMPTS, **arguments)


def test_pictures_have_no_frames() -> None:
    with pytest.raises(ValueError, match="pixart makes pictures, not videos of 4 frames"):
        tiny.pipeline()(PROMPTS, frames=4)


def test_decoding_more_frames_needs_no_more_memory_at_once() -> None:
    """Besides the latents and the pixels themselves, of which a copy in another order may be made."""
    vae, sizes = tiny.pipeline().decoder, {}
    for frames in (8, 32):
        shape = jax.ShapeDtypeStruct((1, frames, 8, 8, 4), jnp.float32)
        sizes[frames] = programs.decode.lower(vae, shape).compile().memory_analysis().temp_size_in_bytes
    of_a_frame = 8 * 8 * 4 * 4 + 16 * 16 * 3
    assert sizes[32] - sizes[8] <= (32 - 8) * of_a_frame
    whole = jax.ShapeDtypeStruct((8, 8, 8, 4), jnp.float32)
    assert sizes[8] < 0.7 * programs.decode.lower(vae, whole).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("model", ["stdit", "stdit3"])
def test_no_prompt_is_the_learned_caption_under_the_mask_of_the_prompt(model: str) -> None:
    video = tiny.video(model)
    encoded = video.encode(PROMPTS, guide=True)
    _, null = split(encoded["y"], video)
    table = dict(video.denoiser.variables())["y_embedder/y_embedding"].get_value()
    np.testing.assert_array_equal(null, np.broadcast_to(table, null.shape))
    assert video.guidance.order == "cond_first"
    masks = np.split(np.asarray(encoded["mask"]), 2)
    np.testing.assert_array_equal(*masks)
    np.testing.assert_array_equal(masks[0], video.encode(PROMPTS, guide=False)["mask"])


def test_latte_compares_with_the_empty_prompt_as_long_as_the_prompt() -> None:
    video = tiny.video("latte_t2v")
    encoded = video.encode(PROMPTS, guide=True)
    prompt, null = split(encoded["y"], video)
    np.testing.assert_array_equal(prompt, video.encoder.encode_text(PROMPTS)[0])
    np.testing.assert_array_equal(null[0], video.encoder.encode_text([""])[0][0])
    np.testing.assert_array_equal(*np.split(np.asarray(encoded["mask"]), 2))


def test_latte_compares_a_class_with_the_label_of_none() -> None:
    np.testing.assert_array_equal(tiny.video("latte").encode([0, 3], guide=True)["y"], [0, 3, 5, 5])


def test_an_unconditional_model_takes_numbers_and_no_guidance() -> None:
    video = tiny.video("latte")
    config = {**video.facts["denoiser"]["config"], "classes": 0}
    facts = {**video.facts, "denoiser": {"model": "latte", "config": config}, "conditions": {"kind": "none"}}
    free = dataclasses.replace(video, facts=facts)
    assert free.encode([0, 1], guide=False) == {}
    with pytest.raises(ValueError, match="takes no conditions; give a number"):
        free.encode(["apple"], guide=False)
    with pytest.raises(ValueError, match="nothing guides it"):
        free.encode([0], guide=True)


def test_stdit3_is_told_frames_a_second_and_pixels_and_the_aesthetic_score() -> None:
    video = tiny.video("stdit3")
    clip = video.encode(PROMPTS, guide=True, size=(24, 16))["clip"]
    np.testing.assert_array_equal(clip, [[24] * 4, [24] * 4, [16] * 4])
    np.testing.assert_array_equal(video.encode(PROMPTS, guide=False, frames=1)["clip"].fps, [120, 120])
    said = "a cat. aesthetic score: 6.5."
    alike = [video.encode([text], guide=False)["y"] for text in ("a cat.", said)]
    np.testing.assert_array_equal(*alike)
    np.testing.assert_array_equal(alike[0], video.encoder.encode_text([said])[0])


def test_the_shift_of_stdit3_follows_from_size_and_frames() -> None:
    """51 pixel frames of its temporal autoencoder are 15 of latents."""
    assert latent_video_shift(240, 426, 15) == video_shift(240, 426, 51)
    assert latent_video_shift(240, 426, 19) == video_shift(240, 426, 64)
    video = tiny.video("stdit3")
    assert video.plan(size=(24, 16), frames=10).sampler.shift == latent_video_shift(24, 16, 10)
    assert video.sampler.shift == latent_video_shift(16, 16, 5)
    assert video.with_sampler("flow_euler", shift=2.0).sampler.shift == 2.0
    with pytest.raises(ValueError, match="knows no velocity"):
        video.with_sampler("ddim")


def test_given_frames_stay_and_the_others_are_made_to_fit_them() -> None:
    """Against the loop of the original, in NumPy: given frames are masked, put back after every step."""
    video = tiny.video("stdit3")
    noise = np.random.default_rng(0).standard_normal((2, 5, 8, 8, 4)).astype(np.float32)
    found = video.latents(PROMPTS, noise=jnp.asarray(noise), given={0: FRAME})
    np.testing.assert_array_equal(found[:, 0], FRAME)

    encoded = video.encode(PROMPTS, guide=True)
    prompt = encode_prompt(video.denoiser, encoded)
    forward, made = jax.jit(type(video.denoiser).__call__), np.arange(5) > 0
    shift = latent_video_shift(16, 16, 5)
    tau = 1 - np.arange(3) / 3
    tau = np.append(shift * tau / (1 + (shift - 1) * tau), 0)
    x = noise.astype(np.float64)
    x[:, 0] = FRAME
    for i in range(3):
        both = jnp.asarray(np.concatenate([x, x]), jnp.float32)
        mask = jnp.asarray(np.broadcast_to(made, (4, 5)))
        out = forward(
            video.denoiser, both, jnp.full(4, 1000 * tau[i], jnp.float32), prompt, encoded["clip"], mask
        )
        cond, uncond = np.split(np.asarray(out[..., :4], np.float64), 2)
        moved = x + (uncond + 7.0 * (cond - uncond)) * (tau[i] - tau[i + 1])
        x = np.where(made[None, :, None, None, None], moved, x)
    assert np.abs(np.asarray(found) - x).max() <= 1e-5 * np.abs(x).max()


def test_the_clip_reaches_the_model() -> None:
    video = tiny.video("stdit3")
    faster = dataclasses.replace(video, facts={**video.facts, "fps": 60})
    assert isinstance(video.encoder.sizes(2)["clip"], Clip)
    assert not close(faster.latents(PROMPTS, seed=1), latents("stdit3"))


def test_a_packaged_model_that_was_left_out_is_named() -> None:
    said = r"'absent' is not in this installation.*train_absent\.py"
    with pytest.raises(FileNotFoundError, match=said), packaged_model("absent"):
        pass


def test_videos_are_calibrated_on_prompts_of_things_in_motion() -> None:
    assert "moving" in " ".join(map(str, calibration_conditions(tiny.video())))
    assert default_conditions(tiny.pipeline()) != default_conditions(tiny.video())


@pytest.mark.parametrize("model", ["pixart", "stdit", "latte"])
def test_nothing_is_judged_by_what_it_was_calibrated_on(model: str) -> None:
    pipeline = tiny.pipeline() if model == "pixart" else tiny.video(model)
    if model == "latte":  # with as many classes as it takes to tell them apart
        facts = {**pipeline.facts, "conditions": {**pipeline.facts["conditions"], "classes": 101}}
        pipeline = dataclasses.replace(pipeline, facts=facts)
    calibrated = calibration_conditions(pipeline)
    assert len(set(calibrated)) == len(calibrated) == (16 if model == "pixart" else 4)
    assert not set(calibrated) & set(default_conditions(pipeline))
