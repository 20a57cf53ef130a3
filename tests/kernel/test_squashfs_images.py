"""squashfs images through a view: every file and attribute is what mksquashfs was given."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import socket
import stat
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.conftest import View, Viewfs, kill, wait_until
from tests.kernel.test_ext_images import walk

pytestmark = pytest.mark.needs("mksquashfs", "setfattr", "getfattr")

COMPRESSORS = ("gzip", "xz", "lzo", "lz4", "zstd", "lzma")
#: What an ordinary user can't make: (name, type and rest of a definition of mksquashfs -pf).
PSEUDO = {"character": "c 640 0 0 4 64", "block": "b 600 0 0 8 300", "pipe": "i 644 0 0 f"}


def mksquashfs(tree: Path, image: Path, *options: str | Path) -> Path:
    command = ["mksquashfs", tree, image, "-noappend", "-quiet", "-no-progress", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if "-comp" in options and "not supported" in done.stdout + done.stderr:
        pytest.skip(f"this mksquashfs was built without {options[options.index('-comp') + 1]}")
    assert done.returncode == 0, done
    return image


def text(size: int) -> bytes:
    return b"".join(b"line %d of a text\n" % number for number in range(size // 16 + 1))[:size]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of every kind, and of sizes that end in fragments, in blocks, and in holes."""
    top = tmp_path_factory.mktemp("squashfs") / "content"
    top.mkdir()
    chance = random.Random(1)
    for size in (0, 1, 100, 4095, 4096, 131_071, 131_072, 131_073, 1_048_576, 1_300_001):
        (top / f"text{size}").write_bytes(text(size))
        (top / f"noise{size}").write_bytes(chance.randbytes(size))
    (top / "directory/deeper/deepest").mkdir(parents=True)
    (top / "directory/deeper/deepest/file").write_text("at the bottom")
    (top / "empty").mkdir()
    (top / "many").mkdir()
    for number in range(3000):
        (top / f"many/a name that is not too short {number}").write_text(str(number))
    (top / "link").symlink_to("text100")
    (top / "long link").symlink_to("x/" * 1000)
    os.symlink(b"\xff\n", os.fsencode(top / "odd link"))
    os.link(top / "text100", top / "hard link")
    os.link(top / "noise1300001", top / "directory/hard link")
    os.mkfifo(top / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        working = os.getcwd()
        os.chdir(top)
        listener.bind("socket")
        os.chdir(working)
    for name in (b"not utf-8 \xff\xfe", b"new\nline", b"n" * 255, b" ", "é€".encode()):
        (top / os.fsdecode(name)).write_bytes(name)
    with open(top / "sparse", "wb") as sparse:
        for offset in (0, 1 << 20, 3 << 20):
            sparse.seek(offset)
            sparse.write(b"data")
        sparse.truncate((4 << 20) + 7)
    (top / "hole").touch()
    os.truncate(top / "hole", 10 << 20)
    (top / "modes").mkdir()
    for mode in (0o400, 0o4755, 0o2750, 0o1777, 0o6711):
        (top / f"modes/{mode:o}").touch()
        (top / f"modes/{mode:o}").chmod(mode)
    for name, when in {"epoch": 0, "late": 2**31 + 5}.items():
        (top / name).touch()
        os.utime(top / name, (when, when))
    for name, key, value in (
        ("text100", "user.short", b"value"),
        ("text100", "user.bytes", bytes(range(256))),
        ("many", "user.of a directory", b"x" * 1000),
        ("text4096", "user.empty", b""),
    ):
        os.setxattr(top / name, key, value)
    return top


@pytest.fixture(scope="module")
def pseudo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pseudo") / "definitions"
    path.write_text("".join(f"{name} {definition}\n" for name, definition in PSEUDO.items()))
    return path


#: Run inside the view; says of each file what the test compares.
DESCRIBE = """
import hashlib, json, os, stat, sys
top = os.fsencode(sys.argv[1])
found = {}
for directory, directories, files in os.walk(top):
    for name in directories + files:
        path = os.path.join(directory, name)
        s = os.lstat(path)
        content, xattrs = None, {}
        if stat.S_ISREG(s.st_mode):
            content = hashlib.sha256(open(path, "rb").read()).hexdigest()
        elif stat.S_ISLNK(s.st_mode):
            content = os.fsdecode(os.readlink(path))
        if stat.S_ISREG(s.st_mode) or stat.S_ISDIR(s.st_mode):
            xattrs = {key: os.getxattr(path, key).hex() for key in os.listxattr(path)}
        found[os.fsdecode(os.path.relpath(path, top))] = [
            s.st_mode, s.st_size, s.st_nlink, s.st_uid, s.st_gid, s.st_mtime_ns, s.st_rdev, s.st_ino, content, xattrs]
print(json.dumps(found))
"""


@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_every_file_and_attribute(viewfs: Viewfs, tree: Path, pseudo: Path, tmp_path: Path, compressor: str) -> None:
    image = mksquashfs(tree, tmp_path / "image.squashfs", "-comp", compressor, "-pf", pseudo)
    script = tmp_path / "describe.py"
    script.write_text(DESCRIBE)
    found: dict[str, list[Any]] = viewfs("run", "--mount", f"{image}:/mnt", "--", "python3", script, "/mnt").json
    assert viewfs("inspect", "--json", image).json["layers"][1]["compression"] == compressor
    inodes = {}
    for name, wanted in walk(os.fsencode(tree)):
        mode, size, nlink, uid, gid, mtime_ns, _rdev, ino, content, xattrs = found.pop(os.fsdecode(name))
        assert mode == wanted.st_mode, name
        assert (uid, gid) == (os.getuid(), os.getgid()), name
        assert nlink == wanted.st_nlink, name
        assert mtime_ns == wanted.st_mtime_ns // 10**9 * 10**9, name
        assert inodes.setdefault(wanted.st_ino, ino) == ino, f"{name!r} and its hard link are one file"
        path = os.path.join(os.fsencode(tree), name)
        if not stat.S_ISDIR(mode):
            assert size == wanted.st_size, name
        if stat.S_ISREG(mode):
            with open(path, "rb") as file:
                assert content == hashlib.sha256(file.read()).hexdigest(), name
        elif stat.S_ISLNK(mode):
            assert os.fsencode(content) == os.readlink(path), name
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            assert xattrs == {key: os.getxattr(path, key).hex() for key in os.listxattr(path)}, name
    assert len(set(inodes.values())) == len(inodes), "and others are others"
    assert {name: (stat.S_IFMT(row[0]), row[6]) for name, row in found.items()} == {
        "character": (stat.S_IFCHR, os.makedev(4, 64)),
        "block": (stat.S_IFBLK, os.makedev(8, 300)),
        "pipe": (stat.S_IFIFO, 0),
    }
    assert found["character"][0] & 0o7777 == 0o640


@pytest.mark.parametrize(
    "options",
    [
        ["-b", "4096"],
        ["-b", "1M", "-no-exports", "-no-xattrs"],
        ["-no-fragments", "-no-tailends", "-no-duplicates"],
        ["-noI", "-noD", "-noF", "-noX"],
    ],
    ids=["4 KiB blocks", "1 MiB blocks", "no fragments", "stored"],
)
def test_layouts(viewfs: Viewfs, tree: Path, tmp_path: Path, options: list[str]) -> None:
    image = mksquashfs(tree, tmp_path / "image.squashfs", *options)
    script = f"""
        cd /mnt; find . -type f -print0 | sort -z | xargs -0 sha256sum -z > {tmp_path}/in-image
    """
    viewfs.sh("--mount", f"{image}:/mnt", script=script)
    expected = subprocess.run(
        ["bash", "-c", "find . -type f -print0 | sort -z | xargs -0 sha256sum -z"],
        cwd=tree,
        env=os.environ | {"LANG": os.environ.get("LANG", "C")},
        check=True,
        capture_output=True,
    ).stdout
    assert (tmp_path / "in-image").read_bytes() == expected and expected


def test_extended_attributes(viewfs: Viewfs, tree: Path, tmp_path: Path) -> None:
    image = mksquashfs(tree, tmp_path / "image.squashfs")
    script = """
        cd /mnt
        getfattr -d -m - text100 'hard link' | grep -c 'user.short="value"'
        getfattr --only-values -n user.bytes text100 | sha256sum | cut -d' ' -f1
        getfattr --only-values -n 'user.of a directory' many | wc -c
        getfattr -n user.none text100 2>&1 | grep -c 'No such attribute'
        setfattr -n user.new -v x text100 2>&1 | grep -c 'Read-only file system'
    """
    lines = viewfs.sh("--mount", f"{image}:/mnt", script=script).out.split()
    assert lines == ["2", hashlib.sha256(bytes(range(256))).hexdigest(), "1000", "1", "1"]


def test_whose_files_they_are(viewfs: Viewfs, tmp_path: Path) -> None:
    tree = tmp_path / "small"
    tree.mkdir()
    (tree / "mine").touch()
    definitions = tmp_path / "pseudo"
    definitions.write_text("root f 600 0 0 echo secret\nother f 644 4711 4712 true\n")
    image = mksquashfs(tree, tmp_path / "image.squashfs", "-pf", definitions)

    def owners(options: str, *view_options: str) -> list[int]:
        # Permission bits are shown, not enforced.
        script = "cd /mnt; test $(cat root) = secret; stat -c %u root mine other; stat -c %g mine other"
        out = viewfs.sh(*view_options, "--mount", f"{image}:/mnt:squashfs{options}", script=script).out
        return list(map(int, out.split()))

    me, mine = os.getuid(), os.getgid()
    assert owners("") == owners(",owner=me") == [me, me, me, mine, mine]
    assert owners(",owner=keep") == [65534, me, 65534, mine, 65534]
    assert owners("", "--as-root", "--ids=one")[:3] == [0, 0, 0]


# -- where an image is


@pytest.fixture
def small(tmp_path: Path) -> Path:
    tree = tmp_path / "small.d"
    tree.mkdir()
    (tree / "file").write_text("from the image\n")
    return mksquashfs(tree, tmp_path / "small.img", "-comp", "zstd")


def test_it_is_found_by_what_it_contains(viewfs: Viewfs, small: Path) -> None:
    strange = small.rename(small.with_name("no suffix at all"))
    assert viewfs.sh("--mount", f"{strange}:/mnt", script="cat /mnt/file; viewfs lsmod").out.startswith("from the")


def test_behind_a_program_and_behind_anything(viewfs: Viewfs, small: Path, tmp_path: Path) -> None:
    image = small.read_bytes()
    program = tmp_path / "program.AppImage"
    program.write_bytes(Path("/bin/true").resolve().read_bytes() + image)
    program.chmod(0o755)
    assert subprocess.run([program]).returncode == 0, "it still is a program"
    script_file = tmp_path / "script.sif"
    script_file.write_bytes(b"#!/bin/sh\nexit 0\n".ljust(5000, b"\n") + image)
    for path in (program, script_file):
        assert viewfs.sh("--mount", f"{path}:/mnt", script="cat /mnt/file").out == "from the image\n", path
    padded = tmp_path / "padded"
    padded.write_bytes(b"\xaa" * 3072 + image + b"\xbb" * 1000)
    assert viewfs.sh("--mount", f"{padded}:/mnt:squashfs,offset=3K", script="cat /mnt/file").out == "from the image\n"
    assert viewfs.sh("--mount", f"{padded}:/mnt:squashfs", script="cat /mnt/file").out == "from the image\n"
    wrong = viewfs("run", "--mount", f"{padded}:/mnt:squashfs,offset=2K", "--", "true", check=False)
    assert wrong.code == 5 and wrong.err.count("\n") == 1, wrong
    _file, squashfs = viewfs("inspect", "--json", program).json["layers"]
    assert squashfs["offset"] == f"{len(program.read_bytes()) - len(image)} bytes"


@pytest.mark.needs("mke2fs")
def test_images_within_images(viewfs: Viewfs, small: Path, image: Callable[..., Path], tmp_path: Path) -> None:
    """squashfs in ext4 in squashfs: each is mounted from a file of the other."""
    outer = tmp_path / "outer.d"
    outer.mkdir()
    shutil.move(image("middle.img", size="2M", inner=small, title="middle"), outer / "middle.img")
    path = mksquashfs(outer, tmp_path / "outer.img", "-comp", "xz")
    script = """
        viewfs mount /mnt/middle.img /mnt; cat /mnt/title
        viewfs mount /mnt/inner /mnt; cat /mnt/file; ls /mnt
    """
    assert viewfs.sh("--mount", f"{path}:/mnt", script=script).out == "middlefrom the image\nfile\n"


def test_inspect(viewfs: Viewfs, small: Path) -> None:
    _file, squashfs = viewfs("inspect", "--json", small).json["layers"]
    assert (squashfs["type"], squashfs["compression"], squashfs["inodes"]) == ("squashfs", "zstd", "2")
    assert "compression" in viewfs("inspect", small).out


# -- damage


def test_a_truncated_image(viewfs: Viewfs, small: Path, tmp_path: Path) -> None:
    whole = small.read_bytes()
    cut = tmp_path / "cut.img"
    used = int.from_bytes(whole[40:48], "little")
    for length in (0, 95, 96, used - 1):
        cut.write_bytes(whole[:length])
        refused = viewfs("run", "--mount", f"{cut}:/mnt:squashfs", "--", "true", check=False)
        assert refused.code == 5 and refused.err.count("\n") == 1, (length, refused)


def test_an_image_that_is_truncated_while_it_is_mounted(open_view: Callable[..., View], tmp_path: Path) -> None:
    tree = tmp_path / "content"
    tree.mkdir()
    chance = random.Random(6)
    for name, content in {"noise": chance.randbytes(3 << 20), "text": text(3 << 20), "zmall": b"x"}.items():
        (tree / name).write_bytes(content)
    path = mksquashfs(tree, tmp_path / "image.squashfs")
    view = open_view("--mount", f"{path}:/mnt")
    view.sh("ls -l /mnt")
    os.truncate(path, 4096)
    for name in ("noise", "text"):
        failed = view.sh(f"cat /mnt/{name} >/dev/null", check=False)
        assert failed.code and "Input/output error" in failed.err, failed
    (row,) = view.json("lsmod")["modules"]
    assert row["state"] == "mounted" and row["server"]
    assert "Traceback" not in view("log").out


@pytest.fixture
def crowd(tmp_path: Path) -> Path:
    """Little of everything, so that every block of metadata is likely to be hit."""
    top = tmp_path / "crowd"
    chance = random.Random(7)
    for number in range(30):
        directory = top / f"directory {number}"
        directory.mkdir(parents=True)
        for more in range(20):
            (directory / f"file {more}").write_bytes(text(chance.randrange(6000)))
        (directory / "link").symlink_to("file 1")
        (directory / "noise").write_bytes(chance.randbytes(10_000))
        os.setxattr(directory / "file 2", "user.number", b"%d" % number)
    (top / "large").write_bytes(text(700_000))
    return top


def test_damage_is_an_error_of_the_file_it_hits(open_view: Callable[..., View], crowd: Path, tmp_path: Path) -> None:
    """And of nothing else: no hang, no dead server."""
    view = open_view()
    chance = random.Random(8)
    mounted = 0
    for round_ in range(6):
        compressed = ["-comp", ("gzip", "zstd", "lz4")[round_ // 2]]
        stored = ["-noI", "-noX", "-noD", "-noF"] if round_ % 2 else []
        path = mksquashfs(crowd, tmp_path / f"damaged{round_}.img", *compressed, *stored)
        damaged = bytearray(path.read_bytes())
        for _flip in range(40):
            place = chance.randrange(96, len(damaged))
            damaged[place] ^= 1 << chance.randrange(8)
        # Tables are at the end, and few bytes.
        for _flip in range(8 if stored else 2):
            place = chance.randrange(int.from_bytes(damaged[64:72], "little"), len(damaged) - 300)
            damaged[place] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        refused = view("mount", "-t", "squashfs", path, "/mnt", check=False)
        if refused.code:
            assert refused.code == 5 and refused.err.count("\n") == 1, refused
            continue
        mounted += 1
        commands: list[str] = []
        for command in ("find /mnt -ls", "find /mnt -type f -exec cat {} +", "getfattr -R -d -m - /mnt"):
            commands.append(f"timeout 30 {command} >/dev/null 2>&1 || test $? != 124")
        view.sh("\n".join(commands))
        (row,) = view.json("lsmod")["modules"]
        assert row["state"] == "mounted" and row["server"], "the server has survived"
        view("umount", "/mnt")
    assert mounted >= 3, "not every one was refused"
    log = view("log").out
    assert "Traceback" not in log and "taken over" not in log


def test_a_reader_does_not_notice_that_servers_are_killed(open_view: Callable[..., View], tmp_path: Path) -> None:
    tree = tmp_path / "content"
    tree.mkdir()
    content = random.Random(3).randbytes(8 << 20) + text(16 << 20)
    (tree / "big").write_bytes(content)
    view = open_view("--mount", f"{mksquashfs(tree, tmp_path / 'image.squashfs', '-comp', 'lz4')}:/mnt")
    script = "echo begin; dd if=/mnt/big bs=64k iflag=fullblock 2>/dev/null"
    reading = subprocess.Popen(
        ["viewfs", "enter", view.name, "--", "sh", "-c", script],
        stdout=subprocess.PIPE,
        env=view.viewfs.environment,
    )

    def server() -> int | None:
        pid: int | None = view.json("lsmod")["modules"][0]["server"]
        return pid

    assert reading.stdout is not None and reading.stdout.readline() == b"begin\n"
    digest, length = hashlib.sha256(), 0
    for _time in range(3):
        part = reading.stdout.read(4 << 20)
        digest.update(part)
        length += len(part)
        victim = wait_until(server, "there is a server")
        kill(victim)
        wait_until(lambda victim=victim: server() not in (victim, None), "another server has taken over")
    rest = reading.stdout.read()
    digest.update(rest)
    assert reading.wait(30) == 0
    reading.stdout.close()
    assert (length + len(rest), digest.hexdigest()) == (len(content), hashlib.sha256(content).hexdigest())
    assert view("log").out.count("another server has taken over /mnt") == 3


# -- programs


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Path]:
    """A tree with what real programs read: a repository, a database, an archive, programs."""
    tree = tmp_path / "programs"
    (tree / "work").mkdir(parents=True)
    git = ["git", "-C", tree / "work", "-c", "user.name=N", "-c", "user.email=e@example.org"]
    subprocess.run([*git, "init", "-q", "-b", "main"], check=True)
    (tree / "work/file").write_text("text\n" * 1000)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    subprocess.run(["git", "clone", "-q", "--bare", tree / "work", tree / "bare.git"], check=True)
    subprocess.run(["sqlite3", tree / "data.db", "create table t(x); insert into t values (42);"], check=True)
    with zipfile.ZipFile(tree / "archive.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("in the archive", text(100_000))
    subprocess.run(
        ["gcc", "-static", "-x", "c", "-", "-o", tree / "static"], input=b"int main(){return 23;}", check=True
    )
    shutil.copy("/bin/true", tree / "dynamic")
    (tree / "mapped").write_bytes(random.Random(9).randbytes(1 << 20) + text(2_000_000))
    yield tree


@pytest.mark.needs("git", "sqlite3", "gcc", "rsync")
def test_real_programs(viewfs: Viewfs, programs: Path, tmp_path: Path) -> None:
    path = mksquashfs(programs, tmp_path / "programs.img", "-comp", "zstd")
    (tmp_path / "untarred").mkdir()
    mapped = "import hashlib, mmap; f = open('mapped', 'rb'); m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)"
    busybox = shutil.which("busybox") or ""
    script = f"""
        cd /mnt
        git clone -q /mnt/bare.git {tmp_path}/clone && wc -l < {tmp_path}/clone/file
        sqlite3 -readonly 'file:data.db?immutable=1' 'select x from t'
        python3 -m zipfile -l archive.zip | grep -c 'in the archive *.* 100000'
        ./static || echo "static $?"
        ./dynamic && echo "dynamic $?"
        python3 -c "{mapped}; print(hashlib.sha256(m[::-1]).hexdigest())"
        tar cf - . | tar xf - -C {tmp_path}/untarred
        rsync -a --checksum ./ {tmp_path}/synced/
        test -z "{busybox}" || {busybox} find . -type f | wc -l
        touch new 2>&1 || true
    """
    done = viewfs.sh("--mount", f"{path}:/mnt", script=script)
    digest = hashlib.sha256((programs / "mapped").read_bytes()[::-1]).hexdigest()
    assert done.out.splitlines()[:6] == ["1000", "42", "1", "static 23", "dynamic 0", digest]
    assert "Read-only file system" in done.out
    if busybox:
        assert int(done.out.splitlines()[6]) == sum(path.is_file() for path in programs.rglob("*"))
    for copy in ("untarred", "synced"):
        assert subprocess.run(["diff", "-r", programs, tmp_path / copy], capture_output=True).stdout == b""


def test_every_way_of_asking_says_the_same(viewfs: Viewfs, small: Path) -> None:
    """A name that was listed and one that was looked up, `.` and `..`, and names that are not there."""
    script = """
        stat -c '%i %s' /mnt/file; ls -i /mnt | cut -d' ' -f1; stat -c %i /mnt /mnt/. | uniq | wc -l
        cat /mnt/none 2>&1 | grep -c 'No such file'; cd /mnt/file 2>&1 | grep -c 'Not a directory'
    """
    out = viewfs.sh("--mount", f"{small}:/mnt", script=script).out.split()
    assert out[0] == out[2] and out[1] == "15" and out[3:] == ["1", "1", "1"], json.dumps(out)
