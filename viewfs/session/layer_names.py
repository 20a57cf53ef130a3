"""Where the layers of sessions are, and the names of the directories of sessions without a name."""

from __future__ import annotations

import os

__all__ = ["UNNAMED", "boot", "state_directory", "unnamed_prefix"]

#: How the directory names of sessions without a name begin.
UNNAMED = "unnamed."


def state_directory() -> str:
    """Where all layers are (XDG Base Directory Specification)."""
    state = os.environ.get("XDG_STATE_HOME")
    if not state or not os.path.isabs(state):
        state = os.path.join(os.path.expanduser("~"), ".local/state")
    return os.path.join(state, "viewfs")


def unnamed_prefix() -> str:
    """How these directory names begin on this machine. (Several machines can share a home directory.)"""
    try:
        with open("/etc/machine-id") as file:
            machine = file.read()
    except OSError:
        machine = os.uname().nodename
    from zlib import crc32

    return f"{UNNAMED}{crc32(machine.encode()):08x}"


def boot() -> str:
    """A text that differs each time this machine is started."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read(8)
