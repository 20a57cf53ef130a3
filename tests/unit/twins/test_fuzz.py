"""Images that the tools of a format made, damaged at random, beside their sound twins.

Only the allowed errors come out, and what is answered is what the twin answers, where that can be told: before a
damaged byte was seen; where the end is cut off; where only bytes of files were changed, which are then what is served;
and where a checksum covers what was changed. A second or so of each belongs to every run of the tests.
VIEWFS_FUZZ_SECONDS makes it go on for longer, with a seed of its own each time, which a failure shows.
"""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from tests.unit.images import FUZZ_SECONDS
from tests.unit.limits import not_hanging
from tests.unit.twins.answers import PIECE, Answers, Failure, TwinImage, ask_all, differences
from tests.unit.twins.kinds import MAKERS, Made
from viewfs.errors import ViewfsError

#: Images of each kind and each sort of damage, where nobody asks for more.
ROUNDS = 12
#: What one image may take: bytes of memory, requests to the source and bytes of these.
ROOM, REQUESTS, ASKED = 512 << 20, 100_000, 1 << 30

COVERED = ("ext4", "gzip", "xz", "exfat")
STORED = tuple(kind for kind in MAKERS if kind not in ("gzip", "xz", "zstd"))

Changed = list[tuple[int, int]]
Twin = tuple[Made, Answers]
Twins = Callable[[str], Twin]


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Twins:
    """The image of a kind, with what it answers when it is sound."""

    @cache
    def made(kind: str) -> Twin:
        image = MAKERS[kind](kind, tmp_path_factory.mktemp("twin"))
        return image, ask_all(image.module, TwinImage(image.data))

    return made


@contextmanager
def bounded() -> Iterator[None]:
    """Memory has a limit, and what hangs is ended."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, hard))
    try:
        with not_hanging():
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def ask(twin: Twin, data: bytes, changed: Changed) -> Answers | None:
    """What the damaged image answers; None if it can't be opened. What was answered before it saw damage is right."""
    made, sound = twin
    source = TwinImage(data, tuple(changed), len(made.data))
    with bounded():
        try:
            found = ask_all(made.module, source)
        except ViewfsError as error:
            assert str(error)
            assert source.touched, f"nothing was wrong with what it has seen: {error}"
            return None
    assert source.requests <= REQUESTS and source.asked <= ASKED, (source.requests, source.asked)
    wrong = list(differences(found, sound, found.clean))
    wrong += [f"{key}: {found.found[key]}" for key in found.clean if isinstance(found.found[key], Failure)]
    assert not wrong, "before any damage was seen: " + "; ".join(wrong[:3])
    return found


Damager = Callable[[Made, random.Random], tuple[bytes, Changed]]


def fuzz(kind: str, twin: Twin, directory: Path, damage: Damager, check: Callable[[Answers, bytes], None]) -> int:
    """Images with one seed after the other, each damaged and looked at; how many could be opened."""
    end = time.monotonic() + FUZZ_SECONDS / (len(MAKERS) * 2 + len(STORED) + len(COVERED))
    seed = random.SystemRandom().randrange(1 << 30) if FUZZ_SECONDS else 0
    readable = rounds = 0
    while rounds < ROUNDS or (FUZZ_SECONDS and time.monotonic() < end):
        data, changed = damage(twin[0], random.Random(seed))
        try:
            found = ask(twin, data, changed)
            if found is not None:
                readable += 1
                check(found, data)
        except BaseException as error:
            (directory / "failed").write_bytes(data)
            error.add_note(f"seed {seed} of {kind}; changed: {changed}; the image is {directory / 'failed'}")
            raise
        seed, rounds = seed + 1, rounds + 1
    return readable


# -- sorts of damage


def change(data: bytearray, start: int, end: int, noise: random.Random) -> tuple[int, int]:
    """Change these bytes, each of them."""
    for place in range(start, end):
        data[place] ^= noise.choice((1 << noise.randrange(8), noise.randrange(1, 256)))
    return start, end


def anywhere(made: Made, noise: random.Random) -> tuple[bytes, Changed]:
    """Bits, bursts and swaps, mostly of what is in use; now and then the end is cut off too."""
    data, changed, used = bytearray(made.data), Changed(), in_use(made.data)
    for _time in range(noise.choice((1, 1, 2, 5, 30))):
        # What is in front has the most to say.
        front = noise.random() < 0.25
        place = noise.randrange(min(4096, len(data))) if front else noise.choice(used) + noise.randrange(64)
        kind = noise.randrange(5)
        if kind == 0:
            changed.append(change(data, place, place + 1, noise))
        elif kind == 1:
            changed.append(change(data, place, min(place + noise.choice((2, 8, 64, 700)), len(data)), noise))
        elif kind == 2:
            place &= ~3
            data[place : place + 4] = noise.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\x80", b"\2\0\0\0"))
            changed.append((place, place + 4))
        else:
            size = noise.choice((4, 16, 32, 512, 1024))
            one, other = place // size * size, noise.choice(used) // size * size
            data[one : one + size], data[other : other + size] = data[other : other + size], data[one : one + size]
            changed += [(one, one + size), (other, other + size)]
    cut = noise.randrange(len(data)) if noise.random() < 0.05 else len(data)
    return bytes(data[:cut]), changed


