"""Have a child make the attempt, and say of each step how it went."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import time
from collections.abc import Callable
from typing import Any, NoReturn

from viewfs.doctor.attempt import Report, StepFailedError
from viewfs.doctor.attempt import attempt as open_a_view
from viewfs.doctor.facts import Facts
from viewfs.doctor.remedies import diagnose
from viewfs.doctor.steps import STEPS, Step
from viewfs.linux.process import die_with_parent

__all__ = ["DEADLINE", "examine"]

#: Seconds that one step may take; the slowest takes some hundredths.
DEADLINE = 20.0


def examine(
    facts: Facts | None = None, *, attempt: Callable[[Report], None] = open_a_view, deadline: float = DEADLINE
) -> list[Step]:
    """Try all the steps. Nothing of the attempt is left afterwards: no process, mount or file.

    `deadline` is in seconds, for each step; `attempt` is what the child does.
    """
    facts = facts or Facts.read()
    reading, writing = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        _become_attempt(attempt, writing, parent)
    os.close(writing)
    try:
        with contextlib.suppress(OSError):  # the child may have done so itself, and ended
            os.setpgid(child, child)
        messages, hung = _listen(reading, deadline)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):  # if SIGCHLD is ignored, the kernel has done it
            os.waitpid(child, 0)
        _wait_for_end(reading)
        os.close(reading)
    return _conclude(
        messages, f"gave no answer within {deadline:g} s" if hung else "ended without an answer", hung, facts
    )


def _become_attempt(attempt: Callable[[Report], None], writing: int, parent: int) -> NoReturn:
    status = 1
    try:
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        die_with_parent(parent)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)

        def report(*message: Any) -> None:
            os.write(writing, json.dumps(message).encode() + b"\n")

        attempt(report)
        status = 0
    except StepFailedError:
        status = 0
    except Exception as error:
        os.write(writing, json.dumps(["", "broken", f"{type(error).__name__}: {error}", 0]).encode() + b"\n")
    finally:
        os._exit(status)


Message = tuple[str, str, str, int]


def _listen(reading: int, deadline: float) -> tuple[list[Message], bool]:
    """Read messages until end-of-file, or until one step takes too long; the second value says whether one did."""
    said = b""
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    hung = False
    until = time.monotonic() + deadline
    while True:
        if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
            hung = True
            break
        more = os.read(reading, 65536)
        if not more:
            break
        said += more
        until = time.monotonic() + deadline
    return [(str(m[0]), str(m[1]), str(m[2]), int(m[3])) for m in map(json.loads, said.splitlines())], hung


def _wait_for_end(reading: int, seconds: float = 5.0) -> None:
    """Wait until no process has the other end open. All were killed, which may take the kernel a moment."""
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    until = time.monotonic() + seconds
    while poll.poll(max(0.0, until - time.monotonic()) * 1000) and os.read(reading, 65536):
        pass


def _conclude(messages: list[Message], silence: str, hung: bool, facts: Facts) -> list[Step]:
    """Make the steps, in order, from the messages; `silence` is the reason for a step that began and did not end."""
    begun = {name for name, what, _detail, _number in messages if what == "begin"}
    ended = {name: (what, detail, number) for name, what, detail, number in messages if what in ("ok", "failed")}
    broken = next((detail for _name, what, detail, _number in messages if what == "broken"), silence)
    steps: list[Step] = []
    for name, kind in STEPS.items():
        # An error that came before a step began is reported as that step's.
        if name not in begun and (len(begun) > len(ended) or any(step.state != "ok" for step in steps)):
            steps.append(Step(name, kind.title, "skipped", "not tried"))
            continue
        unanswered = ("failed", f"{kind.cannot}: {broken}", errno.ETIMEDOUT if hung else 0)
        what, detail, number = ended.get(name, unanswered)
        if what == "ok":
            steps.append(Step(name, kind.title, "ok", detail))
            continue
        remedy = diagnose(name, number, facts)
        steps.append(Step(name, kind.title, "failed" if kind.required else "warning", detail, remedy))
    return steps
