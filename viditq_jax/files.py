"""Files that are whole or not there, whatever ends their writing: a full disk, a kill, a power cut.

A file or folder is filled beside its place, as ".NAME.partial", forced to the disk, and only then renamed, in
one step. A killed run leaves the partial one at most, and the next run writes over it. It is locked as long
as it is filled: of two processes that write the same file one waits, so that neither tears what the other
writes. A file that grows line by line ends, after a kill, in a part of a line, which does not count.
"""

import collections
import contextlib
import ctypes
import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_FROM_HERE, _EXCHANGE = -100, 2  # of Linux's renameat2: paths as they are; swap two names


def write_atomic(path: str | Path, content: bytes | str) -> None:
    """Write a file, and its folder if there is none. Raises OSError, which names the file and the way out."""
    data = content.encode() if isinstance(content, str) else content
    with writing(path) as partial:
        partial.write_bytes(data)


def write_json(path: str | Path, value: Any, *, indent: int = 1, sort_keys: bool = False) -> None:
    """Write a record. Raises ValueError for a number that JSON has not, such as NaN, and OSError as above."""
    try:
        text = json.dumps(value, indent=indent, sort_keys=sort_keys, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{path} is not written: {error}; nothing of it may be NaN or infinite.") from error
    write_atomic(path, text + "\n")


def parse_json(text: str) -> Any:
    """The value of a text that a person or a stranger may have written.

    Raises ValueError, which says where, also for NaN, for nesting that no honest file has, and for a name
    that stands twice in an object, where `json` takes the last.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}: {error.msg}") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        name, _ = collections.Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the name {name!r} stands twice")
    return found


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


@contextmanager
def writing(path: str | Path) -> Iterator[Path]:
    """A name to write a file under; at the end of the block it takes its own, and an error leaves nothing.

    Raises OSError, which names the file and what to do, for whatever OSError ends the block.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(partial):
            try:
                yield partial
                _force(partial)
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
        _force(path.parent)
    except OSError as error:
        raise _explained(error, path) from error


@contextmanager
def writing_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """An empty folder to fill, which takes the name `path` at the end of the block; an error leaves nothing.

    With `overwrite` it takes the place of the folder of that name, if there is one, in a single step where
    the system can swap names (Linux). Raises OSError if another process fills it.
    """
    partial = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(partial, folder=True):
        try:
            for left in partial.iterdir():  # by a killed run
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
            yield partial
            for each in [*partial.rglob("*"), partial]:
                _force(each)
            _replace(partial, path, overwrite)
        finally:
            _remove(partial)
    _force(path.parent)


def append_line(path: Path, line: str) -> None:
    """Add a line; once this returns, neither a kill nor a power cut loses it. A full disk adds nothing."""
    data = memoryview((line + "\n").encode())
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            end = os.fstat(file).st_size
            try:
                while data:
                    data = data[os.write(file, data) :]
                os.fsync(file)
            except OSError:
                os.ftruncate(file, end)
                raise
        finally:
            os.close(file)
        if not end:
            _force(path.parent)
    except OSError as error:
        raise _explained(error, path) from error


def whole_lines(path: Path) -> list[str]:
    """The lines of a file that have an end. Raises ValueError, with the line, for what is no text."""
    data = path.read_bytes()
    data = data[: data.rfind(b"\n") + 1]
    try:
        return data.decode("utf-8").split("\n")[:-1]
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path} line {number} is damaged: no text ({error.reason}); delete what holds it, and run again."
        ) from error


def drop_torn_line(path: Path) -> None:
    """Cut off what a killed run left of a line, so that the next line begins one."""
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)
        _force(path)


@contextmanager
def _locked(partial: Path, *, folder: bool = False) -> Iterator[None]:
    """Create it, or take over what a killed run left, and hold it against other processes.

    A file that another process holds is waited for; a folder takes long, and is refused.
    """
    while True:
        if folder:
            partial.mkdir(exist_ok=True)
        flags = os.O_RDONLY | os.O_DIRECTORY if folder else os.O_RDWR | os.O_CREAT
        try:
            held = os.open(partial, flags | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:  # its holder has just given it its name
            continue
        try:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | (fcntl.LOCK_NB if folder else 0))
            except BlockingIOError as error:
                why = f"another process is writing {partial.name}; wait for it, or choose another name"
                raise BlockingIOError(error.errno, why, str(partial)) from None
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise  # a file system without locks is for one process at a time
            # Unless its last holder has renamed it, while it was waited for.
            if _is_still(partial, held):
                yield
                return
        finally:
            os.close(held)


def _is_still(partial: Path, held: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(held), partial.lstat())
    return False


def _force(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno != errno.EINVAL:  # folders of some network file systems
            raise
    finally:
        os.close(file)


def _remove(folder: Path) -> None:
    """With what threads still write into it that have not heard of the error, as those of TensorStore."""
    for _ in range(50):
        if not folder.exists():
            return
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.1)


def _replace(partial: Path, path: Path, overwrite: bool) -> None:
    """Give the finished folder its name; what it replaces has the other name then, or is gone.

    Where names cannot be swapped, an older one is set aside first, so that one of the two always exists, and
    set back if the new one does not get its name.
    """
    if not (overwrite and path.exists()):
        partial.rename(path)  # refused by the system if something has appeared there meanwhile
        return
    if _exchange(partial, path):
        return
    old = path.parent / f".{path.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    path.rename(old)
    try:
        partial.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two names in one step; False where the system or the file system cannot."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # no Linux, or one with a C library older than 2018
        return False
    if call(_FROM_HERE, os.fsencode(a), _FROM_HERE, os.fsencode(b), _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS):
        return False
    raise OSError(number, os.strerror(number), str(b))


def _explained(error: OSError, path: Path) -> OSError:
    """The error with its file, which that of a full disk does not say, and the way out."""
    why = error.strerror or str(error)
    text = f"{why}; free some space or check the permissions, and run again"
    return OSError(error.errno or errno.EIO, text, str(path))