@cache
def in_use(data: bytes) -> Sequence[int]:
    """Where there is something, in steps of 64 bytes."""
    return [place for place in range(0, len(data) - 1024, 64) if any(data[place : place + 64])]


def cut(made: Made, noise: random.Random) -> tuple[bytes, Changed]:
    """The end is missing, most times behind the last byte that is not zero."""
    used = in_use(made.data)
    size = noise.choice(used) if noise.random() < 0.9 else noise.randrange(len(made.data))
    return made.data[: size + noise.randrange(64)], []


def of_files(made: Made, noise: random.Random) -> tuple[bytes, Changed]:
    """Bytes of files, and none else; whole sectors of different files may be swapped."""
    data, changed = bytearray(made.data), Changed()
    for _time in range(noise.choice((1, 3, 20))):
        place, _, _, size = noise.choice(made.pieces)
        if noise.random() < 0.3:
            other = noise.choice(made.pieces)[0]
            one, two = data[place : place + size], data[other : other + size]
            data[place : place + size], data[other : other + size] = two, one
            changed += [(place, place + size), (other, other + size)]
            continue
        start = place + noise.randrange(size)
        changed.append(change(data, start, min(start + noise.choice((1, 1, 4, 100)), place + size), noise))
    return bytes(data), changed


def of_covered(made: Made, noise: random.Random) -> tuple[bytes, Changed]:
    """One burst that the checksums can't but find."""
    data = bytearray(made.data)
    start, end = noise.choice(made.covered)
    place = noise.randrange(start, end)
    changed = [change(data, place, min(place + noise.randrange(1, made.burst + 1), end), noise)]
    return bytes(data), changed


def served(twin: Twin) -> Callable[[Answers, bytes], None]:
    """The check that the bytes of files are those that the image has, and all else is as it was."""
    made, sound = twin

    def check(found: Answers, data: bytes) -> None:
        assert found.found.keys() == sound.found.keys()
        expected = dict(sound.found)
        for place, path, offset, size in made.pieces:
            key = (path, "content", offset // PIECE * PIECE)
            content = bytearray(expected[key])
            content[offset % PIECE : offset % PIECE + size] = data[place : place + size]
            expected[key] = bytes(content)
        wrong = [(key, answer, expected[key]) for key, answer in found.found.items() if answer != expected[key]]
        assert not wrong[:3]

    return check


# -- the tests


@pytest.mark.parametrize("kind", MAKERS)
def test_fuzz_of_anything(kind: str, twins: Twins, tmp_path: Path) -> None:
    twin = twins(kind)
    assert not [key for key, answer in twin[1].found.items() if isinstance(answer, Failure)]
    assert fuzz(kind, twin, tmp_path, anywhere, lambda _found, _data: None)


@pytest.mark.parametrize("kind", MAKERS)
def test_fuzz_of_ends_that_are_cut_off(kind: str, twins: Twins, tmp_path: Path) -> None:
    """What is still there is right, and nothing takes the place of what is not."""
    twin = twins(kind)

    def same(found: Answers, _data: bytes) -> None:
        assert not [*differences(found, twin[1])][:3]

    fuzz(kind, twin, tmp_path, cut, same)


@pytest.mark.parametrize("kind", STORED)
def test_fuzz_of_bytes_of_files(kind: str, twins: Twins, tmp_path: Path) -> None:
    """Those are served that were changed, and all else is as it was."""
    twin = twins(kind)
    assert len(twin[0].pieces) > 150
    assert fuzz(kind, twin, tmp_path, of_files, served(twin)) >= ROUNDS, "each of them can be opened"


@pytest.mark.parametrize("kind", COVERED)
def test_fuzz_of_what_a_checksum_covers(kind: str, twins: Twins, tmp_path: Path) -> None:
    """It is told, or it changes nothing."""
    twin = twins(kind)
    assert sum(end - start for start, end in twin[0].covered) > 2000

    def told(found: Answers, _data: bytes) -> None:
        assert not [*differences(found, twin[1])][:3]

    assert fuzz(kind, twin, tmp_path, of_covered, told)
