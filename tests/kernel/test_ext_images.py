"""ext2, ext3 and ext4 images through a view: every file and attribute is what mke2fs was given."""

from __future__ import annotations

import errno
import hashlib
import lzma
import os
import random
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.conftest import View, Viewfs

DATA = Path(__file__).parent.parent / "data"
pytestmark = pytest.mark.needs("mke2fs", "debugfs")

MIXES = {
    "ext2-1k": ["-t", "ext2", "-b", "1024"],
    "ext3-4k": ["-t", "ext3", "-b", "4096"],
    "ext4-1k": ["-t", "ext4", "-b", "1024"],
    "ext4-4k": ["-t", "ext4", "-b", "4096"],
    "inline_data": ["-t", "ext4", "-O", "inline_data", "-I", "256"],
    "bigalloc": ["-t", "ext4", "-O", "bigalloc", "-C", "16384"],
    "no extents": ["-t", "ext4", "-O", "^extents,^64bit"],
    "no checksums": ["-t", "ext4", "-O", "^metadata_csum,uninit_bg"],
    "meta_bg": ["-t", "ext4", "-O", "meta_bg,^resize_inode", "-b", "1024"],
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of every kind and awkward size."""
    top = tmp_path_factory.mktemp("tree") / "content"
    top.mkdir()
    chance = random.Random(1)
    for size in (0, 1, 59, 60, 61, 150, 1023, 1024, 1025, 4096, 65536, 65537, 700_001):
        (top / f"size{size}").write_bytes(chance.randbytes(size))
    (top / "directory/deeper/deepest").mkdir(parents=True)
    (top / "directory/deeper/deepest/file").write_text("at the bottom")
    (top / "many").mkdir()
    for number in range(1500):
        (top / f"many/a rather long name so that the directory has blocks {number}").write_text(str(number))
    (top / "fast link").symlink_to("size60")
    (top / "slow link").symlink_to("x" * 200)
    os.link(top / "size150", top / "hard link")
    os.mkfifo(top / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        working = os.getcwd()
        os.chdir(top)
        listener.bind("socket")
        os.chdir(working)
    (top / os.fsdecode(b"not utf-8 \xff\xfe")).write_text("bytes")
    (top / ("n" * 255)).write_text("the longest name")
    with open(top / "sparse", "wb") as sparse:
        for offset in (0, 1 << 20, 3 << 20):
            sparse.seek(offset)
            sparse.write(b"data")
        sparse.truncate(4 << 20)
    (top / "modes").mkdir()
    for mode in (0o400, 0o4755, 0o2750, 0o1777):
        (top / f"modes/{mode:o}").touch()
        (top / f"modes/{mode:o}").chmod(mode)
    for name, when in {"old": -1_000_000_000, "epoch": 0, "late": 2**32 + 5}.items():
        (top / name).touch()
        os.utime(top / name, ns=(when * 10**9 + 123_456_789, when * 10**9 + 987_654_321))
    return top


def walk(top: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    """Every name below `top`, relative, with what stat says."""
    for directory, directories, files in os.walk(top):
        for name in sorted(directories + files):
            path = os.path.join(directory, name)
            yield os.path.relpath(path, top), os.lstat(path)


#: Run inside the view; says of each file what the test compares.
DESCRIBE = """
import hashlib, json, os, stat, sys
top = os.fsencode(sys.argv[1])
found = {}
for directory, directories, files in os.walk(top):
    for name in directories + files:
        path = os.path.join(directory, name)
        s = os.lstat(path)
        content = None
        if stat.S_ISREG(s.st_mode):
            content = hashlib.sha256(open(path, "rb").read()).hexdigest()
        elif stat.S_ISLNK(s.st_mode):
            content = os.fsdecode(os.readlink(path))
        found[os.fsdecode(os.path.relpath(path, top))] = [
            s.st_mode, s.st_size, s.st_nlink, s.st_uid, s.st_gid, s.st_mtime_ns, s.st_atime_ns, content]
print(json.dumps(found))
"""


def described(viewfs: Viewfs, image: Path, options: str = "") -> dict[str, list[Any]]:
    script = viewfs.directory / "describe.py"
    script.write_text(DESCRIBE)
    done = viewfs("run", "--mount", f"{image}:/mnt:ext{options}", "--", "python3", script, "/mnt")
    found: dict[str, list[Any]] = done.json
    return found


@pytest.mark.parametrize("mix", MIXES)
def test_every_file_and_attribute(viewfs: Viewfs, tree: Path, tmp_path: Path, mix: str) -> None:
    image = tmp_path / "disk.img"
    subprocess.run(["mke2fs", "-q", *MIXES[mix], "-d", tree, image, "40M"], check=True, capture_output=True)
    found = described(viewfs, image)
    inode_128 = "ext2" in mix or "ext3" in mix
    for name, wanted in walk(os.fsencode(tree)):
        mode, size, nlink, uid, gid, mtime_ns, _atime_ns, content = found.pop(os.fsdecode(name))
        assert mode == wanted.st_mode, name
        assert (uid, gid) == (os.getuid(), os.getgid()), name
        if mix == "inline_data" and name == b"sparse":
            continue  # mke2fs 1.47.0 gives a wrong size to files that end in a hole, where inline_data is on
        if not stat.S_ISDIR(mode):
            assert (size, nlink) == (wanted.st_size, wanted.st_nlink), name
        else:
            assert nlink == wanted.st_nlink, name
        # mke2fs keeps whole seconds, and 128-byte inodes have 32 bits of them.
        seconds = wanted.st_mtime_ns // 10**9
        if not inode_128 or -(2**31) <= seconds < 2**31:
            assert mtime_ns // 10**9 == _as_mke2fs_stores(seconds), name
        path = os.path.join(os.fsencode(tree), name)
        if stat.S_ISREG(mode) and wanted.st_mode & 0o400:
            with open(path, "rb") as file:
                assert content == hashlib.sha256(file.read()).hexdigest(), name
        elif stat.S_ISLNK(mode):
            assert os.fsencode(content) == os.readlink(path), name
    assert set(found) == {"lost+found"}


def _as_mke2fs_stores(seconds: int) -> int:
    """mke2fs -d writes the low 32 bits and no epoch bits, which are signed when they are read."""
    low = seconds & 0xFFFFFFFF
    return low - (1 << 32) if low & 0x80000000 else low


def test_a_directory_of_very_many_names(viewfs: Viewfs, tmp_path: Path) -> None:
    """An index of sixty leaves; mke2fs takes a quadratic time for more, so that `make soak` has those."""
    many = int(os.environ.get("VIEWFS_SOAK_NAMES", "8000"))
    tree = tmp_path / "tree"
    (tree / "crowd").mkdir(parents=True)
    for number in range(many):
        (tree / f"crowd/file number {number}").touch()
    image = tmp_path / "disk.img"
    subprocess.run(
        ["mke2fs", "-q", "-t", "ext4", "-N", str(many + 1000), "-d", tree, image, "40M"],
        check=True,
        capture_output=True,
    )
    subprocess.run(["e2fsck", "-fyD", image], capture_output=True)  # with -D it builds the index
    script = """
        ls /mnt/crowd | wc -l
        ls /mnt/crowd | sort | sha256sum
        for number in 0 777 LAST; do stat -c %n "/mnt/crowd/file number $number"; done
        stat "/mnt/crowd/file number NEXT" 2>&1 | grep -c 'No such file'
    """
    script = script.replace("LAST", str(many - 1)).replace("NEXT", str(many))
    done = viewfs.sh("--mount", f"{image}:/mnt", script=script)
    count, digest, *rest = done.out.splitlines()
    names = "".join(f"{name}\n" for name in sorted(f"file number {number}" for number in range(many)))
    assert count == str(many)
    assert digest.split()[0] == hashlib.sha256(names.encode()).hexdigest()
    assert rest == [f"/mnt/crowd/file number {number}" for number in (0, 777, many - 1)] + ["1"]


def test_deep_extents_and_a_terabyte_of_nothing(viewfs: Viewfs, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    with open(tree / "scattered", "wb") as file:  # an extent for each piece, so a tree of them
        for number in range(3000):
            file.seek(number * 8192)
            file.write(f"{number:04096}".encode())
    with open(tree / "terabyte", "wb") as file:
        file.seek(2**40 - 3)
        file.write(b"end")
    image = tmp_path / "disk.img"
    subprocess.run(
        ["mke2fs", "-q", "-t", "ext4", "-b", "4096", "-d", tree, image, "64M"], check=True, capture_output=True
    )
    script = """
        sha256sum < /mnt/scattered
        stat -c '%s %b' /mnt/terabyte
        tail -c 5 /mnt/terabyte | od -An -c
        dd if=/mnt/terabyte bs=1M skip=500000 count=4 status=none | tr -d '\\0' | wc -c
    """
    done = viewfs.sh("--mount", f"{image}:/mnt", script=script)
    lines = done.out.splitlines()
    assert lines[0].split()[0] == hashlib.sha256((tree / "scattered").read_bytes()).hexdigest()
    size, blocks = map(int, lines[1].split())
    assert size == 2**40 and blocks < 1000
    assert lines[2].split() == ["\\0", "\\0", "e", "n", "d"] and lines[3] == "0"


def test_extended_attributes(viewfs: Viewfs, image: Callable[..., Path], tmp_path: Path) -> None:
    disk = image(options=("-b", "4096"), file="content", plain="x")
    (tmp_path / "big").write_bytes(b"v" * 2000)
    commands = "ea_set file user.short value\nea_set -f {tmp}/big file user.long\n"
    subprocess.run(
        ["debugfs", "-w", "-f", "-", disk],
        input=commands.format(tmp=tmp_path).encode(),
        check=True,
        capture_output=True,
    )
    script = """
        getfattr --absolute-names -d -m - /mnt/file | sort
        getfattr --absolute-names --only-values -n user.long /mnt/file | wc -c
        getfattr --absolute-names -n user.none /mnt/file 2>&1 | grep -c 'No such attribute'
        getfattr --absolute-names -d -m - /mnt/plain | wc -l
    """
    done = viewfs.sh("--mount", f"{disk}:/mnt", script=script)
    assert 'user.short="value"' in done.out
    assert done.out.split()[-3:] == ["2000", "1", "0"]


def test_an_unclean_journal_is_replayed_in_memory(viewfs: Viewfs, tmp_path: Path) -> None:
    """tests/data/make-unclean-journal copied the image while it was mounted; the sums are of what its writers left."""
    image = tmp_path / "unclean.img"
    image.write_bytes(lzma.decompress((DATA / "unclean-journal.img.xz").read_bytes()))
    before = hashlib.sha256(image.read_bytes()).hexdigest()
    script = f"""
        cd /mnt; sha256sum --quiet -c {DATA}/unclean-journal.sums && echo all right
        ls -d removed kept/file3 2>&1 | grep -c 'No such file'
        readlink kept/link; stat -c '%h %a' kept/hard kept/file5; ls | wc -w
        getfattr --only-values -n user.note kept/file4; echo
        viewfs log
    """
    done = viewfs.sh("--mount", f"{image}:/mnt", script=script)
    lines = done.out.splitlines()
    assert lines[:7] == ["all right", "2", "file1", "2 644", "1 640", "3", "set before the copy"]
    assert "replayed in memory" in done.out
    assert hashlib.sha256(image.read_bytes()).hexdigest() == before, "the image is never written"


def test_whose_files_they_are(viewfs: Viewfs, image: Callable[..., Path]) -> None:
    disk = image(root="", mine="", other="")
    commands = (
        f"set_inode_field mine uid {os.getuid()}\nset_inode_field other uid 4711\nset_inode_field root mode 0100600\n"
    )
    subprocess.run(["debugfs", "-w", "-f", "-", disk], input=commands.encode(), check=True, capture_output=True)
    subprocess.run(["debugfs", "-w", "-R", "set_inode_field root uid 0", disk], check=True, capture_output=True)

    def owners(options: str, *view_options: str) -> list[int]:
        script = "cd /mnt; cat root; stat -c %u root mine other"
        return list(
            map(int, viewfs.sh(*view_options, "--mount", f"{disk}:/mnt:ext{options}", script=script).out.split())
        )

    me = os.getuid()
    assert owners("") == [me, me, me], "ids that the view has no mapping for are shown as mine, and all can be read"
    assert owners(",owner=me") == [me, me, me]
    assert owners(",owner=keep") == [65534, me, 65534]
    assert owners("", "--as-root", "--ids=one") == [0, 0, 0]


def test_an_image_within_a_larger_file(viewfs: Viewfs, image: Callable[..., Path], tmp_path: Path) -> None:
    padded = tmp_path / "padded"
    padded.write_bytes(b"\xaa" * 3072 + image(file="content").read_bytes())
    assert viewfs.sh("--mount", f"{padded}:/mnt:ext,offset=3K", script="cat /mnt/file").out == "content"


def test_names_that_are_too_long(viewfs: Viewfs, image: Callable[..., Path]) -> None:
    done = viewfs.sh("--mount", f"{image(file='x')}:/mnt", script=f"stat /mnt/{'n' * 300} 2>&1 || true")
    assert os.strerror(errno.ENAMETOOLONG) in done.out


def test_damage_is_an_error_of_the_file_it_hits(open_view: Callable[..., View], tree: Path, tmp_path: Path) -> None:
    """And of nothing else: no hang, no dead server. Every block of metadata is hit somewhere."""
    pristine = tmp_path / "pristine.img"
    subprocess.run(
        ["mke2fs", "-q", "-t", "ext4", "-b", "1024", "-d", tree, pristine, "24M"], check=True, capture_output=True
    )
    original = pristine.read_bytes()
    chance = random.Random(2)
    view = open_view()
    mounted = 0
    for round_ in range(12):
        damaged = bytearray(original)
        for _flip in range(200):
            place = chance.randrange(1024, 3 << 20)
            damaged[place] ^= 1 << chance.randrange(8)
        image = tmp_path / f"damaged{round_}.img"
        image.write_bytes(damaged)
        refused = view("mount", "-t", "ext", image, "/mnt", check=False)
        if refused.code:
            assert refused.code == 5 and refused.err.count("\n") == 1, refused
            continue
        mounted += 1
        view.sh("timeout 60 find /mnt -ls >/dev/null 2>&1 || test $? != 124")
        view.sh("timeout 60 find /mnt -type f -exec cat {} + >/dev/null 2>&1 || test $? != 124")
        (row,) = view.json("lsmod")["modules"]
        assert row["state"] == "mounted" and row["server"], "the server has survived"
        view("umount", "/mnt")
    assert mounted >= 3, "not every one was refused"
    assert "Traceback" not in view("log").out


def test_a_truncated_image(viewfs: Viewfs, image: Callable[..., Path], tmp_path: Path) -> None:
    whole = image(first="x" * 5000).read_bytes()
    cut = tmp_path / "cut.img"
    for length in (0, 1000, 1500, 2048, 5000):
        cut.write_bytes(whole[:length])
        refused = viewfs("run", "--mount", f"{cut}:/mnt:ext", "--", "true", check=False)
        assert refused.code == 5 and refused.err.count("\n") == 1, (length, refused)
    cut.write_bytes(whole[: len(whole) // 2])
    viewfs.sh("--mount", f"{cut}:/mnt:ext", script="ls /mnt >/dev/null 2>&1 || true")


def test_an_image_that_is_truncated_while_it_is_mounted(
    open_view: Callable[..., View], image: Callable[..., Path]
) -> None:
    """Somebody's mistake outside must not take the server down with SIGBUS."""
    disk = image(file="y" * 4_000_000)
    view = open_view("--mount", f"{disk}:/mnt")
    os.truncate(disk, 4096)
    failed = view.sh("cat /mnt/file >/dev/null", check=False)
    assert failed.code and "Input/output error" in failed.err
    assert view.json("lsmod")["modules"][0]["state"] == "mounted"
