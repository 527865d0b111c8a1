"""Files that are whole or not at all: whatever ends the writing, the old content or the new one is there."""

import errno
import os
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from viditq_jax import files
from viditq_jax.files import (
    append_line,
    drop_torn_line,
    whole_lines,
    write_atomic,
    write_json,
    writing,
    writing_folder,
)

BLOCK = 4096


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """No file of this process grows beyond `room` bytes; the system says "too large", and not "full"."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_has_its_content_and_is_for_others_to_read(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        write_atomic(tmp_path / "new/a", "é\n")
        write_json(tmp_path / "new/b.json", {"b": [1.5, None], "a": "é"}, sort_keys=True)
    finally:
        os.umask(umask)
    assert (tmp_path / "new/a").read_bytes() == "é\n".encode()
    assert (tmp_path / "new/b.json").read_text() == '{\n "a": "\\u00e9",\n "b": [\n  1.5,\n  null\n ]\n}\n'
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "new").iterdir()} == {0o644}
    assert names(tmp_path / "new") == ["a", "b.json"]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", b"old")
    with full_disk(BLOCK), pytest.raises(OSError, match=r"free some space .*run again: '.*/a'"):
        write_atomic(tmp_path / "a", bytes(2 * BLOCK))
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("step", ["write_bytes", "replace", "fsync"])
def test_an_error_at_any_step_leaves_the_old_file_and_names_it(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomic(tmp_path / "a", b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os if step == "fsync" else Path, step, full)
    with pytest.raises(OSError, match=r"No space left on device; free some space .*'.*/a'") as caught:
        write_atomic(tmp_path / "a", b"new")
    assert caught.value.errno == errno.ENOSPC
    assert "\n" not in str(caught.value)
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_numbers_that_json_has_not_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x\.json is not written: .*NaN or infinite"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert names(tmp_path) == []


def test_what_a_killed_run_left_is_written_over(tmp_path: Path) -> None:
    (tmp_path / ".a.partial").write_bytes(bytes(1000))
    write_atomic(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    (tmp_path / ".b.partial/deep").mkdir(parents=True)
    (tmp_path / ".b.partial/deep/half").write_bytes(b"x")
    with writing_folder(tmp_path / "b") as folder:
        (folder / "c").write_bytes(b"c")
    assert names(tmp_path) == ["a", "b"]
    assert names(tmp_path / "b") == ["c"]


def test_a_link_in_the_place_of_a_partial_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"mine")
    (tmp_path / ".a.partial").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match=r"run again: '.*/a'"):
        write_atomic(tmp_path / "a", b"new")
    assert (tmp_path / "precious").read_bytes() == b"mine"


def test_of_two_that_write_one_file_the_second_waits(tmp_path: Path) -> None:
    """Locks belong to opened files, so two threads meet as two processes do."""
    second = threading.Thread(target=write_atomic, args=(tmp_path / "a", b"second"))
    with writing(tmp_path / "a") as partial:
        partial.write_bytes(b"fir")
        second.start()
        second.join(0.05)
        assert second.is_alive()
        with partial.open("ab") as file:
            file.write(b"st")
        seen = partial.read_bytes()
    second.join()
    assert seen == b"first"
    assert (tmp_path / "a").read_bytes() == b"second"
    assert names(tmp_path) == ["a"]


def test_a_folder_that_another_is_filling_is_refused_and_left_alone(tmp_path: Path) -> None:
    with writing_folder(tmp_path / "a") as folder:
        (folder / "b").write_bytes(b"first")
        again = writing_folder(tmp_path / "a")
        with pytest.raises(BlockingIOError, match=r"another process is writing \.a\.partial; wait for it"):
            again.__enter__()
    assert (tmp_path / "a/b").read_bytes() == b"first"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("swaps", [True, False])
def test_a_folder_takes_the_place_of_another_only_when_asked(
    swaps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not swaps:
        monkeypatch.setattr(files, "_exchange", lambda a, b: False)
    for content in (b"old", b"new"):
        with writing_folder(tmp_path / "a", overwrite=True) as folder:
            (folder / "b").write_bytes(content)
    with pytest.raises(OSError, match="not empty"), writing_folder(tmp_path / "a") as folder:
        (folder / "b").write_bytes(b"late")
    assert (tmp_path / "a/b").read_bytes() == b"new"
    assert names(tmp_path) == ["a"]


def test_an_error_while_a_folder_is_filled_leaves_the_old_one_alone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b").write_bytes(b"old")
    with full_disk(BLOCK), pytest.raises(OSError), writing_folder(tmp_path / "a", overwrite=True) as folder:  # noqa: PT011
        (folder / "b").write_bytes(bytes(2 * BLOCK))
    assert (tmp_path / "a/b").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_a_full_disk_adds_no_part_of_a_line(tmp_path: Path) -> None:
    for line in ("one", "two"):
        append_line(tmp_path / "lines", line)
    with full_disk(BLOCK), pytest.raises(OSError, match=r"free some space .*run again: '.*/lines'"):
        append_line(tmp_path / "lines", "x" * 2 * BLOCK)
    assert (tmp_path / "lines").read_bytes() == b"one\ntwo\n"


def test_a_line_without_an_end_does_not_count(tmp_path: Path) -> None:
    (file := tmp_path / "lines").write_bytes(b"one\ntwo\nthr\xc3")
    assert whole_lines(file) == ["one", "two"]
    drop_torn_line(file)
    append_line(file, "three")
    assert file.read_bytes() == b"one\ntwo\nthree\n"
    before = file.stat()
    drop_torn_line(file)
    assert file.stat().st_mtime_ns == before.st_mtime_ns


def test_a_line_that_is_no_text_is_named(tmp_path: Path) -> None:
    (file := tmp_path / "lines").write_bytes(b"one\ntw\xff\n")
    with pytest.raises(ValueError, match="lines line 2 is damaged: no text"):
        whole_lines(file)
