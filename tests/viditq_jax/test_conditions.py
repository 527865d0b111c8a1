# ruff: noqa: RUF001 (captions with the very symbols that cleaning replaces)
import io
import random
import warnings

import bs4
import ftfy
import numpy as np
import pytest
import sentencepiece
from diffusers import PixArtSigmaPipeline
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import T5Tokenizer

from viditq_jax import conditions
from viditq_jax.conditions import Tokenizer, clean_caption, labels_to_array

CAPTIONS = [
    "A small cactus with a happy face in the Sahara desert.",
    "  many   spaces\tand tabs\nand lines  ",
    "Café naïve, ﬁne ½ cup — 20°C",
    "pneumonoultramicroscopic, an unknown sign: 猫 and 𝔘",
    "",
    "the cat sat on the mat " * 20,
]

TRICKY = [
    *CAPTIONS,
    "See https://example.com/a/b-c?d=e#f or www.example.org, mail me@host.net and www:/x",
    "<p>A <b>bold</b> &amp; &quot;brave&quot; &lt;knight&gt; &amp;amp;</p><person> by @artist_99!",
    "a+plus%20sign and caf%C3%A9 \\n literal, 100% cotton",
    "漢字とカナ ㈱ ㌔ 㐀 ䷀ ㇰ and hiragana ひらがな",
    "dash — en – minus - figure ‒ wave 〜 small ﹣ full - hyphen‐hyphen",
    "“Smart” «quotes» `ticks´ ‘single’ ¨ \"\"\"AUSVERKAUFT\"\"\" '''x'''",
    "server 192.168.0.1 at 3:45   ",
    "#1 #123 #1234 #12345 ##99 123456 12345 #tag",
    "IMG_2034.jpg photo.jpeg.png my.file.mp4 pdf images of png image page  12",
    "this-is-my-cute-cat and this_is_one",
    "two-words_only-here",
    "***wow*** (really) [no] {yes} | / \\ ~ § ® © ™ • · º ¿ ¡",
    "â€œmojibakeâ€\x9d cafÃ© &#65;B&#99;12DE &amp;lt;i&amp;gt;",
    "jc6640 jc6640vc 6640vc231 j2d1a2a3 ABC123 a1b2c3d4",
    "Worldwide free shipping! free download free, click on this, click for more, shipping",
    "1920x1080 3.5×2.0 10х20 5 x 5 wallpaper",
    "title : subtitle :a, b,c.d/e .5 end .",
    "'quoted whole'",
    "\"mixed'",
    "-leading and trailing-",
    ": both +",
    ".hidden",
    "wait.... what . . ok .. fine",
    "ÀÉÎ ÖÜ Straße ΑΒΓ привет İstanbul ǅ",
    "http:google.com.co/it//path/ a.com@b.net x.co.uk-",
    "/etc/passwd",
    "<unclosed <br/> a < b > c <script>alert(1)</script><!-- gone -->",
]


@pytest.fixture(scope="module")
def pipeline() -> PixArtSigmaPipeline:
    return PixArtSigmaPipeline.__new__(PixArtSigmaPipeline)  # cleaning needs no weights


def expected(pipeline: PixArtSigmaPipeline, caption: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pipeline._clean_caption(pipeline._clean_caption(caption))


@pytest.mark.parametrize("caption", TRICKY)
def test_cleaning_equals_diffusers(pipeline, caption):
    assert clean_caption(caption) == expected(pipeline, caption)


@pytest.mark.filterwarnings(
    "ignore::bs4.MarkupResemblesLocatorWarning"
)  # a caption may look like a file name
@given(st.text([chr(sign) for sign in range(32, 127) if chr(sign) not in "<&"]))
@example(".HTM")
def test_what_is_called_plain_no_library_changes(text):
    assert conditions._is_plain(text)
    assert ftfy.fix_text(text) == bs4.BeautifulSoup(text, features="html.parser").text == text


def test_cleaning_equals_diffusers_on_shuffled_debris(pipeline):
    pieces = sorted({piece for caption in TRICKY for piece in caption.split(" ")})
    dice = random.Random(0)
    for _ in range(1000):
        caption = "".join(
            dice.choice(pieces) + dice.choice(["", " ", " ", "\n"]) for _ in range(dice.randint(1, 12))
        )
        assert clean_caption(caption) == expected(pipeline, caption), caption


@pytest.fixture(scope="module")
def spiece() -> bytes:
    """A SentencePiece model with the settings and the special ids of T5."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(
            [text for text in CAPTIONS[:1] + CAPTIONS[-1:] + TRICKY[6:12] for _ in range(3)]
        ),
        model_writer=model,
        vocab_size=120,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def reference(spiece, tmp_path_factory) -> T5Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "spiece.model").write_bytes(spiece)
    return T5Tokenizer.from_pretrained(folder, extra_ids=0)


@pytest.mark.parametrize("max_length", [7, 40, 400])
def test_ids_and_mask_equal_transformers_for_both_file_formats(spiece, reference, tmp_path, max_length):
    (tmp_path / "tokenizer.json").write_text(reference.backend_tokenizer.to_str())
    wanted = reference(
        CAPTIONS, padding="max_length", truncation=True, max_length=max_length, return_tensors="np"
    )
    for tokenizer in (Tokenizer(spiece), Tokenizer.load(tmp_path / "tokenizer.json")):
        ids, mask = tokenizer(CAPTIONS, max_length)
        assert (ids.dtype, mask.dtype) == (np.int32, np.bool_)
        np.testing.assert_array_equal(ids, wanted["input_ids"])
        np.testing.assert_array_equal(mask, wanted["attention_mask"])


def test_a_truncated_caption_still_ends_with_eos(spiece):
    ids, mask = Tokenizer(spiece)([CAPTIONS[-1]], 9)
    assert ids[0, -1] == 1
    assert mask.all()


def test_an_empty_caption_is_eos_and_padding(spiece):
    ids, mask = Tokenizer(spiece)([""], 4)
    assert ids.tolist() == [[1, 0, 0, 0]]
    assert mask.tolist() == [[True, False, False, False]]


def test_a_single_string_is_refused_as_a_list_of_captions(spiece):
    with pytest.raises(TypeError, match="put it in a list"):
        Tokenizer(spiece)("a cat", 8)


@pytest.mark.parametrize("data", [b"", b"junk", b'{"a": 1}', b"{", b"{\xff"])
def test_a_damaged_tokenizer_is_refused_as_such(data):
    with pytest.raises(ValueError, match="neither a SentencePiece model nor a tokenizer"):
        Tokenizer(data)(["an apple"], 8)


def test_labels_outside_of_the_classes_are_refused_together():
    assert labels_to_array([3, 0], 10).tolist() == [3, 0]
    with pytest.raises(ValueError, match=r"labels \[-1, 10\] .* use 0 to 9"):
        labels_to_array([-1, 4, 10], 10)
