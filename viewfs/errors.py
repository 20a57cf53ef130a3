"""What a user is told when something can't be done: one class, one exit code, one line.

An error says what was being done and to what (`message`) and what to do about it (`remedy`); only the command
line prints either. Everything below the command line raises these, or plain `OSError` where the errno says it all.
"""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar

__all__ = [
    "BY_EXIT_CODE",
    "DamagedSourceError",
    "MachineError",
    "NotFoundError",
    "UsageError",
    "ViewfsError",
    "explain_os_error",
    "os_error",
    "printable",
]


#: The most characters that are taken of a text from elsewhere; two paths fit in.
_TEXT_MAX = 10_000


def printable(text: str) -> str:
    """A text from elsewhere in a form that is safe on a terminal: no control characters, and limited in length."""
    return "".join(each if each.isprintable() or "\udc80" <= each <= "\udcff" else "\N{REPLACEMENT CHARACTER}"
                   for each in text[:_TEXT_MAX])  # fmt: skip


def os_error(number: int) -> OSError:
    """The error that errno `number` stands for, of the class that Python has for it."""
    return OSError(number, os.strerror(number))


class ViewfsError(Exception):
    """Something failed, and this is the line to show for it."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}" if self.remedy else self.message

    def to_json(self) -> dict[str, Any]:
        """The form that crosses a socket; `from_json` is its inverse."""
        return {"exit_code": self.exit_code, "message": self.message, "remedy": self.remedy}

    @staticmethod
    def from_json(value: object) -> ViewfsError:
        """The error that the other side has sent, whatever form that has."""
        if not isinstance(value, dict):
            return ViewfsError(str(value)[:_TEXT_MAX])
        code, remedy = value.get("exit_code"), value.get("remedy")
        kind = BY_EXIT_CODE.get(code, ViewfsError) if isinstance(code, int) else ViewfsError
        message = str(value.get("message", "failed"))[:_TEXT_MAX]
        return kind(message, remedy=None if remedy is None else str(remedy)[:_TEXT_MAX])


class UsageError(ViewfsError):
    """The request itself is wrong: an unknown option, a bad value, a mount point that can't be one."""

    exit_code = 2


class MachineError(ViewfsError):
    """This machine does not allow it; `viewfs doctor` tells which step fails and what to do."""

    exit_code = 3

    def __init__(self, message: str, *, remedy: str | None = "`viewfs doctor` says what to change") -> None:
        super().__init__(message, remedy=remedy)


class NotFoundError(ViewfsError):
    """No session, mount, epoch or module of that name."""

    exit_code = 4


class DamagedSourceError(ViewfsError):
    """The source is damaged, of no known kind, or uses a feature that can't be read."""

    exit_code = 5


BY_EXIT_CODE: dict[int, type[ViewfsError]] = {
    kind.exit_code: kind for kind in (ViewfsError, UsageError, MachineError, NotFoundError, DamagedSourceError)
}


def explain_os_error(step: str, error: OSError) -> ViewfsError:
    """`error` as the one line that names the step, the path and the reason.

    A path that isn't there or isn't what was asked for is a mistake of the request (exit code 2); the rest is 1.
    """
    reason = os.strerror(error.errno) if error.errno else str(error) or "no reason given"
    path = error.filename
    if isinstance(path, bytes):
        path = os.fsdecode(path)
    where = f" {path}" if path and str(path) not in step else ""
    kind = UsageError if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR) else ViewfsError
    return kind(f"{step}{where}: {reason[0].lower()}{reason[1:]}")
