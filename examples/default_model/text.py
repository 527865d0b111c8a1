"""Captions to token ids: a small sentencepiece model that keeps to the conventions of T5."""

import io
import json
from pathlib import Path

import numpy as np
from default_model.data import COLOURS, Icon, Rows, caption

LENGTH = 24  # tokens of a prompt, the end among them
VOCABULARY = 1536
PAD, END, UNKNOWN = 0, 1, 2


def make_tokenizer(icons: list[Icon], folder: Path) -> None:
    """Train on all captions; write spiece.model and tokenizer_config.json: pad 0, end 1, unknown 2."""
    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    texts = []
    for icon in icons:
        texts += [icon.words] * (1 + round(icon.weight)) + [caption(icon, "white", style=True)]
    texts += [
        caption(icons[i % len(icons)], colour, style=True) for i, colour in enumerate(list(COLOURS) * 40)
    ]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, model_type="unigram", vocab_size=VOCABULARY,
        pad_id=PAD, eos_id=END, unk_id=UNKNOWN, bos_id=-1, pad_piece="<pad>", eos_piece="</s>",
        unk_piece="<unk>", character_coverage=1.0, normalization_rule_name="nmt_nfkc_cf", num_threads=2,
        minloglevel=2, required_chars="abcdefghijklmnopqrstuvwxyz0123456789,.-'",
        hard_vocab_limit=False,
    )  # fmt: skip
    (folder / "spiece.model").write_bytes(model.getvalue())
    config = {
        "tokenizer_class": "T5Tokenizer", "model_max_length": LENGTH, "extra_ids": 0,
        "additional_special_tokens": [], "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>",
        "legacy": True,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


class Tokenizer:
    """Texts to ids [b, LENGTH], padded and ended."""

    def __init__(self, folder: Path):
        import sentencepiece

        self.model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))

    @property
    def size(self) -> int:
        """Entries of the vocabulary."""
        return self.model.get_piece_size()

    def __call__(self, texts: list[str]) -> np.ndarray:
        ids = np.full((len(texts), LENGTH), PAD, np.int32)
        for row, pieces in zip(ids, self.model.encode([text.lower() for text in texts]), strict=True):
            pieces = [*pieces[: LENGTH - 1], END]
            row[: len(pieces)] = pieces
        return ids


def row_ids(tokenizer: Tokenizer, icons: list[Icon], rows: Rows) -> np.ndarray:
    """Ids of every row's caption without and with the style, int32 [rows, 2, LENGTH]."""
    names = list(COLOURS)
    pairs = [(icons[i], names[colour]) for i, colour in zip(rows.icon, rows.colour, strict=True)]
    both = [
        tokenizer([caption(icon, colour, style=style) for icon, colour in pairs]) for style in (False, True)
    ]
    return np.stack(both, axis=1)
