"""What makes a view fast, as its user can tell: few requests, what is sent ahead, and several answers at once."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.conftest import View
from tests.kernel.test_squashfs_images import mksquashfs

pytestmark = pytest.mark.needs("mksquashfs", "mke2fs")

OpenView = Callable[..., View]


def make_ext(tree: Path, image: Path) -> Path:
    command = ["mke2fs", "-q", "-t", "ext4", "-d", tree, image, "64M"]
    subprocess.run(command, check=True, capture_output=True)
    return image


def make_squashfs(tree: Path, image: Path) -> Path:
    return mksquashfs(tree, image, "-comp", "zstd")


both = pytest.mark.parametrize("make", [make_squashfs, make_ext], ids=["squashfs", "ext"])
Make = Callable[[Path, Path], Path]

SMALL = {f"small/file {number:03}": b"content of file %d\n" % number * (number % 40 + 1) for number in range(200)}
BIG = random.Random(1).randbytes(8 << 20) + b"".join(b"line %d\n" % number for number in range(1 << 20))[: 8 << 20]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("fast") / "content"
    (top / "small").mkdir(parents=True)
    for name, content in SMALL.items():
        (top / name).write_bytes(content)
    for number in range(40):
        directory = top / f"deep/{number}/deeper"
        directory.mkdir(parents=True)
        (directory / "file").write_text(str(number))
        (directory / "link").symlink_to("file")
    (top / "big").write_bytes(BIG)
    return top


@pytest.fixture(scope="module")
def built(tree: Path) -> Callable[[Make], Path]:
    """The image of `tree` that one of these makes."""

    @cache
    def build(make: Make) -> Path:
        return make(tree, tree.with_name(make.__name__))

    return build


@pytest.fixture
def view(open_view: OpenView, built: Callable[[Make], Path], make: Make) -> View:
    return open_view("--mount", f"{built(make)}:/mnt")


def stats(view: View) -> Any:
    (server,) = view.json("stats", "/mnt")["servers"]
    return server


def requests(view: View) -> dict[str, int]:
    """Without STATFS, which programs ask for themselves and the kernel passes on, and what the kernel gives back."""
    counted: dict[str, int] = stats(view)["requests"]
    return {name: count for name, count in counted.items() if name not in ("statfs", "forget", "batch_forget")}


def python(view: View, script: str) -> list[str]:
    """Runs in the view; returns the words that it prints."""
    path = view.viewfs.directory / "script.py"
    path.write_text(READ + script)
    return view.sh(f"python3 {path}").out.split()


#: What `cat` does. (Python's open() asks of each file whether it is a terminal, and the kernel passes on every ioctl.)
READ = """
import hashlib, os, random
def read(path):
    fd = os.open(path, os.O_RDONLY)
    parts = []
    while part := os.read(fd, 1 << 17):
        parts.append(part)
    os.close(fd)
    return b"".join(parts)
"""
WALK = """
count = 0
for directory, directories, files in os.walk("/mnt"):
    for name in directories + files:
        os.lstat(os.path.join(directory, name))
        count += 1
print(count)
"""
READ_ALL = """
digest = hashlib.sha256()
for directory, directories, files in sorted(os.walk("/mnt")):
    for name in sorted(files):
        digest.update(read(os.path.join(directory, name)))
print(digest.hexdigest())
"""
READ_SMALL = """
digest = hashlib.sha256()
for entry in os.scandir("/mnt/small"):
    content = read(entry)
    digest.update(entry.name.encode() + content)
    print(digest.hexdigest(), entry.name.replace(" ", "_"), hashlib.sha256(content).hexdigest())
