"""`viewfs inspect`: what a source is, without a view."""

from __future__ import annotations

import lzma
from collections.abc import Callable
from pathlib import Path

from tests.kernel.conftest import Viewfs

DATA = Path(__file__).parent.parent / "data"


def test_an_image(viewfs: Viewfs, image: Callable[..., Path]) -> None:
    disk = image(options=("-L", "a label", "-U", "8c5e2d0f-1d8c-4f8e-9a55-3f2f6f6f0002"), file="x")
    shown = viewfs("inspect", disk).out
    assert "a label" in shown and "8c5e2d0f-1d8c-4f8e-9a55-3f2f6f6f0002" in shown and "extent" in shown
    file, ext = viewfs("inspect", "--json", disk).json["layers"]
    assert file["type"] == "file" and file["size"] == f"{8 << 20} bytes"
    assert ext["type"] == "ext" and ext["label"] == "a label" and "metadata_csum" in ext["features"].split()


def test_an_unclean_one(viewfs: Viewfs, tmp_path: Path) -> None:
    disk = tmp_path / "unclean.img"
    disk.write_bytes(lzma.decompress((DATA / "unclean-journal.img.xz").read_bytes()))
    assert "transactions to replay" in viewfs("inspect", disk).out


def test_an_offset_behind_the_end(viewfs: Viewfs, image: Callable[..., Path]) -> None:
    disk = image(file="x")
    for kind in ("ext", "vfat", "exfat", "squashfs"):
        result = viewfs("run", "--mount", f"{disk}:/mnt:{kind},offset=99G", "--", "true", check=False)
        assert result.code == 2 and f"{disk} has {8 << 20} bytes" in result.err and result.err.count("\n") == 1


def test_what_is_none(viewfs: Viewfs, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("text")
    unknown = viewfs("inspect", tmp_path / "text", check=False)
    assert unknown.code == 5 and "is a text" in unknown.err and unknown.err.count("\n") == 1
    wrong = viewfs("inspect", "-t", "ext", tmp_path / "text", check=False)
    assert wrong.code == 5 and wrong.err.count("\n") == 1
    assert viewfs("inspect", tmp_path / "missing", check=False).code == 2
