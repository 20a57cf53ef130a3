"""Where sessions can be found: whose the directory is, and what the sockets in it are called."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from viewfs.errors import UsageError, ViewfsError
from viewfs.session.runtime import RuntimeDirectory, check_name


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """XDG_RUNTIME_DIR, with nothing in it; the directory for temporary files beside it."""
    runtime, temporary = tmp_path / "run", tmp_path / "tmp"
    runtime.mkdir(mode=0o700)
    temporary.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.setenv("TMPDIR", str(temporary))
    return runtime


@pytest.fixture
def directory(base: Path) -> Iterator[RuntimeDirectory]:
    with closing(RuntimeDirectory.create()) as directory:
        yield directory


def in_temporary(base: Path) -> Path:
    return base.parent / "tmp" / f"viewfs-{os.geteuid()}"


# -- whose it is


def test_it_is_made_for_its_owner_alone(base: Path) -> None:
    with closing(RuntimeDirectory.create()) as directory:
        assert directory.path == str(base / "viewfs")
        assert stat.S_IMODE(os.stat(directory.path).st_mode) == 0o700
    with closing(RuntimeDirectory.create()) as again:
        assert again.path == directory.path


def test_it_is_made_for_its_owner_whatever_the_umask_is(base: Path) -> None:
    before = os.umask(0o777)
    try:
        directory = RuntimeDirectory.create()
    finally:
        os.umask(before)
    with closing(directory):
        assert stat.S_IMODE(os.stat(directory.path).st_mode) == 0o700


@pytest.mark.parametrize("runtime", [None, "", "relative/path", "/no/such/directory"])
def test_without_a_runtime_directory_it_is_in_the_temporary_one(
    base: Path, runtime: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if runtime is None:
        monkeypatch.delenv("XDG_RUNTIME_DIR")
    else:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    with closing(RuntimeDirectory.create()) as directory:
        assert directory.path == str(in_temporary(base))


def make_open(path: Path) -> None:
    path.mkdir()
    path.chmod(0o750)


def make_link(path: Path) -> None:
    target = path.parent / "elsewhere"
    target.mkdir(mode=0o700, exist_ok=True)
    path.symlink_to(target)


@pytest.mark.parametrize("spoil", [make_open, make_link, Path.touch], ids=["others can enter", "link", "file"])
def test_what_another_may_have_made_is_not_used(base: Path, spoil: object) -> None:
    assert callable(spoil)
    spoil(base / "viewfs")
    assert list(RuntimeDirectory.existing()) == []
    with closing(RuntimeDirectory.create()) as directory:
        assert directory.path == str(in_temporary(base))


@pytest.mark.parametrize("spoil", [make_open, make_link], ids=["others can enter", "link"])
def test_no_place_at_all(base: Path, spoil: object) -> None:
    assert callable(spoil)
    spoil(base / "viewfs")
    spoil(in_temporary(base))
    with pytest.raises(ViewfsError) as caught:
        RuntimeDirectory.create()
    said = str(caught.value)
    assert str(base / "viewfs") in said and str(in_temporary(base)) in said
    assert "mode 0700" in said and "set XDG_RUNTIME_DIR" in said and "\n" not in said


def test_a_private_directory_of_somebody_else_is_not_used(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path("/root")
    if os.geteuid() == 0 or not root.is_dir() or root.stat().st_mode & 0o077:
        pytest.skip("no private directory of another user here")
    monkeypatch.setattr(RuntimeDirectory, "candidates", classmethod(lambda cls: iter([str(root)])))
    assert list(RuntimeDirectory.existing()) == []
    with pytest.raises(ViewfsError, match="not a directory of yours"):
        RuntimeDirectory.create()


def test_both_places_are_looked_at(base: Path) -> None:
    (base / "viewfs").mkdir(mode=0o700)
    in_temporary(base).mkdir(mode=0o700)
    found = list(RuntimeDirectory.existing())
    assert [directory.path for directory in found] == [str(base / "viewfs"), str(in_temporary(base))]
    for directory in found:
        directory.close()


# -- sockets


def test_a_session_can_be_reached_by_its_name(directory: RuntimeDirectory) -> None:
    listener, name = directory.bind("work")
    with closing(listener):
        assert name == "work" and directory.names() == ["work"]
        with closing(directory.connect("work")) as client:
            with socket.socket(fileno=listener.detach()) as listening:
                connection, _address = listening.accept()
            with connection:
                client.sendall(b"hello")
                assert connection.recv(5) == b"hello"
    directory.remove("work")
    assert directory.names() == []
    assert not os.path.exists(directory.path), "with the last session goes the directory"
    directory.remove("work")


def test_a_name_that_is_taken(directory: RuntimeDirectory) -> None:
    listener, _name = directory.bind("work")
    with closing(listener):
        with pytest.raises(UsageError, match="a session called work exists") as caught:
            directory.bind("work")
        assert "viewfs enter work" in str(caught.value)
        assert directory.names() == ["work"]
        directory.connect("work").close()


def test_a_socket_that_was_left_behind_is_replaced(directory: RuntimeDirectory) -> None:
    """Also where it is the only one, and its directory would go with it."""
    directory.bind("work")[0].close()
    assert directory.names() == ["work"]
    with pytest.raises(ConnectionRefusedError):
        directory.connect("work")
    listener, _name = directory.bind("work")
    with closing(listener):
        assert directory.names() == ["work"]
        directory.connect("work").close()


def test_sessions_without_a_name(directory: RuntimeDirectory) -> None:
    made = [directory.bind(None) for _ in range(3)]
    names = [name for _listener, name in made]
    assert names == [f"{os.getpid()}", f"{os.getpid()}.1", f"{os.getpid()}.2"]
    for listener, name in made:
        assert check_name(name) == name
        listener.close()


def test_a_path_longer_than_an_address_can_be(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = base.joinpath(*["d" * 60] * 5)
    deep.mkdir(parents=True)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    with closing(RuntimeDirectory.create()) as directory:
        assert len(directory.path) > 108
        name = "n" * 64
        listener, _name = directory.bind(name)
        with closing(listener):
            directory.connect(name).close()
            assert directory.names() == [name]


def test_other_files_are_no_sessions(directory: RuntimeDirectory) -> None:
    Path(directory.path, "notes.txt").touch()
    listener, _name = directory.bind("work")
    listener.close()
    assert directory.names() == ["work"]
    directory.remove("work")
    assert os.path.exists(directory.path)


def test_a_directory_that_has_gone(directory: RuntimeDirectory) -> None:
    os.rmdir(directory.path)
    assert directory.names() == []
    with pytest.raises(FileNotFoundError):
        directory.bind("work")
    with pytest.raises(OSError):
        directory.connect("work")


def test_the_socket_is_closed_on_exec(directory: RuntimeDirectory) -> None:
    listener, _name = directory.bind("work")
    with closing(listener), closing(directory.connect("work")) as client:
        assert not any(os.get_inheritable(fd) for fd in (listener.fileno(), client.fileno(), directory.fd))


# -- names


@pytest.mark.parametrize("name", ["a", "work", "1234.1", "A-b_c.d", "x" * 64])
def test_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "-x", "a/b", "../a", "a b", "x" * 65, "ä", "a\n", "a\0b"])
def test_what_can_t_be_a_name(name: str) -> None:
    with pytest.raises(UsageError, match="can't name a session"):
        check_name(name)
