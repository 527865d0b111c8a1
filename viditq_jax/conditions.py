"""Conditions as arrays: class labels, captions, token ids.

A caption goes through `clean_caption`, if the model was trained on cleaned captions, and then a `Tokenizer`.
"""

import csv
import dataclasses
import functools
import html
import io
import json
import re
import urllib.parse
import warnings
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int32

PAD, EOS = 0, 1  # in every vocabulary of T5
LONGEST = 5_000  # characters of a prompt; cleaning takes the square of them, and models read 1,500 at most


def packaged_prompts(name: str = "default") -> list[str]:
    """Prompts of the packaged models, no two lists with one in common: "default", to show and to judge by;
    "calibration" and "calibration-text", to quantize with; "search", to choose bits with; and each with
    "-video" of things in motion.
    """
    file = resources.files("viditq_jax.assets") / "prompts" / f"{name}.txt"
    return read_prompts(file.read_text(encoding="utf-8"))


def prompts_in(file: str | Path) -> list[str]:
    """The prompts of a file: one a line; of a .jsonl a string or {"prompt": ...} a line; of a .csv the column
    "prompt". Raises ValueError, with the line, for a file that is none of these, without a prompt, and for
    what no prompt can be.
    """
    file = Path(file)
    if not file.is_file():
        there = "is a folder" if file.is_dir() else "does not exist"
        raise ValueError(f"{file} {there}; give a file with one prompt a line, a .jsonl or a .csv.")
    if file.suffix.lower() == ".json":
        raise ValueError(f'{file} is JSON; write a .jsonl, a string or {{"prompt": ...}} a line.')
    try:
        text = file.read_text(encoding="utf-8-sig")  # some editors begin a file with a mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not a text file ({error.reason}); give one prompt a line.") from error
    read = {".jsonl": _json_prompts, ".csv": _csv_prompts}.get(file.suffix.lower())
    found = read_prompts(text) if read is None else read(text, str(file))
    if not found:
        raise ValueError(f"{file} holds no prompt; give one a line, or leave the flag out.")
    for number, prompt in enumerate(found, 1):
        check_prompt(prompt, f"{file} prompt {number}")
    return found


def _json_prompts(text: str, name: str) -> list[str]:
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{name} line {number} is not JSON ({error}); write one value a line."
            ) from error
        prompt = value.get("prompt") if isinstance(value, dict) else value
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(
                f'{name} line {number} holds no prompt; write "red apple" or {{"prompt": "red apple"}}.'
            )
        found.append(prompt.strip())
    return found


def _csv_prompts(text: str, name: str) -> list[str]:
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise ValueError(
            f"{name} is not CSV ({error}); quote prompts that hold a comma or a quote."
        ) from error
    if rows and "prompt" not in rows[0]:
        raise ValueError(f"{name} has no column 'prompt'; name it in the first line.")
    if empty := [number for number, row in enumerate(rows, 2) if not (row["prompt"] or "").strip()]:
        raise ValueError(f"{name} row {empty[0]} holds no prompt; fill the column 'prompt', or drop the row.")
    return [row["prompt"].strip() for row in rows]


def check_conditions(conditions: Sequence[str | int]) -> None:
    """Raise ValueError for none, and for one string, of which every letter would be a condition."""
    if isinstance(conditions, str):
        raise ValueError(f"one string was given as the conditions; put it in a list: [{conditions[:40]!r}].")
    if not conditions:
        raise ValueError("no conditions were given; give one prompt or class index for each sample.")


def read_prompts(text: str) -> list[str]:
    """One prompt a line; blank lines do not count."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def check_prompt(prompt: str, where: str = "this prompt") -> None:
    """Raise ValueError for what is no prompt: too long to be cleaned in time, or no text."""
    if len(prompt) > LONGEST:
        raise ValueError(
            f"{where} has {len(prompt)} characters; give {LONGEST} at most, models read far fewer."
        )
    if any(sign == "\0" or "\ud800" <= sign <= "\udfff" for sign in prompt):
        raise ValueError(f"{where} holds a NUL or half a character ({prompt[:20]!r}); give plain text.")


def labels_to_array(labels: Sequence[int], classes: int) -> Int32[np.ndarray, " b"]:
    """Class labels as a model takes them.

    Raises ValueError for labels outside [0, classes).
    """
    wrong = [label for label in labels if not 0 <= label < classes]
    if wrong:
        raise ValueError(f"labels {wrong} are not among the {classes} classes; use 0 to {classes - 1}.")
    return np.asarray(labels, np.int32).reshape(-1)


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Captions to the token ids of T5.

    data: the contents of a `spiece.model` (SentencePiece) or a `tokenizer.json`; what an artifact stores.
    A caption that spells a special token, such as "</s>", is text to the first and that token to the second.
    """

    data: bytes = dataclasses.field(repr=False)

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """The tokenizer in a file."""
        return cls(Path(path).read_bytes())

    @functools.cached_property
    def _encode(self) -> Callable[[str], list[int]]:
        try:
            return self._open()
        except Exception as error:  # tokenizers raises no narrower type
            raise ValueError(
                f"the tokenizer is neither a SentencePiece model nor a tokenizer.json ({error}); "
                "copy or download its file again."
            ) from error

    def _open(self) -> Callable[[str], list[int]]:
        if self.data.lstrip().startswith(b"{"):
            import tokenizers

            fast = tokenizers.Tokenizer.from_str(self.data.decode())
            fast.no_padding()
            fast.no_truncation()
            return lambda text: fast.encode(text, add_special_tokens=False).ids
        import sentencepiece

        if not self.data:
            raise ValueError("it is empty")
        return sentencepiece.SentencePieceProcessor(model_proto=self.data).encode

    def __call__(
        self, captions: Sequence[str], max_length: int
    ) -> tuple[Int32[np.ndarray, "b n"], Bool[np.ndarray, "b n"]]:
        """Token ids of each caption, closed by `EOS` and padded with `PAD`, and a mask, True for tokens.

        A caption with more than `max_length` tokens loses those at its end, before `EOS`.
        """
        if isinstance(captions, str):
            raise TypeError(f"captions are a list of strings, got the string {captions!r}; put it in a list.")
        ids = np.full((len(captions), max_length), PAD, np.int32)
        mask = np.zeros(ids.shape, bool)
        for row, caption in enumerate(captions):
            tokens = [*self._encode(caption)[: max_length - 1], EOS]
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = True
        return ids, mask


