"""What the user is told on standard error, and the exit code that an error has."""

from __future__ import annotations

import os
import sys

from viewfs.errors import ViewfsError, explain_os_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "Verbosity",
    "exit_code",
    "flush",
    "open_standard_streams",
    "print_error",
    "printable",
    "styled",
    "tell",
    "verbosity",
    "warn",
]

#: No message is longer than this: paths can have 4,096 bytes and more, and a screen some 2,000 characters.
_LONGEST = 1200
#: SGR of ECMA-48, as terminals have it.
_STYLES = {"bold": "1", "dim": "2", "red": "31", "yellow": "33"}


class Verbosity:
    """What -q and -v say."""

    def __init__(self) -> None:
        self.quiet = False
        self.verbose = False


verbosity = Verbosity()


def printable(text: str) -> str:
    """`text` without what would move the cursor or can't be encoded: names are other people's input."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def styled(text: str, *styles: str, on_terminal: bool) -> str:
    """`text` in bold, dim or a colour, on a terminal whose user has not said NO_COLOR."""
    if not on_terminal or not styles or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{';'.join(_STYLES[style] for style in styles)}m{text}\x1b[0m"


def _shortened(message: str) -> str:
    if len(message) <= _LONGEST:
        return message
    return f"{message[: _LONGEST // 2]} … {message[-_LONGEST // 2 :]}"


def _say(message: str, *styles: str) -> None:
    prefix = styled("viewfs:", *styles, on_terminal=sys.stderr.isatty())
    sys.stderr.write(f"{prefix} {_shortened(printable(message))}\n")
    sys.stderr.flush()


def print_error(message: str) -> None:
    """What went wrong, in one line."""
    _say(message, "red", "bold")


def warn(message: str) -> None:
    """Something the user should know, which is no error."""
    if not verbosity.quiet:
        _say(message, "yellow")


def tell(message: str) -> None:
    """What was done, for those who asked with -v."""
    if verbosity.verbose:
        sys.stderr.write(printable(message) + "\n")


def exit_code(command: Callable[[], int]) -> int:
    """Run a command. Returns its exit code, or reports an error and returns the exit code of that (docs/cli.md)."""
    try:
        return command()
    except ViewfsError as error:
        print_error(str(error))
        return error.exit_code
    except OSError as error:
        print_error(str(explain_os_error("failed", error)))
        return 1
    except KeyboardInterrupt:
        return 130


def open_standard_streams() -> None:
    """Open those that are closed: else the next file opened would be one. They are closed again for the command."""
    for number, mode in enumerate("rww"):
        try:
            os.fstat(number)
            continue
        except OSError:
            fd = os.open(os.devnull, (os.O_RDONLY if mode == "r" else os.O_WRONLY) | os.O_CLOEXEC)
        if fd != number:  # a file of Python's own lies below
            os.dup2(fd, number, inheritable=False)
            os.close(fd)
        setattr(sys, ("stdin", "stdout", "stderr")[number], open(number, mode, closefd=False))


def flush(code: int) -> int:
    """Flush standard output. Returns `code`, unless that is 0 and the output can't be written: then 1."""
    try:
        sys.stdout.flush()
    except OSError as error:
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(null, sys.stdout.fileno())  # Python tries once more at its end
        os.close(null)
        if not code and not isinstance(error, BrokenPipeError):
            print_error(str(explain_os_error("cannot write the output", error)))
        return code or 1
    return code
