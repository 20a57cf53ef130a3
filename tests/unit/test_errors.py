"""What a user is told: one class, one exit code, one line; the same on both sides of a socket."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from viewfs.errors import (
    BY_EXIT_CODE,
    DamagedSourceError,
    MachineError,
    NotFoundError,
    UsageError,
    ViewfsError,
    explain_os_error,
)

KINDS = [ViewfsError, UsageError, MachineError, NotFoundError, DamagedSourceError]


def test_every_class_has_an_exit_code_of_its_own() -> None:
    assert [kind.exit_code for kind in KINDS] == [1, 2, 3, 4, 5]
    assert list(BY_EXIT_CODE.values()) == KINDS


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None, database=None)
@given(message=st.text(), remedy=st.none() | st.text())
def test_an_error_crosses_a_socket_as_it_is(kind: type[ViewfsError], message: str, remedy: str | None) -> None:
    there = kind(message, remedy=remedy)
    here = ViewfsError.from_json(there.to_json())
    assert type(here) is kind
    assert (here.message, here.remedy, str(here)) == (message, remedy, str(there))


def test_an_error_of_another_version_is_an_error() -> None:
    assert ViewfsError.from_json({"exit_code": 77, "message": "new"}).exit_code == 1
    assert str(ViewfsError.from_json({})) == "failed"


def test_the_remedy_stands_behind_the_message() -> None:
    assert str(UsageError("it is wrong")) == "it is wrong"
    assert str(UsageError("it is wrong", remedy="do it right")) == "it is wrong; do it right"
    assert "viewfs doctor" in str(MachineError("no namespaces"))
    assert str(MachineError("no namespaces", remedy=None)) == "no namespaces"


@pytest.mark.parametrize(
    ("error", "line", "kind"),
    [
        (FileNotFoundError(errno.ENOENT, "x", "/a/b"), "cannot open /a/b: no such file or directory", UsageError),
        (NotADirectoryError(errno.ENOTDIR, "x", b"/a\xff"), "cannot open /a\udcff: not a directory", UsageError),
        (IsADirectoryError(errno.EISDIR, "x"), "cannot open: is a directory", UsageError),
        (PermissionError(errno.EACCES, "x", "/a"), "cannot open /a: permission denied", ViewfsError),
        (OSError("what nobody knows"), "cannot open: what nobody knows", ViewfsError),
        (OSError(), "cannot open: no reason given", ViewfsError),
    ],
)
def test_an_errno_is_explained(error: OSError, line: str, kind: type[ViewfsError]) -> None:
    explained = explain_os_error("cannot open", error)
    assert str(explained) == line
    assert type(explained) is kind


def test_a_path_is_named_once() -> None:
    error = PermissionError(errno.EACCES, "x", "/a/b")
    assert str(explain_os_error("cannot open /a/b", error)) == "cannot open /a/b: permission denied"
