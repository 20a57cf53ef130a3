"""Overlays that programs of a view mount, and `viewfs mount -t overlay`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kernel.conftest import View
from viewfs.modules.trees.overlay import escaped, layers_of

OpenView = Callable[..., View]


@pytest.fixture
def layers(tmp_path: Path) -> Path:
    """Two directories to read, `a` over `b:c`; and `up`, `work` and `m`."""
    for name in ("a", "b:c", "up", "work", "m"):
        (tmp_path / name).mkdir()
    (tmp_path / "a/x").write_text("above\n")
    (tmp_path / "b:c/x").write_text("below\n")
    (tmp_path / "b:c/y").write_text("below\n")
    return tmp_path


def test_mount(open_view: OpenView, layers: Path) -> None:
    """With relative paths, as mount(8) leaves them."""
    view = open_view()
    script = rf"""cd {layers}
    mount -t overlay work m -o 'lowerdir=a:b\:c,upperdir=up,workdir=work,index=off'
    cat m/x m/y; echo new > m/z; rm m/x; ls m
    touch m/y; umount m; ls m
    mount -t overlay none m -o 'ro,lowerdir=a:b\:c,upperdir=up,workdir=work'; cat m/z
    echo text 2> /dev/null > m/z || echo refused"""
    assert view.sh(script).out.split() == ["above", "below", "y", "z", "new", "refused"]
    assert (layers / "up/z").read_text() == "new\n" and (layers / "a/x").exists()
    assert "overlay" in view("lsmod").out


def test_what_is_no_overlay(open_view: OpenView, layers: Path) -> None:
    view = open_view()
    for options in ("lowerdir=a,upperdir=up", "upperdir=up,workdir=work", "lowerdir=missing", "lowerdir=a,odd=1"):
        failed = view.sh(f"cd {layers}; mount -t overlay none m -o {options}", check=False)
        assert failed.code == 32, options
    refused = view("mount", "-t", "overlay", "none", layers / "m", "-o", f"lowerdir={layers}/gone", check=False)
    assert refused.code != 0 and f"cannot open the layer {layers}/gone" in refused.err


def test_by_name(open_view: OpenView, layers: Path) -> None:
    view = open_view()
    view("mount", "-t", "overlay", "none", layers / "m", "-o", rf"lowerdir={layers}/a:{layers}/b\:c")
    assert view.sh(f"cat {layers}/m/x; touch {layers}/m/new || echo refused").out == "above\nrefused\n"


@given(st.lists(st.text(st.sampled_from("/a:\\ ,é"), min_size=1), min_size=1))
def test_paths_between_colons(paths: list[str]) -> None:
    assert layers_of(":".join(map(escaped, paths))) == paths