def clean_caption(caption: str) -> str:
    """The caption as PixArt-alpha and Open-Sora saw it in training: lower case, no web debris or odd symbols.

    Equal to what the PixArt pipelines of diffusers compute with `clean_caption=True`: the same pass twice, as
    one removal makes room for the next. PixArt-Sigma's own script passes captions as they are.
    """
    return _clean_once(_clean_once(caption))


_FILE_TYPES = "(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)"
_DASHES = (  # besides the hyphen-minus
    "\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40"
    "\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63\uff0d"
)
_DOMAIN = r"[a-z0-9.\-]+\.(?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"

_Rules = tuple[tuple[re.Pattern[str], str], ...]


def _rules(*rules: tuple[str, str]) -> _Rules:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in rules)


# Each table is applied from top to bottom, and the order matters.
_LINKS = _rules(
    ("<person>", "person"),  # how a training set hides names; not html
    (rf"\b(?:https?:(?:/{{1,3}}|[a-z0-9%])|{_DOMAIN})", ""),
    (rf"\b(?:www:(?:/{{1,3}}|[a-z0-9%])|{_DOMAIN})", ""),
)
_SYMBOLS = _rules(
    (r"@\w+", ""),  # @nickname
    (r"[\u31c0-\u9fff]+", ""),  # Chinese characters, enclosed letters, hexagrams
    (rf"[\-{_DASHES}]+", "-"),
    ("[`\u00b4«»“”\u00a8]", '"'),
    ("[\u2018\u2019]", "'"),
    ("&quot;?", ""),
    ("&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),  # IP address
    (r"\d:\d\d\s+$", ""),  # article number at the end
    (r"\\n", " "),  # a backslash and an n
    (r"#(?:\d{1,3}|\d{5,})\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.{_FILE_TYPES}", ""),
    (r"[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~()\[\]{}|\\/*]+", " "),
    (r"\s+\.\s+", " "),
)
_PHRASES = _rules(
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # jc6640
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),  # jc6640vc
    (r"\b\d+[a-zA-Z]+\d+\b", ""),  # 6640vc231
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b{_FILE_TYPES}(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),  # j2d1a2a
    (r"\b\d+\.?\d*[x\u0445×]\d+\.?\d*\b", ""),  # 1920x1080; also with the Cyrillic letter  # noqa: RUF001
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
    (r"^[\"'](.+)[\"']$", r"\1"),  # quotes around it all
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)


def _apply(rules: _Rules, text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


def _clean_once(caption: str) -> str:
    text = _apply(_LINKS, urllib.parse.unquote_plus(caption).strip().lower())
    text = _apply(_SYMBOLS, _without_markup(text))
    if text.count("-") + text.count("_") > 3:  # words-that-are-joined-like-this
        text = text.replace("-", " ").replace("_", " ")
    text = html.unescape(html.unescape(_mended(text)))
    return _apply(_PHRASES, text).strip()


def _without_markup(text: str) -> str:
    """The text of HTML."""
    if _is_plain(text):
        return text
    import bs4  # here, as most captions need it not

    with warnings.catch_warnings():
        # a caption may look like a file name
        warnings.simplefilter("ignore", bs4.MarkupResemblesLocatorWarning)
        return bs4.BeautifulSoup(text, features="html.parser").text


def _mended(text: str) -> str:
    """The text, its letters as they were meant where another encoding has made others of them."""
    if _is_plain(text):
        return text
    import ftfy

    return ftfy.fix_text(text)


def _is_plain(text: str) -> bool:
    """Whether neither HTML nor a wrong encoding can be in the text."""
    return text.isascii() and text.isprintable() and not set(text) & set("<&")
