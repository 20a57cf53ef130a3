"""All that a reader answers about an image, to be compared with what it answers about the image's damaged twin."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from viewfs.modules.api import FileSystem, Identities, InodeNumber, Module, Mounting
from viewfs.modules.framework.registry import find_module
from viewfs.modules.framework.sources import joined

#: What damage may be told with.
ALLOWED = frozenset((errno.EIO, errno.EUCLEAN, errno.ENOKEY, errno.ELOOP))
#: Bytes that are asked for at once, how many of these at the beginning of a file, and how many names of an image:
#: damage can make each directory that of every other.
PIECE, PIECES, NAMES, DEPTH = 4096, 40, 1500, 12
#: What is asked for before and after there is anything.
ABSENT = b"no such name"


class TwinImage:
    """A Source that knows which of its bytes were changed, and whether anybody has seen one of them."""

    def __init__(self, data: bytes, changed: tuple[tuple[int, int], ...] = (), whole: int | None = None) -> None:
        self._data, self._changed = data, changed
        self.size = len(data)
        #: The length that it had; who looks at the end of what was cut off has seen the damage.
        self._cut = whole is not None and len(data) < whole
        #: Whether a damaged byte has been seen.
        self.touched = self._cut
        self.requests = self.asked = 0

    def pread(self, size: int, offset: int) -> bytes:
        self.requests += 1
        self.asked += size
        if not self.touched:
            self.touched = any(start < offset + size and offset < end for start, end in self._changed)
        return self._data[offset : offset + size]


@dataclass(frozen=True)
class Failure:
    """It was told that this can't be read."""

    number: int


#: By path, what was asked, and the offset: the answer, or a Failure.
Key = tuple[str, str, int]


def _below(above: str, name: bytes) -> Key:
    """What a name was looked up as."""
    return f"{above}/{os.fsdecode(name)}", "lookup", 0


@dataclass
class Answers:
    """What came, in the order in which it was asked for; `clean` is what came before a damaged byte was seen."""

    found: dict[Key, Any] = field(default_factory=dict)
    clean: set[Key] = field(default_factory=set)


def opened(module: str, source: TwinImage) -> FileSystem:
    """The module's file system, as a view mounts it. Raises ViewfsError."""
    kind: type[Module] = find_module(module).module
    kind.probe(source)
    kind.probe_damaged(source)
    values = {option.name: option.default for option in kind.options}
    return kind().open(Mounting(source, "image", "/mnt", Identities(1, 1, frozenset((1,)), frozenset((1,))), values))


class Asker:
    """Asks for all that an image has. Only the allowed errors are let pass."""

    def __init__(self, system: FileSystem, source: TwinImage) -> None:
        self._system: Any = system
        self._source = source
        self._seen: set[InodeNumber] = {system.root}
        self._names = 0
        self.answers = Answers()

    def ask(self, key: Key, call: Callable[[], Any]) -> Any:
        try:
            answer = call()
        except OSError as error:
            assert error.errno in ALLOWED, error
            answer = Failure(error.errno)
        self.answers.found[key] = answer
        if not self._source.touched:
            self.answers.clean.add(key)
        return answer

    def all(self) -> Answers:
        self.ask(("", "room", 0), self._system.statfs)
        self.directory(self._system.root, "", 0)
        return self.answers

    def directory(self, inode: InodeNumber, above: str, depth: int) -> None:
        names, unknown = list[bytes](), list[bytes]()
        self.ask((above, "end of names", 0), lambda: self._list(inode, names, unknown))
        self.ask((above, "names", 0), lambda: tuple(names))
        self.ask((above, "unknown names", 0), lambda: len(unknown))
        self.ask((above, "absent", 0), lambda: self._system.lookup(inode, ABSENT))
        for name in dict.fromkeys([*names, *unknown]):
            key = _below(above, name)
            path = key[0]
            attributes = self.ask(key, partial(self._system.lookup, inode, name))
            if attributes is None or isinstance(attributes, Failure):
                continue
            number = attributes.ino
            assert self._system.getattr(number) == attributes
            self.ask((path, "xattrs", 0), partial(self._xattrs, number))
            if stat.S_ISDIR(attributes.mode):
                if number not in self._seen and depth < DEPTH:
                    self._seen.add(number)
                    self.directory(number, path, depth + 1)
            elif stat.S_ISREG(attributes.mode):
                self._content(path, number, attributes.size)
            elif stat.S_ISLNK(attributes.mode):
                self.ask((path, "target", 0), partial(self._system.readlink, number))

    def _list(self, inode: InodeNumber, names: list[bytes], unknown: list[bytes]) -> bool:
        """Returns whether there was an end to it. Of `unknown` it is known only that they can't be looked at."""
        last = 0
        for entry in self._system.readdir(inode, 0):
            assert 1 << 63 > entry.cookie > last, "cookies grow"
            last = entry.cookie
            assert entry.name and b"/" not in entry.name and b"\0" not in entry.name, entry
            if entry.name not in (b".", b".."):
                (names if entry.is_known else unknown).append(entry.name)
            self._names += 1
            if self._names > NAMES:
                return False
        return True

    def _content(self, path: str, inode: InodeNumber, size: int) -> None:
        assert size >= 0
        offsets = {*range(0, min(size, PIECE * PIECES), PIECE), max(size - 1, 0) // PIECE * PIECE, size}
        for offset in sorted(offsets):
            self.ask((path, "content", offset), partial(self._piece, inode, offset, size))

    def _piece(self, inode: InodeNumber, offset: int, size: int) -> bytes:
        """A reader may stop in front of damage; then it says so when it is asked for the rest."""
        end, data = min(offset + PIECE, size), b""
        while offset + len(data) < end or not data:
            content = self._system.read(inode, offset + len(data), PIECE - len(data))
            part = joined(content if isinstance(content, list) else [content])
            assert len(part) <= end - offset - len(data), "more than there is"
            if not part:
                assert offset + len(data) >= end, "an end in the middle of a file"
                break
            data += part
        return bytes(data)

    def _xattrs(self, inode: InodeNumber) -> tuple[tuple[bytes, bytes | None], ...]:
        return tuple((name, self._system.getxattr(inode, name)) for name in self._system.listxattr(inode))


def ask_all(module: str, source: TwinImage) -> Answers:
    """Raises ViewfsError where it can't be opened."""
    system = opened(module, source)
    try:
        return Asker(system, source).all()
    finally:
        system.close()


def differences(found: Answers, sound: Answers, keys: set[Key] | None = None) -> Iterator[str]:
    """What was answered otherwise than the sound twin does, with another answer than that it can't be."""
    for key, answer in found.found.items():
        if (keys is not None and key not in keys) or isinstance(answer, Failure):
            continue
        path, what, offset = key
        expected = sound.found.get(key, "not there")
        if what == "names":
            # Where a part could not be read, the names of the rest.
            failed = isinstance(found.found[path, "end of names", 0], Failure)
            if failed or found.found[path, "unknown names", 0]:
                expected = tuple(name for name in expected if name in answer)
        elif what in ("room", "unknown names"):
            continue  # Of what is free nothing is promised.
        if answer != expected:
            yield f"{path or '/'}: {what} at {offset} is {answer!r:.300}, and was {expected!r:.300}"
