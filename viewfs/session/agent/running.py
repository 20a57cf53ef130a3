"""Running a worker: a forked child of the agent that does one step of a change of the view, and can hang or die alone.

A mount takes two of them, so that none has both the privilege to mount and bytes that somebody else wrote. The *server*
(`serving`) opens the source, shuts itself in, and only then looks at what it was given. (If the type has to be found
from the content, a sealed child looks first.) The *placer* (`placing`) takes the snapshot that becomes the epoch, and
makes the mount point, and the FUSE mount for a root of the kind that the server found; it reads nothing but paths. The
agent attaches the one to the other.

    server                     supervisor                    placer
    open ─────────────────────▶ decided: type, path, …
    confine, look ────────────▶ found: root mode, …
                               place, root mode  ──────────▶ snapshot, mount point, /dev/fuse, fsmount
                               fuse, mount, place descriptors ◀─┘
    serve ◀── fuse descriptor  (agent: attach)

Every worker speaks over a channel of its own to the supervisor, and ends when the channel does.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from viewfs.errors import ViewfsError, explain_os_error
from viewfs.session.wire.channel import Channel

__all__ = ["LIGHT", "run_worker"]

Worker = Callable[[Channel, dict[str, Any], list[int]], None]
#: Kind of worker → where it is.
_WORKERS = {
    "mount": "viewfs.session.agent.serving:mount",
    "resume": "viewfs.session.agent.serving:resume",
    "place": "viewfs.session.agent.placing:place",
    "root_name": "viewfs.session.agent.mirror_server:show_in_root",
    "unmount": "viewfs.session.agent.placing:unmount",
    "remount": "viewfs.session.agent.placing:remount",
    "survey": "viewfs.session.agent.placing:survey",
    "tidy": "viewfs.session.agent.placing:tidy",
    "cover": "viewfs.session.agent.covering:cover",
    "show_state": "viewfs.session.agent.covering:show_state",
}
#: Kinds that need no code of modules and their servers.
LIGHT = frozenset({"cover", "show_state"})


def run_worker(kind: str, channel: Channel, request: dict[str, Any], fds: list[int]) -> int:
    """Do the work, with descriptors `fds`, and say how it went; returns the exit status. Runs in a forked child."""
    try:
        module, _, name = _WORKERS[kind].partition(":")
        worker: Worker = getattr(importlib.import_module(module), name)
        if "logging" in sys.modules:
            _log_to_standard_error()
        worker(channel, request, fds)
    except ViewfsError as error:
        _try_to_send(channel, error)
        return error.exit_code
    except OSError as error:
        _try_to_send(channel, explain_os_error(f"cannot {kind} {request.get('path') or ''}".rstrip(), error))
        return 1
    except (Exception, SystemExit) as error:
        _log_to_standard_error().getLogger("viewfs.worker").exception("%s failed", kind)
        _try_to_send(channel, ViewfsError(f"{kind} failed: {type(error).__name__}: {error}", remedy="see `viewfs log`"))
        return 1
    return 0


def _log_to_standard_error() -> ModuleType:
    import logging  # only here: an agent that has no worker does without it

    logging.basicConfig(stream=sys.stderr, format="%(name)s[%(process)d]: %(message)s", force=True)
    return logging


def _try_to_send(channel: Channel, error: ViewfsError) -> None:
    try:
        channel.send({"error": error.to_json()})
    except OSError:
        print(error, file=sys.stderr)
