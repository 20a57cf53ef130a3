"""fusermount3(1) as the module `fusermount` puts it into a view: it mounts and unmounts by way of the session.

A library that asks for a mount passes a socket in the environment (_FUSE_COMMFD), over which it gets the descriptor of
/dev/fuse that was mounted. What is mounted is a mount of the view.
"""

from __future__ import annotations

import os
import stat
import sys

from viewfs.errors import ViewfsError, explain_os_error
from viewfs.linux.plain import socket
from viewfs.linux.scm import rights
from viewfs.session.client import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["main"]

_SOCKET = "_FUSE_COMMFD"
#: Options that a FUSE mount of the session has, and those that it has anyway, or that mean nothing here.
_FLAGS = ("ro", "default_permissions", "allow_other")
_PASSED_OVER = (
    "rw", "nosuid", "nodev", "suid", "dev", "exec", "async", "sync", "atime", "noatime", "auto_unmount", "allow_root",
    "nonempty", "user", "nofail", "noexec", "dirsync", "big_writes", "x-", "fsname", "fd", "blksize", "rootmode",
    "group_id",
)  # fmt: skip
_USAGE = "usage: fusermount3 [-o OPTION,…] DIRECTORY | -u [-z] DIRECTORY"


def main(words: list[str]) -> NoReturn:
    """Do what the command line `words` asks for, and exit: 0, or 1 with a message."""
    flags, options, places = _parsed(words[1:])
    if "V" in flags:
        print("fusermount3 version: 3.0 (viewfs)")
        sys.exit(0)
    if len(places) != 1:
        _fail(_USAGE)
    try:
        path = os.path.realpath(places[0])
        with Session.of_view() as session:
            if "u" in flags:
                lazy = "z" in flags
                session.request("umount", path=path, lazy=lazy, force=False, inside=lazy, part=True, operation="umount")
            else:
                _mount(session, path, options)
    except ViewfsError as error:
        _fail(str(error))
    except OSError as error:
        _fail(str(explain_os_error(f"cannot mount on {places[0]}", error)))
    sys.exit(0)


def _fail(message: str) -> NoReturn:
    sys.stderr.write(f"fusermount3: {message}\n")
    sys.exit(1)


def _parsed(words: list[str]) -> tuple[set[str], dict[str, str], list[str]]:
    """Flags, by their short names; options of -o; and the rest."""
    long = {"--unmount": "u", "--lazy": "z", "--quiet": "q", "--version": "V", "--help": "h", "--auto-unmount": "U"}
    flags: set[str] = set()
    options: dict[str, str] = {}
    places: list[str] = []
    left = iter(words)
    for word in left:
        if word == "--":
            places += left
        elif word in long:
            flags.add(long[word])
        elif word == "-o" or word.startswith("-o"):
            for option in (word[2:] or next(left, "")).replace("\\,", "\0").split(","):
                name, _equals, value = option.replace("\0", ",").partition("=")
                options[name] = value
        elif word.startswith("-"):
            flags.update(word[1:])
        else:
            places.append(word)
    return flags, options, places


def _mount(session: Session, path: str, options: dict[str, str]) -> None:
    if not os.environ.get(_SOCKET, "").isdecimal():
        _fail("it is for libraries that mount, which pass it a socket")
    given: dict[str, str | None] = {
        "rootmode": f"{stat.S_IFMT(os.stat(path).st_mode):o}",
        "user_id": str(os.getuid()),
        "group_id": str(os.getgid()),
    }
    for name, value in options.items():
        if name in _FLAGS:
            given[name] = None
        elif name in ("subtype", "max_read"):
            given[name] = value
        elif name and not name.startswith(_PASSED_OVER):
            _fail(f"unknown option {name}")
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    session.request(
        "mount",
        [device],
        type="fuse",
        source=options.get("fsname") or options.get("subtype") or "fuse",
        path=path,
        options=given,
        cwd="/",
        module_path=[],
        operation="mount",
    )
    asked = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, int(os.environ[_SOCKET]))
    asked.sendmsg([b"\0"], rights([device]))
