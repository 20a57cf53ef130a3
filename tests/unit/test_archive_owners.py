"""Giving what is in a tar archive to others as it passes by."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from viewfs.cow.export.owners import Owner, rewrite_archive
from viewfs.errors import ViewfsError


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Names of all lengths, a sparse file, names of one file, attributes."""
    top = tmp_path_factory.mktemp("tree")
    long = top / ("d" * 90) / ("e" * 120) / ("f" * 200)
    long.mkdir(parents=True)
    (long / "file").write_text("deep\n")
    (top / "text").write_text("text\n" * 1000)
    os.link(top / "text", top / "other name")
    (top / "link").symlink_to("x" * 150)
    with open(top / "sparse", "wb") as file:
        file.truncate(10 << 20)
        file.seek(5 << 20)
        file.write(b"data")
    with open(os.fsencode(top) + b"/\xff\n\xc3\xa4", "wb"):
        pass
    os.setxattr(top / "text", "user.id", b"id=7")
    return top


@pytest.fixture(scope="module")
def archive(tree: Path) -> bytes:
    command = [
        "tar",
        "-C",
        tree,
        "--format=pax",
        "--sort=name",
        "--xattrs",
        "--sparse",
        "--numeric-owner",
        "-cf",
        "-",
        ".",
    ]
    return subprocess.run(command, check=True, capture_output=True).stdout


def members(archive: bytes) -> dict[bytes, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(archive), errors="surrogateescape") as opened:
        return {os.fsencode(member.name).removeprefix(b".").lstrip(b"/"): member for member in opened}


def rewritten(archive: bytes, owners: dict[bytes, Owner]) -> bytes:
    target = io.BytesIO()
    rewrite_archive(io.BytesIO(archive), target, owners)
    return target.getvalue()


ID = st.one_of(st.integers(0, 0xFFFFFFFE), st.sampled_from([0, 0o7777777, 0o7777777 + 1, 65534]))


@given(st.data())
@settings(deadline=None)
def test_what_is_given_away_and_what_is_not(archive: bytes, data: st.DataObject) -> None:
    before = members(archive)
    chosen = data.draw(st.dictionaries(st.sampled_from(sorted(before)), st.builds(Owner, ID, ID)))
    after = members(rewritten(archive, chosen))
    assert list(after) == list(before)
    for path, member in after.items():
        was = before[path]
        assert Owner(member.uid, member.gid) == chosen.get(path, Owner(was.uid, was.gid))
        kept = {key: value for key, value in member.pax_headers.items() if key not in ("uid", "gid")}
        assert kept == {key: value for key, value in was.pax_headers.items() if key not in ("uid", "gid")}
        assert (member.size, member.mode, member.type, member.linkname) == (was.size, was.mode, was.type, was.linkname)


def test_all_else_is_kept(archive: bytes, tree: Path, tmp_path: Path) -> None:
    owners = {path: Owner(3_000_000_000, 5) for path in members(archive)}
    subprocess.run(["tar", "-C", tmp_path, "--no-same-owner", "-xf", "-"], input=rewritten(archive, owners), check=True)
    assert subprocess.run(["diff", "-r", "--no-dereference", tree, tmp_path], check=False).returncode == 0
    assert (tmp_path / "sparse").stat().st_blocks < 100
    assert (tmp_path / "text").stat().st_nlink == 2
    assert rewritten(archive, {}) == archive


@pytest.mark.parametrize("length", [100, 512 + 7, 1024 + 100])
def test_what_ends_early(archive: bytes, length: int) -> None:
    with pytest.raises(ViewfsError):
        rewritten(archive[:length], {})
