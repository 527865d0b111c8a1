"""CLIP as transformers computes it, on a tiny model with random weights; clear words where there is none."""

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from PIL import Image
from tokenizers.processors import TemplateProcessing

from viditq_jax.evaluate import evaluate
from viditq_jax.evaluate.clip_score import _features, load

WORDS = ["!", "red", "apple", "pizza", "<start>", "<end>"]
SIDE, POSITIONS = 32, 7
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
RNG = np.random.default_rng(0)


def write(folder: Path, end: int, activation: str) -> transformers.CLIPModel:
    """A CLIP of transformers with all weights random, as `save_pretrained` writes it, and a tokenizer."""
    config = transformers.CLIPConfig(
        text_config={
            **TOWER, "hidden_act": activation, "vocab_size": len(WORDS), "max_position_embeddings": POSITIONS,
            "eos_token_id": end, "bos_token_id": 4, "pad_token_id": 0,
        },
        vision_config={**TOWER, "hidden_act": activation, "image_size": SIDE, "patch_size": 8},
        projection_dim=16,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="!")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.post_processor = TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 4), ("<end>", 5)]
    )
    words.save(str(folder / "tokenizer.json"))
    return model


@pytest.fixture(scope="module", params=[(2, "quick_gelu"), (5, "gelu")], ids=["released", "exact"])
def clip(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    return folder, write(folder, *request.param)


def test_features_are_those_of_transformers(clip) -> None:
    folder, model = clip
    ours = load(str(folder)).measure
    pixels = RNG.standard_normal((2, SIDE, SIDE, 3)).astype(np.float32)
    ids = np.array([[4, 1, 2, 5, 0, 0, 0], [4, 3, 3, 1, 2, 1, 5]], np.int32)
    with torch.no_grad():
        seen = model.vision_model(torch.from_numpy(pixels).permute(0, 3, 1, 2)).pooler_output
        said = model.text_model(torch.from_numpy(ids).long()).pooler_output
        seen, said = model.visual_projection(seen), model.text_projection(said)
    for method, x, theirs in (("pictures", pixels, seen), ("captions", ids, said)):
        found = np.asarray(_features(ours.net, method, x))
        # Two blocks of sums of at most 64 float32 products: 1e-5 of the largest feature, as all parity here.
        np.testing.assert_allclose(found, theirs.numpy(), atol=1e-5 * float(theirs.abs().max()))


def test_the_score_is_that_of_transformers_for_a_picture_of_its_size(clip) -> None:
    folder, model = clip
    picture = RNG.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    pixels = torch.from_numpy(((picture / 255 - mean) / std).astype(np.float32)).permute(2, 0, 1)[None]
    with torch.no_grad():
        out = model(input_ids=torch.tensor([[4, 1, 2, 5]]), pixel_values=pixels)
        cosine = float((out.image_embeds * out.text_embeds).sum())
    measure = load(str(folder)).measure
    assert measure(picture, "red apple") == pytest.approx(100 * max(cosine, 0), abs=1e-3)


def test_large_pictures_are_made_smaller_and_cut_to_their_middle(clip) -> None:
    """A wide picture whose middle is another one, twice as large."""
    measure = load(str(clip[0])).measure
    middle = RNG.integers(0, 256, (2 * SIDE, 2 * SIDE, 3), dtype=np.uint8)
    wide = np.concatenate([middle[:, ::-1], middle, middle[:, ::-1]], axis=1)
    small = np.asarray(Image.fromarray(middle).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    # Bicubic reads 2 pixels beyond each edge, of the picture itself or of what is beside it.
    inside = (slice(2, -2), slice(2, -2))
    np.testing.assert_allclose(measure.pixels(wide)[inside], measure.pixels(small)[inside], atol=1e-6)


def test_without_weights_there_is_a_message_and_no_number(tmp_path: Path, clip) -> None:
    (tmp_path / "generation.json").write_text(json.dumps({"seed": 0}))
    with pytest.raises(ValueError, match=r"clip_score needs a folder with a CLIP .* as clip_score=PLACE"):
        evaluate(tmp_path, ["clip_score"])
    with pytest.raises(ValueError, match="psnr takes no weights, got 'here'"):
        evaluate(tmp_path, ["psnr=here"])
    with pytest.raises(ValueError, match="is no CLIP of transformers"):
        evaluate(tmp_path, [f"clip_score={tmp_path}"])
    folder, _ = clip
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"there is no config\.json beside model\.safetensors"):
        load(str(tmp_path))
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot be read"):
        load(str(tmp_path))
    facts = json.loads((folder / "config.json").read_text())
    facts["projection_dim"] = 8
    (tmp_path / "config.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=r"text_projection\.weight is \[16, 32\], expected \[8, 32\]"):
        load(str(tmp_path))