"""


# -- nothing is asked twice


@both
def test_nothing_is_asked_for_twice(view: View) -> None:
    first = python(view, WALK), python(view, READ_ALL)
    counted = requests(view)
    assert counted["readdirplus"] and counted["read"], "the first time it has to be"
    # The kernel may give up a page or two of what it keeps, so not each time is the last.
    for _again in range(4):
        before = counted
        assert (python(view, WALK), python(view, READ_ALL)) == first
        counted = requests(view)
        assert sum(counted.values()) < sum(before.values()) * 1.05
        if counted == before:
            break
    assert counted == before


@both
def test_a_name_that_is_not_there_is_looked_up_once(view: View) -> None:
    python(view, "os.path.lexists('/mnt/small')")
    before = requests(view).get("lookup", 0)
    python(view, "assert not any([os.path.lexists('/mnt/no such name') for _time in range(100)])")
    python(view, "assert not any([os.path.lexists('/mnt/no such name') for _time in range(100)])")
    assert requests(view)["lookup"] == before + 1


# -- what is sent ahead


@both
def test_small_files_of_a_listed_directory_are_sent_ahead(
    open_view: OpenView, built: Callable[[Make], Path], make: Make
) -> None:
    for number in range(5):  # on a busy machine the reader may be the only one that gets to run
        view = open_view("--mount", f"{built(make)}:/mnt", name=f"view{number}")
        words = python(view, READ_SMALL)
        found = {name.replace("_", " "): digest for name, digest in zip(words[1::3], words[2::3], strict=True)}
        assert found == {name.partition("/")[2]: hashlib.sha256(data).hexdigest() for name, data in SMALL.items()}
        counted = stats(view)
        if counted["requests"]["read"] < len(SMALL) / 2:
            break
    assert counted["requests"]["read"] < len(SMALL) / 2
    assert counted["ahead"]["messages"] > 0 and counted["ahead"]["bytes"] > 0


@both
def test_who_only_lists_has_nothing_sent(view: View) -> None:
    python(view, WALK)
    view.sh("find /mnt -ls >/dev/null; ls -lR /mnt >/dev/null")
    counted = stats(view)
    assert counted["ahead"] == {"messages": 0, "bytes": 0}
    assert "read" not in counted["requests"]


@both
def test_a_large_file_that_is_read_from_one_end_to_the_other(view: View) -> None:
    out = view.sh("dd if=/mnt/big bs=128k status=none | sha256sum").out.split()
    assert out[0] == hashlib.sha256(BIG).hexdigest()
    # Whoever is first at a block, the reader or who works ahead of it: it is decompressed once. (Half are stored, and
    # eight are for blocks of metadata.)
    assert stats(view)["cache"]["misses"] <= len(BIG) // 2 // 131_072 + 8
    assert view.sh("sha256sum /mnt/big").out.split()[0] == out[0], "what was sent is what there is"


@both
@pytest.mark.parametrize("direct", [False, True], ids=["cached", "direct"])
def test_a_large_file_that_is_read_here_and_there(view: View, direct: bool) -> None:
    """After what has been kept of it is dropped; with O_DIRECT nothing is, and a request is as long as may be."""
    view.sh("dd if=/mnt/big bs=1M count=5 status=none >/dev/null")
    script = f"""
