"""/proc/PID/mountinfo, whatever names people give to their mount points."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from viewfs.linux.mountinfo import MountEntry, parse_mountinfo

#: The example of proc_pid_mountinfo(5).
EXAMPLE = b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n"


def line(mount_point: bytes) -> bytes:
    return b"36 35 98:0 / " + mount_point + b" rw - tmpfs none rw\n"


def escaped(path: bytes) -> bytes:
    """A path as the kernel writes it (show_mountinfo of fs/proc_namespace.c): these four bytes escaped, no other."""
    return b"".join(b"\\%03o" % byte if byte in b" \t\n\\" else bytes([byte]) for byte in path)


def test_the_manual_s_example() -> None:
    assert parse_mountinfo(EXAMPLE) == [
        MountEntry(36, 35, "98:0", "/mnt1", "/mnt2", "rw,noatime", "ext3", "/dev/root", "rw,errors=continue")
    ]


@pytest.mark.parametrize(
    "optional", [b"", b"shared:1 ", b"shared:1 master:2 propagate_from:3 unbindable ", b"- "], ids=str
)
def test_optional_fields(optional: bytes) -> None:
    (entry,) = parse_mountinfo(b"1 2 0:5 / /a rw " + optional + b"- tmpfs source rw\n")
    assert (entry.mount_point, entry.device) == ("/a", "0:5")
    if optional != b"- ":  # no kernel says that, and it does no harm
        assert (entry.fs_type, entry.source, entry.super_options) == ("tmpfs", "source", "rw")


def test_an_empty_source() -> None:
    (entry,) = parse_mountinfo(b"1 2 0:5 / /a rw - tmpfs  rw\n")
    assert (entry.source, entry.super_options) == ("", "rw")


@settings(max_examples=200, deadline=None, database=None)
@given(st.binary(max_size=40).filter(lambda name: b"\0" not in name))
def test_any_name_comes_back(name: bytes) -> None:
    """Carriage returns and the like too, which the kernel does not escape."""
    path = b"/" + name
    table = parse_mountinfo(line(b"/before") + line(escaped(path)) + line(b"/after"))
    assert [os.fsencode(entry.mount_point) for entry in table] == [b"/before", path, b"/after"]


def test_a_mount_point_that_looks_like_more() -> None:
    name = b"/a\n37 35 98:0 / /etc rw - tmpfs none rw"
    assert [entry.mount_point for entry in parse_mountinfo(line(escaped(name)))] == [os.fsdecode(name)]
    name = b"/a\r37 35 98:0 / /etc rw - tmpfs none rw"
    assert [entry.mount_point for entry in parse_mountinfo(line(escaped(name)))] == [os.fsdecode(name)]


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"\n\n",
        b"36 35",
        b"x 35 98:0 / /a rw - t s rw",
        b"36 35 98:0 / /a rw t s rw",
        b"36 35 98:0 / /a rw -",
        b"-" * 99,
    ],
)
def test_a_line_without_the_form_is_passed_over(damaged: bytes) -> None:
    assert [entry.mount_id for entry in parse_mountinfo(EXAMPLE + damaged + b"\n" + EXAMPLE)] == [36, 36]


@settings(max_examples=200, deadline=None, database=None)
@given(
    st.binary(max_size=200)
    | st.lists(st.sampled_from([b"1", b"-", b"/", b"\\777", b"\\04", b"\xff", b""])).map(b" ".join)
)
def test_any_bytes_are_a_table(text: bytes) -> None:
    assert all(isinstance(entry, MountEntry) for entry in parse_mountinfo(text))


def test_the_table_of_this_process() -> None:
    with open("/proc/self/mountinfo", "rb") as table:
        text = table.read()
    entries = parse_mountinfo(text)
    assert len(entries) == text.count(b"\n")
    assert any(entry.mount_point == "/" for entry in entries)
