"""What is to be run, in a file in memory: its environment may have secrets, and stays out of messages."""

from __future__ import annotations

import json
import os
from typing import Any

__all__ = ["read_command", "write_command"]


def write_command(argv: list[str], environment: dict[str, str], working_directory: str) -> int:
    """A descriptor of such a file, which the caller closes. Raises OSError."""
    fd = os.memfd_create("viewfs-command", os.MFD_CLOEXEC)
    try:
        with open(fd, "w", encoding="ascii", closefd=False) as file:
            json.dump({"argv": argv, "env": environment, "cwd": working_directory}, file)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_command(fd: int) -> dict[str, Any]:
    """What `write_command` was given: `argv`, `env` and `cwd`. Raises OSError, and ValueError for another file."""
    os.lseek(fd, 0, os.SEEK_SET)
    with open(fd, encoding="ascii") as file:
        command = json.load(file)
    if not isinstance(command, dict) or set(command) != {"argv", "env", "cwd"} or not command["argv"]:
        raise ValueError("no command")
    return command