import mmap
fd = os.open("/mnt/big", os.O_RDONLY | ({direct} and os.O_DIRECT))
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
chance = random.Random(2)
digest = hashlib.sha256()
for _time in range(60):
    size = 4096 * chance.randrange(1, 512)
    place = 4096 * chance.randrange(0, {len(BIG)} // 4096)
    buffer = mmap.mmap(-1, size)
    digest.update(buffer[:os.preadv(fd, [buffer], place)])
print(digest.hexdigest())
"""
    chance = random.Random(2)
    digest = hashlib.sha256()
    for _time in range(60):
        size = 4096 * chance.randrange(1, 512)
        place = 4096 * chance.randrange(0, len(BIG) // 4096)
        digest.update(BIG[place : place + size])
    assert python(view, script) == [digest.hexdigest()]


def test_a_mebibyte_of_blocks_of_one_kibibyte(open_view: OpenView, tmp_path: Path) -> None:
    """Each second block is a hole, so the one answer is of 1024 pieces: one more, with its header, than writev
    takes.
    """
    tree = tmp_path / "scattered"
    tree.mkdir()
    content = bytearray(2 << 20)
    with open(tree / "file", "wb") as file:
        for place in range(0, len(content), 2048):
            content[place : place + 1024] = b"%1023d\n" % place
            file.seek(place)
            file.write(content[place : place + 1024])
        file.truncate(len(content))
    image = tmp_path / "image"
    command = ["mke2fs", "-q", "-t", "ext4", "-b", "1024", "-d", tree, image, "16M"]
    subprocess.run(command, check=True, capture_output=True)
    view = open_view("--mount", f"{image}:/mnt")
    out = view.sh("dd if=/mnt/file bs=1M iflag=direct status=none | sha256sum; sha256sum < /mnt/file").out.split()
    assert out[::2] == [hashlib.sha256(content).hexdigest()] * 2


# -- what is told of it


@pytest.mark.parametrize("make", [make_squashfs])
def test_stats(view: View) -> None:
    python(view, WALK)
    python(view, READ_ALL)
    counted = stats(view)
    assert counted["path"] == "/mnt" and os.path.exists(f"/proc/{counted['server']}")
    assert counted["bytes"] > 0 and counted["errors"] >= 0
    assert set(counted["latency_ns"]) <= set(counted["requests"]) | {"all"}
    for name in ("all", "readdirplus", "read"):
        latency = counted["latency_ns"][name]
        assert 0 < latency["p50"] <= latency["p99"], name
    sent = counted["bytes"] + counted["ahead"]["bytes"]
    assert sent > len(BIG), "all that was read has been sent, one way or the other"
    table = view("stats").out
    assert table.count("/mnt (") == 1
    for what in ("P50", "P99", "readdirplus", "read", "all", "sent ahead", "of answers"):
        assert what in table, table
    missing = view("stats", "/nowhere", check=False)
    assert missing.code == 4 and missing.err.count("\n") == 1
    # Small files share blocks, which are decompressed once.
    assert counted["cache"]["misses"] > 0 and counted["cache"]["hits"] > counted["cache"]["misses"]
    assert "were in the server's caches" in table


# -- several at once

#: A file system of two files. Whoever reads one waits, where it takes long, until the other is read too.
TOGETHER = """
import errno, threading
from viewfs.modules.api import Attributes, FileSystem, Module

FILES = {b"one": 2, b"two": 3}


class Together(FileSystem):
    immutable = concurrent = True

    def __init__(self):
        self._both = threading.Barrier(2, timeout=60)

    def getattr(self, inode):
        return Attributes(1, 0o40755) if inode == 1 else Attributes(inode, 0o100644, 4)

    def lookup(self, directory, name):
        return self.getattr(FILES[name]) if name in FILES else None

    def read(self, inode, offset, size):
        self.about_to_work()
        try:
            self._both.wait()
        except threading.BrokenBarrierError:
            raise OSError(errno.ETIMEDOUT, "the other was not read meanwhile") from None
        return b"read"[offset : offset + size]


class Mine(Module):
    name = "together"

    def open(self, mounting):
        return Together()
"""


def test_two_reads_are_in_the_server_at_once(open_view: OpenView, tmp_path: Path) -> None:
    """Each ends because of the other."""
    (tmp_path / "together.py").write_text(TOGETHER)
    view = open_view("--load", f"{tmp_path / 'together.py'}:/mnt")
    script = "cat /mnt/one > one & cat /mnt/two > two; wait $!; cat one two"
    assert view.sh(f"cd {tmp_path}; {script}").out == "readread"
    assert requests(view)["read"] == 2


#: Names whose number in the listing is not the one that stat(2) tells.
SAME_NUMBERS = """
import os
entries = [entry for at, _dirs, _files in os.walk("/m") for entry in os.scandir(at)]
print([entry.path for entry in entries if entry.inode() != os.lstat(entry).st_ino])
"""


@both
def test_names_alone(open_view: OpenView, built: Callable[[Make], Path], make: Make) -> None:
    """-o listing=names: all is there as before, and who wants the names alone waits for nothing else."""
    seen = []
    for listing in ("attributes", "names"):
        view = open_view("--mount", f"{built(make)}:/m:,listing={listing}")
        bare = view.sh("ls -RU --color=never /m | sort").out
        looked = _requests(view).get("lookup", 0)
        assert view.sh(f"python3 -c '{SAME_NUMBERS}'").out == "[]\n"
        whole = view.sh("cd /m; find . -printf '%p %y %s %m %l\\n' | sort; cat deep/7/deeper/link").out
        seen.append((bare, whole))
        assert (looked > 20) == (listing == "names"), "only directories are looked for"
        assert looked < 200
        view.close()
    assert seen[0] == seen[1]


def _requests(view: View) -> dict[str, int]:
    requests: dict[str, int] = view.json("stats")["servers"][0]["requests"]
    return {name.lower(): count for name, count in requests.items()}
