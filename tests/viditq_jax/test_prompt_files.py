"""Prompts from files: what is read, and what is refused with its line."""

from pathlib import Path

import pytest

from viditq_jax.conditions import prompts_in

WANTED = ["red apple", 'a "big" dog, fluent style', "blå hjärta"]
SAME = {
    "plain.txt": 'red apple\n\n  a "big" dog, fluent style\nblå hjärta',
    "mixed.jsonl": '"red apple"\n{"prompt": "a \\"big\\" dog, fluent style", "id": 7}\n\n'
    '{"prompt": " blå hjärta "}\n',
    "table.csv": 'id,prompt\n1,red apple\n2,"a ""big"" dog, fluent style"\n3,blå hjärta\n',
    "UPPER.CSV": 'prompt\nred apple\n"a ""big"" dog, fluent style"\nblå hjärta\n',
}
REFUSED = {
    "broken.jsonl": ('"red apple"\n{"prompt": \n', "line 2 is not JSON"),
    "number.jsonl": ('{"prompt": 7}\n', "line 1 holds no prompt"),
    "other.jsonl": ('{"text": "red apple"}\n', "line 1 holds no prompt"),
    "deep.jsonl": ("[" * 100_000 + "\n", "line 1 is not JSON"),
    "other.csv": ("text\nred apple\n", "no column 'prompt'"),
    "short.csv": ("id,prompt\n1,red apple\n2\n", "row 3 holds no prompt"),
    "quote.csv": ('prompt\n"red" apple\n', "is not CSV"),
    "list.json": ('["red apple"]', "is JSON; write a .jsonl"),
    "empty.txt": (" \n\n", "holds no prompt"),
    "empty.csv": ("prompt\n", "holds no prompt"),
}


@pytest.mark.parametrize("name", SAME)
def test_all_kinds_of_files_hold_the_same_prompts(tmp_path: Path, name: str):
    (tmp_path / name).write_text(SAME[name], encoding="utf-8")
    assert prompts_in(tmp_path / name) == WANTED


@pytest.mark.parametrize("name", REFUSED)
def test_what_holds_no_prompt_is_refused_with_its_line(tmp_path: Path, name: str):
    text, words = REFUSED[name]
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=words) as caught:
        prompts_in(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_what_is_no_file_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="is a folder"):
        prompts_in(tmp_path)
    with pytest.raises(ValueError, match=r"missing\.txt does not exist"):
        prompts_in(tmp_path / "missing.txt")


def test_a_picture_is_no_file_of_prompts(tmp_path: Path):
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe")
    with pytest.raises(ValueError, match="is not a text file"):
        prompts_in(tmp_path / "picture.png")
