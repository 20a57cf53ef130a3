"""Looking at bytes that somebody else wrote, without a module server: in a child that can do nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from viewfs.errors import DamagedSourceError, ViewfsError, printable
from viewfs.linux.apart import done_apart
from viewfs.linux.process import die_with_parent, keep_only
from viewfs.modules.api import Identities, Module, Mounting, Source
from viewfs.modules.api.options import parse_options, size
from viewfs.modules.framework.registry import Found, likely_taker, probe, source_takers
from viewfs.modules.framework.sources import FileSource, checked_offset
from viewfs.namespaces.sandbox import confine_reader
from viewfs.session.wire import plain_json

__all__ = ["describe_source", "find_by_content", "part_of"]

#: Bytes of an answer that are read.
_ANSWER_MAX = 1 << 20
_FAILED = "cannot look at {}: the process that did has failed"


class _Rest:
    """The part of a source from an offset on, as a source."""

    def __init__(self, source: FileSource, offset: int) -> None:
        self._source, self._offset = source, offset
        self.size = source.size - offset

    def pread(self, size: int, offset: int) -> bytes:
        return self._source.pread(size, self._offset + offset)


#: The option of all formats that can begin at an offset.
_OFFSET = size("offset", 0, "")


def part_of(source: FileSource, name: str, options: Mapping[str, str | None]) -> Source:
    """`source`, which is called `name`, from the offset in `options` on. Raises `UsageError`."""
    offset = parse_options("this", (_OFFSET,), {"offset": options["offset"]} if "offset" in options else {})["offset"]
    return _Rest(source, checked_offset(source, offset, name)) if offset else source


def find_by_content(source: FileSource, name: str, options: Mapping[str, str | None]) -> Found:
    """The module that knows `source`, which is called `name`, from the offset in `options` on. Raises
    `DamagedSourceError` if none does, and `UsageError`."""
    part = part_of(source, name, options)
    # Modules are imported here, for the child that asks them can't open files.
    likely = likely_taker(part)
    if likely is not None and _ask_sealed(lambda: likely.module.probe(part), source, name) is True:
        return likely
    takers = source_takers()
    index = _ask_sealed(lambda: takers.index(probe(part, name, takers)), source, name)
    if type(index) is not int or not 0 <= index < len(takers):
        raise ViewfsError(_FAILED.format(name))
    return takers[index]


def describe_source(module: Module, source: FileSource, name: str, options: Mapping[str, str | None]) -> dict[str, str]:
    """What `module` says of `source`, which is called `name`. Raises the `ViewfsError` that the module raises."""
    identities = Identities(os.getuid(), os.getgid(), frozenset(), frozenset())
    mounting = Mounting(source, name, "/", identities, parse_options(module.name, module.options, options))
    described = _ask_sealed(lambda: dict(module.describe(mounting)), source, name)
    if not isinstance(described, dict) or not all(isinstance(value, str) for value in described.values()):
        raise ViewfsError(_FAILED.format(name))
    return {printable(key): printable(value) for key, value in described.items()}


def _ask_sealed(question: Callable[[], Any], source: FileSource, name: str) -> Any:
    """What `question` returns (as JSON has it) in a child with nothing but its memory and open descriptors.

    Raises the `ViewfsError` that it raises; a child that dies of what it reads is a failure like another.
    """
    parent = os.getpid()

    def ask(writing: int) -> bytes:
        answer: dict[str, Any] = {}
        try:
            die_with_parent(parent)
            keep_only(writing, source.fd)
            confine_reader()
            answer["ok"] = question()
        except ViewfsError as error:
            answer["error"] = error.to_json()
        except OSError as error:
            answer["error"] = DamagedSourceError(f"cannot read {name}: {error.strerror or error}").to_json()
        return plain_json.dumps(answer).encode()

    try:
        answer = plain_json.loads(done_apart(ask, most=_ANSWER_MAX).decode())
    except ValueError:
        answer = {}
    if not isinstance(answer, dict) or "ok" not in answer:
        answer = answer if isinstance(answer, dict) else {}
        raise ViewfsError.from_json(answer.get("error", _FAILED.format(name)))
    return answer["ok"]
