"""What a behaviour is: a function that tries one thing in a directory of its own, and how each is run."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["BEHAVIOURS", "CONTENT", "LONG_AGO", "LOWER", "Behaviour", "behaviour", "fails", "lay", "on_files", "run"]

Check = Callable[[Path], None]

#: What the file of `lay` holds: neither a whole number of pages nor the same in any two of them.
CONTENT = b"".join(b"%07d\n" % number for number in range(1500)) + b"the end"
#: When everything that `lay` makes was changed last, in nanoseconds.
LONG_AGO = 1_600_000_000_123_456_789
#: What the name of a behaviour begins with whose files were there before the view was opened.
LOWER = "lower_"
#: How long one behaviour may take, in seconds.
_SECONDS = 20


@dataclass(frozen=True)
class Behaviour:
    """One behaviour. It is given an empty directory, or one with what `lay` makes."""

    name: str
    check: Check
    laid: bool = False


#: All of them, by name.
BEHAVIOURS: dict[str, Behaviour] = {}


def behaviour(check: Check) -> Check:
    """Put `check` into the table: it wants an empty directory."""
    _add(Behaviour(check.__name__, check))
    return check


def on_files(check: Check) -> Check:
    """Put `check` into the table twice: on files that were made just now, and on those of a lower tree."""
    _add(Behaviour(check.__name__, check, laid=True))
    _add(Behaviour(LOWER + check.__name__, check, laid=True))
    return check


def _add(added: Behaviour) -> None:
    assert added.name not in BEHAVIOURS and added.check.__doc__, added.name
    BEHAVIOURS[added.name] = added


@contextmanager
def fails(*numbers: int) -> Iterator[None]:
    """What is done in it ends with one of these errnos."""
    wanted = " or ".join(errno.errorcode[number] for number in numbers)
    try:
        yield
    except OSError as error:
        if error.errno not in numbers:
            raise AssertionError(f"{wanted} expected, not {errno.errorcode.get(error.errno or 0)}") from error
    else:
        raise AssertionError(f"{wanted} expected, but it worked")


def lay(directory: Path) -> None:
    """Fill `directory` with the files that `on_files` promises, all of them changed last long ago."""
    (directory / "file").write_bytes(CONTENT)
    (directory / "other").write_bytes(b"other\n")
    (directory / "script").write_bytes(b"#!/bin/sh\necho ran\n")
    (directory / "read-only").write_bytes(b"fixed\n")
    (directory / "empty").mkdir()
    (directory / "full/deeper").mkdir(parents=True)
    (directory / "full/inside").write_bytes(b"inside\n")
    (directory / "full/deeper/bottom").write_bytes(b"bottom\n")
    (directory / "link").symlink_to("file")
    (directory / "dangling").symlink_to("nowhere")
    (directory / "first").write_bytes(b"one file\n")
    os.link(directory / "first", directory / "second")
    os.mkfifo(directory / "fifo")
    with open(directory / "sparse", "wb") as sparse:
        sparse.truncate(4 << 20)
        os.pwrite(sparse.fileno(), CONTENT, 2 << 20)
    os.setxattr(directory / "file", "user.laid", b"value")
    for name, mode in (("script", 0o755), ("read-only", 0o444), ("file", 0o644)):
        os.chmod(directory / name, mode)
    for top, directories, files in os.walk(directory, topdown=False):
        for name in (*files, *directories):
            os.utime(Path(top, name), ns=(LONG_AGO, LONG_AGO), follow_symlinks=False)
    os.utime(directory, ns=(LONG_AGO, LONG_AGO))


def run(top: Path, names: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Try each behaviour in a directory below `top`; what came of it, as the program prints it.

    One for a lower tree uses the directory of its name where there is one already. What was made is removed.
    """
    for name in names:
        found = BEHAVIOURS[name]
        directory = top / name
        is_there = directory.exists()
        if not is_there:
            directory.mkdir()
            if found.laid:
                lay(directory)
        error = _in_a_child(found.check, directory)
        if not is_there:
            shutil.rmtree(directory, ignore_errors=True)
        yield {"name": name, "ok": error is None, "error": error}


def _in_a_child(check: Check, directory: Path) -> str | None:
    """What went wrong with it, in a process of its own: it may change that as it likes."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.setpgid(0, 0)
        signal.alarm(_SECONDS)
        try:
            check(directory)
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)
            lines = [frame for frame in where if frame.name == check.__name__] or where
            told = f"{type(error).__name__}: {error} (line {lines[-1].lineno}: {lines[-1].line})"
            os.write(writer, json.dumps(told).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        answer = pipe.read()
    _pid, status = os.waitpid(child, 0)
    try:
        os.killpg(child, signal.SIGKILL)  # what it has started and not waited for
    except ProcessLookupError:
        pass
    if os.WIFSIGNALED(status):
        return f"ended by {signal.Signals(os.WTERMSIG(status)).name}"
    return str(json.loads(answer)) if answer else None
