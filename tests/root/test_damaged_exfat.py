"""An exFAT that exfat-fuse filled, damaged at random beside its sound twin (see tests/unit/twins)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.root.test_exfat_fuse import exfat_fuse
from tests.unit.fat.fat_images import mkfs_exfat
from tests.unit.twins.answers import Answers, Failure, TwinImage, ask_all, differences
from tests.unit.twins.kinds import Made, find_pieces, make_tree
from tests.unit.twins.test_fuzz import ROUNDS, anywhere, cut, fuzz, of_files, served

pytestmark = [
    pytest.mark.needs("mkfs.exfat", "mount.exfat-fuse", "losetup"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount with exfat-fuse"),
]


def test_fuzz_of_what_another_implementation_wrote(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", links=False)
    image, there = mkfs_exfat(tmp_path / "image", 2 << 20, "-b", "64K", "-c", "1K"), tmp_path / "there"
    with exfat_fuse(image, there):
        shutil.copytree(tree, there, dirs_exist_ok=True)
    made = Made("exfat", image.read_bytes())
    made.pieces = find_pieces(made.data, tree)
    sound = ask_all("exfat", TwinImage(made.data))
    assert not [key for key, answer in sound.found.items() if isinstance(answer, Failure)]
    contents = {key: answer for key, answer in sound.found.items() if key[1] == "content" and answer}
    assert contents
    for (path, _, offset), answer in contents.items():
        assert (tree / path[1:]).read_bytes()[offset : offset + 4096] == answer

    def same(found: Answers, _data: bytes) -> None:
        assert not [*differences(found, sound)][:3]

    twin = made, sound
    assert fuzz("exfat-fuse", twin, tmp_path, anywhere, lambda _found, _data: None)
    fuzz("exfat-fuse", twin, tmp_path, cut, same)
    assert fuzz("exfat-fuse", twin, tmp_path, of_files, served(twin)) >= ROUNDS
