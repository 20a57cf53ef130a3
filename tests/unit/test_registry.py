"""Finding modules: built in, in a file, installed."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from viewfs.errors import DamagedSourceError, NotFoundError, UsageError, ViewfsError
from viewfs.modules.api import Module
from viewfs.modules.framework.registry import BUILT_IN, available, find_module, probe, source_takers


class Bytes:
    """A source in memory."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    @property
    def size(self) -> int:
        return len(self.content)

    def pread(self, size: int, offset: int) -> bytes:
        return self.content[offset : offset + size]


def write(path: Path, text: str) -> str:
    path.write_text(textwrap.dedent(text))
    return str(path)


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_built_in_modules(name: str) -> None:
    found = find_module(name)
    assert found.built_in and found.origin == "built in"
    assert found.module.name == name
    assert (found.module.__doc__ or "").strip(), "lsmod --available shows it"
    for option in found.module.options:
        assert option.help


def test_all_built_in_modules_are_available() -> None:
    assert [found.name for found in available() if found.origin == "built in"] == list(BUILT_IN)


def test_no_such_module() -> None:
    with pytest.raises(NotFoundError, match="no module is called nosuch"):
        find_module("nosuch")
    with pytest.raises(NotFoundError, match="no such module file"):
        find_module("/no/such/place.py")


def test_a_module_in_a_file(tmp_path: Path) -> None:
    path = write(
        tmp_path / "greeting.py",
        """
        from __future__ import annotations
        from dataclasses import dataclass
        from viewfs.modules.api import FileSystem, Module, Mounting
        from viewfs.modules.api.nodes import computed_file

        @dataclass
        class Greeting:
            text: str = "hi"

        class Base(Module):
            def open(self, mounting: Mounting) -> FileSystem:
                return computed_file(lambda: Greeting().text)

        class Greet(Base):
            name = "greet"

        Default = Greet
        """,
    )
    found = find_module(path)
    assert (found.module.name, found.origin, found.built_in) == ("greet", path, False)
    assert issubclass(found.module, Module)


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("", UsageError, "defines 0 modules"),
        ("from viewfs.modules.trees.hello import Hello", UsageError, "defines 0 modules"),
        ("from viewfs.modules.api import Module\nclass Nameless(Module): pass", UsageError, "defines 0 modules"),
        (
            "from viewfs.modules.api import Module\nclass A(Module): name = 'a'\nclass B(Module): name = 'b'",
            UsageError,
            "defines 2 modules",
        ),
        ("def (", ViewfsError, "does not load: SyntaxError"),
        ("import no_such_library", ViewfsError, "does not load: ModuleNotFoundError"),
        ("1 / 0", ViewfsError, "does not load: ZeroDivisionError"),
        ("\0", ViewfsError, "does not load"),
    ],
)
def test_a_file_that_is_no_module(tmp_path: Path, text: str, kind: type[ViewfsError], said: str) -> None:
    path = write(tmp_path / "broken.py", text)
    with pytest.raises(kind) as caught:
        find_module(path)
    assert said in str(caught.value) and path in str(caught.value)


def test_a_directory_is_no_module(tmp_path: Path) -> None:
    (tmp_path / "dir.py").mkdir()
    with pytest.raises(NotFoundError):
        find_module(str(tmp_path / "dir.py"))


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A distribution with modules: one that is right, three that are not, one that takes a built-in's name."""
    write(
        tmp_path / "viewfs_test_distribution.py",
        """
        from viewfs.modules.api import Module

        class Right(Module):
            '''It knows its own.'''
            name = "right"
            takes_source = True

            @classmethod
            def probe(cls, source):
                return source.pread(5, 0) == b"RIGHT"

        class NotOne:
            name = "notone"
        """,
    )
    write(tmp_path / "viewfs_test_broken.py", "raise RuntimeError('broken')")
    info = tmp_path / "viewfs_test_distribution-1.0.dist-info"
    info.mkdir()
    write(info / "METADATA", "Metadata-Version: 2.1\nName: viewfs-test-distribution\nVersion: 1.0\n")
    write(
        info / "entry_points.txt",
        """
        [viewfs.modules]
        right = viewfs_test_distribution:Right
        notone = viewfs_test_distribution:NotOne
        absent = viewfs_test_distribution:Absent
        broken = viewfs_test_broken:Broken
        hello = viewfs_test_distribution:Right
        """,
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield


@pytest.mark.usefixtures("installed")
def test_an_installed_module() -> None:
    found = find_module("right")
    assert (found.module.name, found.origin, found.built_in) == ("right", "viewfs-test-distribution", False)
    assert find_module("hello").built_in, "nobody takes a built-in's name"


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "said"),
    [("notone", "not a viewfs module"), ("absent", "AttributeError"), ("broken", "RuntimeError: broken")],
)
def test_an_installed_module_that_does_not_load(name: str, said: str) -> None:
    with pytest.raises(ViewfsError, match=said):
        find_module(name)


@pytest.mark.usefixtures("installed")
def test_what_does_not_load_is_not_available() -> None:
    assert [found.name for found in available()] == [*BUILT_IN, "right"]


@pytest.mark.usefixtures("installed")
def test_a_source_is_known_by_its_content() -> None:
    assert probe(Bytes(b"RIGHT it is"), "image", source_takers()).module.name == "right"
    with pytest.raises(DamagedSourceError) as caught:
        probe(Bytes(b"\x01\x02" * 2048), "some.img", source_takers())
    assert "some.img" in str(caught.value) and "right" in str(caught.value) and "ext" in str(caught.value)
    for content in (b"", b"R"):
        with pytest.raises(DamagedSourceError):
            probe(Bytes(content), "short", source_takers())
