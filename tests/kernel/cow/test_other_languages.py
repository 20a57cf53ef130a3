"""Tools that speak another language: what they mean is known by how they end, or they are told to speak English."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.kernel.conftest import Viewfs
from tests.kernel.cow.conftest import Cow

#: How programs choose a language (setlocale(3), and LANGUAGE for those with catalogues).
SPEAK = """#!/bin/sh
chosen=${LC_ALL:-${LC_MESSAGES:-$LANG}}
say() { case "$chosen" in C|C.*|POSIX) echo "$1" ;; *) echo "$2" ;; esac }
"""
MKE2FS = """
echo "$chosen" >> "$FAKE_CALLS"
if [ "$(wc -l < "$FAKE_CALLS")" -le "$FAKE_FAILURES" ]; then
    for file; do case "$file" in *.viewfs-*) : > "$file" ;; esac; done
    say "mke2fs: Could not allocate block in ext2 filesystem while populating file system" \\
        "mke2fs: Auf dem Ger\303\244t ist kein Platz mehr, beim Best\303\274cken" >&2
    exit 1
fi
exec REAL "$@"
"""
TAR = """
if [ "$chosen" = C ] || [ "$chosen" = C.UTF-8 ] || [ "$chosen" = POSIX ]; then exec REAL "$@"; fi
REAL "$@" > "$FAKE_CALLS.out" 2> "$FAKE_CALLS.err"; code=$?
sed 's/Uid differs/UID ist verschieden/; s/Gid differs/GID ist verschieden/' "$FAKE_CALLS.out"
cat "$FAKE_CALLS.err" >&2
exit $code
"""
LANGUAGES = [{"LC_ALL": "de_DE.UTF-8"}, {"LC_ALL": "", "LANG": "de_DE.UTF-8"}, {"LC_ALL": "C.UTF-8"}]


@pytest.fixture
def tools(viewfs: Viewfs, tmp_path: Path) -> Path:
    """A directory for programs that are found before the machine's own."""
    (tmp_path / "tools").mkdir()
    viewfs.environment["PATH"] = f"{tmp_path}/tools:{viewfs.environment['PATH']}"
    viewfs.environment["FAKE_CALLS"] = str(tmp_path / "calls")
    return tmp_path / "tools"


def put(tools: Path, name: str, script: str) -> None:
    real = shutil.which(name, path=f"{os.environ['PATH']}:/sbin:/usr/sbin")
    assert real is not None
    (tools / name).write_text(SPEAK + script.replace("REAL", real))
    (tools / name).chmod(0o755)


@pytest.mark.needs("mke2fs")
@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("failures", [1, 3])
def test_an_image_that_was_too_small_at_first(
    cow: Cow, viewfs: Viewfs, tools: Path, tmp_path: Path, language: dict[str, str], failures: int
) -> None:
    put(tools, "mke2fs", MKE2FS)
    cow.sh("echo changed > text")
    viewfs.environment |= language | {"FAKE_FAILURES": str(failures)}
    assert cow("commit", "--to", tmp_path / "new.ext4").out.startswith(f"wrote {tmp_path}/new.ext4 (ext4)")
    assert (tmp_path / "calls").read_text().count("\n") == failures + 1
    subprocess.run(["e2fsck", "-fn", tmp_path / "new.ext4"], check=True, capture_output=True)
    assert viewfs.sh("--mount", f"{tmp_path}/new.ext4:/mnt/x", script="cat /mnt/x/text").out == "changed\n"


@pytest.mark.needs("mke2fs")
def test_an_image_that_can_not_be_made(cow: Cow, viewfs: Viewfs, tools: Path, tmp_path: Path) -> None:
    """It is given up in the end, with one line of what was said, and nothing is left."""
    put(tools, "mke2fs", MKE2FS)
    cow.sh("echo changed > text")
    viewfs.environment |= {"LC_ALL": "de_DE.UTF-8", "FAKE_FAILURES": "1000"}
    failed = cow("commit", "--to", tmp_path / "new.ext4", check=False)
    assert failed.code == 1 and failed.err.startswith("viewfs: mke2fs failed: ") and failed.err.count("\n") == 1
    assert (tmp_path / "calls").read_text().count("\n") < 20
    assert not list(tmp_path.glob("new.ext4*")) and cow("diff", "--name-only").out.endswith("/text\n")


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_archive_is_compared(
    viewfs: Viewfs, tree: Path, tools: Path, tmp_path: Path, language: dict[str, str]
) -> None:
    """tar says of files that belong to others that they do, in its words."""
    image = tmp_path / "image"
    options = ["-quiet", "-no-progress", "-force-uid", "7", "-force-gid", "8"]
    subprocess.run(["mksquashfs", tree, image, *options], check=True, capture_output=True)
    put(tools, "tar", TAR)
    viewfs.environment |= language
    options = ["--name", "n", "--mount", f"{image}:/mnt/image", "--cow", "/mnt/image"]
    script = f"echo changed > /mnt/image/text; viewfs commit --to {tmp_path}/new.tar"
    assert viewfs.sh(*options, script=script).out.startswith(f"wrote {tmp_path}/new.tar (tar)")
    with tarfile.open(tmp_path / "new.tar") as archive:
        assert (archive.getmember("./script").uid, archive.getmember("./script").gid) == (7, 8)
