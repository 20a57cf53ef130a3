"""`viewfs`, the quick way: what `parser` understands is done here, everything else by the whole program."""

from __future__ import annotations

import gc
import os

from viewfs.linux.plain import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from viewfs.cli.quick.parser import Parsed

__all__ = ["main"]

#: If it is set, everything is done by the whole program.
SLOW_VARIABLE = "VIEWFS_WHOLE"


def main(arguments: list[str]) -> NoReturn:
    """Run the command line. Never returns."""
    gc.disable()  # what is imported stays; and a process that lives longer turns it on again
    from viewfs.cli.quick.messages import exit_code, flush, open_standard_streams, verbosity
    from viewfs.cli.quick.parser import parse

    open_standard_streams()
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # KeyboardInterrupt from here on
    parsed = None
    if not os.environ.get(SLOW_VARIABLE) and "_VIEWFS_COMPLETE" not in os.environ:
        if arguments == ["--version"]:
            from viewfs import __version__

            print(f"viewfs, version {__version__}")
            _end(flush(0))
        parsed = parse(arguments)
    if parsed is None:
        _whole_program()
    verbosity.quiet = "quiet" in parsed.flags
    verbosity.verbose = "verbose" in parsed.flags
    _end(flush(exit_code(lambda: _run(parsed))))


def _end(status: int) -> NoReturn:
    from viewfs.python import finish

    finish(status)


def _whole_program() -> NoReturn:
    from viewfs.python import complete, finish

    complete()
    gc.freeze()  # what was imported so far
    gc.disable()
    from viewfs.cli.main import run

    finish(run())


def _run(parsed: Parsed) -> int:
    """Do what was asked for. Returns the exit code, and raises as commands do."""
    given, words, command = parsed.given, parsed.words, parsed.command
    if command in ("run", "shell", "enter", "at"):
        return _run_in_view(parsed)
    from viewfs.cli.quick import view

    session, as_json = given.pop("session", None), given.pop("as_json", False)
    if command == "ps":
        view.list_sessions(as_json)
    elif command == "lsmod":
        view.list_modules(session, as_json)
    elif command == "epochs":
        view.list_epochs(session, as_json)
    elif command == "resolve":
        view.show_resolution(session, as_json, words[0], None)
    elif command == "log":
        view.show_log(session, as_json)
    elif command == "umount":
        view.unmount(session, as_json, words[0], lazy=given.get("lazy", False), force=given.get("force", False))
    elif command == "rmmod":
        view.remove_module(session, as_json, words[0], lazy=given.get("lazy", False), force=given.get("force", False))
    elif command == "restart":
        view.restart(session, as_json, words[0])
    else:
        from viewfs.cli.quick.requests import absolute, load_request, mount_request

        options = given.get("options", [])
        if command == "mount":
            request = mount_request(given.get("kind"), absolute(words[0]), words[1], options)
        else:
            request = load_request(words[0], words[1] if len(words) > 1 else None, options)
        view.change(session, "mount", as_json, request)
    return 0


def _run_in_view(parsed: Parsed) -> int:
    from viewfs.cli.quick import opening

    given, words = parsed.given, parsed.words
    if parsed.command == "enter":
        return opening.enter_view(words[0], words[1:])
    if parsed.command == "at":
        return opening.run_at(words[0], words[1:], given.get("session"))
    changes = []
    if "changes" in given:
        from viewfs.cli.quick.requests import parse_load, parse_mount

        parsers = {"--mount": parse_mount, "--load": parse_load}
        changes = [parsers[option](text) for option, text in given.pop("changes")]
    argv, environment = (words, {}) if words else opening.interactive_shell()
    return opening.open_view(argv, environment, changes, **given)
