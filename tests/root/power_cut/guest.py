"""What runs in the view: does what it is told on standard input, a line of JSON with Python in it at a time.

It is given to Python as text, so that it needs nothing of this checkout.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
import traceback


def describe(path: str) -> str:
    """As `promises.describe` does it."""
    status = os.lstat(path)
    shown = stat.filemode(status.st_mode)
    if stat.S_ISDIR(status.st_mode):
        return shown
    if stat.S_ISLNK(status.st_mode):
        content = os.fsencode(os.readlink(path))
    else:
        try:
            with open(path, "rb") as file:
                content = file.read()
        except OSError as error:
            return f"{shown} {error.strerror}"
    digest = hashlib.sha256(content).hexdigest()[:12] if content.strip(b"\0") else "zeros"
    return f"{shown} {len(content)} bytes {digest}"


def look(top: str = ".") -> dict[str, str]:
    """All that is below `top`."""
    found = {}
    for directory, below, files in os.walk(top):
        for name in (*below, *files):
            path = os.path.join(directory, name)
            found[os.path.relpath(path, top)] = describe(path)
    return found


def sync(*paths: str) -> None:
    """fsync(2) of files and directories."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def put(path: str, content: bytes, mode: str = "wb") -> None:
    """Write, and sync nothing."""
    with open(path, mode) as file:
        file.write(content)


def main() -> None:
    names = {"os": os, "look": look, "sync": sync, "put": put, "answer": None}
    os.chdir(sys.argv[1])
    for line in sys.stdin:
        answer: dict[str, object] = {}
        names["answer"] = None
        try:
            exec(json.loads(line), names)
            answer["answer"] = names["answer"]
        except Exception:
            answer["error"] = traceback.format_exc()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
