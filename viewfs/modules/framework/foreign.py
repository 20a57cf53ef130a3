"""Modules that speak FUSE themselves: file systems written for pyfuse3, and programs in any language.

They are given a descriptor of /dev/fuse that is mounted already. pyfuse3, libfuse 3, go-fuse and fuser use it if they
are given `/dev/fd/N` as the mount point. Older libraries take only a directory, and ask fusermount(1) for a mount: a
helper of that name gives them the descriptor. All else is as for any module: epoch, cage, `viewfs lsmod`, `viewfs
umount`.
"""

from __future__ import annotations

import inspect
import os
import select
import stat
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from viewfs.errors import UsageError, ViewfsError
from viewfs.linux.mount import AT_FDCWD, MountAttr, MoveMount, OpenTree, detached_tmpfs, move_mount, open_tree
from viewfs.modules.api import Module, Mounting
from viewfs.modules.api.options import Option, flag, integer, text

if TYPE_CHECKING:
    import socket

__all__ = ["ForeignModule", "ProgramModule", "is_pyfuse3_class", "module_of_operations", "module_of_program"]

#: Placeholders for the mount point in a program's arguments: in the form that its library takes, or as a directory.
_PLACE, _DIRECTORY = "{}", "{dir}"


class ForeignModule(Module):
    """A module that serves a descriptor of /dev/fuse itself."""

    #: The file system can be written to.
    writable: ClassVar[bool] = True
    #: It is served by another program, which is executed inside the cage.
    is_program: ClassVar[bool] = False

    def load(self) -> None:
        """Import what serving takes, while it can still be read."""

    def prepare(self, mounting: Mounting) -> None:
        """Called before mounting: outside of the cage for a program, inside for others. Raises `ViewfsError`,
        OSError."""

    def serve(self, fuse_fd: int, counted: Callable[[Any], Any]) -> None:
        """Serve until the file system is unmounted. Raises `ViewfsError`, OSError.

        `counted` makes of an object that has a coroutine for each kind of request one whose requests are counted.
        """
        raise NotImplementedError

    @property
    def root_mode(self) -> int:
        """The mode of its root, for the type bits."""
        return stat.S_IFDIR | 0o755


# -- pyfuse3


def is_pyfuse3_class(value: object) -> bool:
    """Is it a class of pyfuse3 operations? (Nothing is imported to find that out.)"""
    if not inspect.isclass(value):
        return False
    return any(base.__name__ == "Operations" and base.__module__.startswith("pyfuse3") for base in value.__mro__[1:])


def module_of_operations(operations: type[Any], name: str) -> type[ForeignModule]:
    """A module that serves `operations`.

    The parameters of its constructor are the module's options. The class may have the attributes `uses_view`,
    `uses_network` and `mount_point` of `Module`, and `writable`; by default it may use the view but not the network.
    """
    options = tuple(map(_option, _parameters(operations)))
    return type(
        operations.__name__,
        (_Pyfuse3Module,),
        {
            "__doc__": inspect.getdoc(operations) or "A file system that is written for pyfuse3.",
            "name": name,
            "operations": operations,
            "options": options,
            "mount_point": getattr(operations, "mount_point", None),
            "uses_view": getattr(operations, "uses_view", True),
            "uses_network": getattr(operations, "uses_network", False),
            "writable": getattr(operations, "writable", _changes_something(operations)),
        },
    )


_OPEN_ENDED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _parameters(operations: type[Any]) -> list[inspect.Parameter]:
    if operations.__init__ is object.__init__:
        return []
    return [each for each in inspect.signature(operations).parameters.values() if each.kind not in _OPEN_ENDED]


_REQUIRED = object()


def _option(parameter: inspect.Parameter) -> Option[Any]:
    """An option whose type is that of the parameter's annotation or default."""
    default = _REQUIRED if parameter.default is parameter.empty else parameter.default
    kind = parameter.annotation if parameter.annotation in (int, "int", bool, "bool") else type(default)
    said = "the constructor's"
    if kind in (bool, "bool"):
        made: Option[Any] = flag(parameter.name, said)
    elif kind in (int, "int"):
        made = integer(parameter.name, 0, said)
    else:
        made = text(parameter.name, "", said)
    show = (lambda given: "it has to be given") if default is _REQUIRED else str
    return Option(made.name, made.parse, default, said, made.metavar, made.bare, show)


#: Methods of pyfuse3.Operations that change something.
_CHANGES = ("write", "create", "mkdir", "mknod", "setattr", "unlink", "rmdir", "rename", "symlink", "link", "setxattr")


def _changes_something(operations: type[Any]) -> bool:
    own = [base for base in operations.__mro__ if not base.__module__.startswith("pyfuse3")]
    return any(name in vars(base) for base in own for name in _CHANGES)


class _Pyfuse3Module(ForeignModule):
    operations: ClassVar[type[Any]]

    def load(self) -> None:
        import pyfuse3
        import trio  # noqa: F401

        assert pyfuse3.ROOT_INODE

    def prepare(self, mounting: Mounting) -> None:
        missing = [name for name, value in mounting.options.items() if value is _REQUIRED]
        if missing:
            raise UsageError(f"module {self.name} needs an option", remedy=f"-o {missing[0]}=…")
        named = dict(mounting.options)
        first = [each.name for each in _parameters(self.operations) if each.kind is each.POSITIONAL_ONLY]
        self._made = self.operations(*(named.pop(name) for name in first), **named)

    def serve(self, fuse_fd: int, counted: Callable[[Any], Any]) -> None:
        import pyfuse3
        import trio

        options = {option for option in pyfuse3.default_options if not option.startswith("fsname")}
        pyfuse3.init(counted(self._made), f"/dev/fd/{fuse_fd}", options)
        try:
            trio.run(pyfuse3.main)
        finally:
            pyfuse3.close(unmount=False)


# -- programs


#: Directories that a program hardly needs, best first. In its own mount namespace the helper is mounted on one of them.
_PLACES = ("/sys/fs/fuse/connections", "/mnt", "/media", "/srv")
_NAMES = ("fusermount3", "fusermount")
#: Where libraries look for fusermount(1) before they search PATH.
_FUSERMOUNTS = tuple(f"{directory}/{name}" for directory in ("/bin", "/usr/bin", "/usr/local/bin") for name in _NAMES)
#: What fusermount(1) does for a program that asks it to mount: it sends the descriptor over the socket that an
#: environment variable names. The helper gets the descriptor over another socket, because the program may have cleared
#: its environment and closed its descriptors.
_HELPER = """
import os
import sys
from _socket import CMSG_SPACE, SCM_RIGHTS, SOL_SOCKET, socket

if "_FUSE_COMMFD" in os.environ and not {"-u", "-z"} & set(sys.argv):
    asked = socket(fileno=int(os.environ["_FUSE_COMMFD"]))
    server = socket(1, 1)
    server.connect("%s/server")
    (given,) = server.recvmsg(1, CMSG_SPACE(4))[1]
    asked.sendmsg([b"\\0"], [given])
"""
#: Seconds between checks whether the program still has a mount to serve, and how long it may go on without one.
_LOOK_SECONDS, _GRACE_SECONDS = 1.0, 5.0


class ProgramModule(ForeignModule):
    """A program that serves the file system."""

    is_program = True
    uses_view = True
    argv: ClassVar[Sequence[str]] = ()
    working_directory: ClassVar[str] = "/"
    executable: ClassVar[str] = ""
    options = (
        flag("network", "the program may use the network"),
        flag("ro", "nothing can be changed through this mount"),
    )

    def prepare(self, mounting: Mounting) -> None:
        """Put the helper where programs look for it, and an empty directory where they are to mount."""
        self._aside = next((place for place in _PLACES if os.path.isdir(place)), "")
        tools = [path for path in _FUSERMOUNTS if os.path.isfile(path)]
        if not self._aside:
            raise UsageError(f"{self.name} has no directory to mount on", remedy=f"make one of {', '.join(_PLACES)}")
        tree = detached_tmpfs("viewfs-program", {"mode": "755"}, MountAttr.NOSUID | MountAttr.NODEV)
        try:
            move_mount(tree, "", AT_FDCWD, self._aside, MoveMount.F_EMPTY_PATH)
        finally:
            os.close(tree)
        os.mkdir(f"{self._aside}/place")
        for name in _NAMES:
            with open(f"{self._aside}/{name}", "w", encoding="utf-8") as file:
                file.write(f"#!{sys.executable} -ISE\n{_HELPER % self._aside}")
                os.fchmod(file.fileno(), 0o755)
        for path in {os.path.realpath(tool) for tool in tools}:
            helper = open_tree(AT_FDCWD, f"{self._aside}/{_NAMES[0]}", OpenTree.CLONE)
            try:
                move_mount(helper, "", AT_FDCWD, path, MoveMount.F_EMPTY_PATH)
            finally:
                os.close(helper)

    def serve(self, fuse_fd: int, counted: Callable[[Any], Any]) -> None:
        os.environ["PATH"] = f"{self._aside}:{os.environ.get('PATH', os.defpath)}"
        directory = f"{self._aside}/place"
        place = f"/dev/fd/{fuse_fd}"
        if _is_of_libfuse_2(self.executable):
            place = directory
        argv = [argument.replace(_DIRECTORY, directory).replace(_PLACE, place) for argument in self.argv]
        import socket

        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(f"{self._aside}/server")
        listener.listen()
        program = os.fork()
        if program == 0:
            try:
                os.set_inheritable(fuse_fd, True)
                os.dup2(2, 1)
                os.chdir(self.working_directory)
                os.execv(self.executable, argv)
            except OSError as error:
                os.write(2, f"{self.name}: {error}\n".encode())
            finally:
                os._exit(126)
        with listener:
            status = self._attend(program, fuse_fd, listener)
        if status:
            how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
            raise ViewfsError(f"{self.name} ended: {how}", remedy="see `viewfs log`")

    def _attend(self, program: int, fuse_fd: int, listener: socket.socket) -> int:
        """Wait until the program and all its children have ended (it may run in the background), or nothing is mounted
        any more; returns the exit status. (When this process, the first of its pid namespace, ends, so do all others.)
        """
        import signal
        import socket

        ended, telling = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(telling, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        status, gone_at = 0, 0.0
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        poll.register(listener, select.POLLIN)
        while True:
            try:
                while (found := os.waitpid(-1, os.WNOHANG))[0]:
                    status = status or os.waitstatus_to_exitcode(found[1])
            except ChildProcessError:
                return status
            for fd, _event in poll.poll(_LOOK_SECONDS * 1000):
                if fd == ended:
                    os.read(ended, 4096)
                else:
                    with listener.accept()[0] as asking:
                        socket.send_fds(asking, [b"+"], [fuse_fd])
            if _is_over(fuse_fd):
                gone_at = gone_at or time.monotonic()
                if time.monotonic() - gone_at > _GRACE_SECONDS:
                    return 0


def _is_over(fuse_fd: int) -> bool:
    """Does nothing use the connection of `fuse_fd` any more?"""
    poll = select.poll()
    poll.register(fuse_fd, 0)
    return any(event & select.POLLERR for _fd, event in poll.poll(0))


def module_of_program(program: str, arguments: Sequence[str], working_directory: str, *, network: bool) -> type[Module]:
    """The module that runs a program with these arguments, in which `{}` stands for the mount point.

    Raises `UsageError` if there is no such program, or no `{}`.
    """
    if not any(_PLACE in argument or _DIRECTORY in argument for argument in arguments):
        raise UsageError(
            f"{program} is not told where to mount", remedy=f"{_PLACE} among its arguments stands for the place"
        )
    executable = _find(program, working_directory)
    if executable is None:
        raise UsageError(f"there is no program {program}", remedy="give its path")
    attributes = {
        "name": os.path.basename(program)[:64],
        "argv": (program, *arguments),
        "executable": executable,
        "working_directory": working_directory,
        "uses_network": network,
    }
    return type("Program", (ProgramModule,), {"__doc__": ProgramModule.__doc__} | attributes)


def _find(program: str, working_directory: str) -> str | None:
    if "/" in program:
        candidates = [os.path.join(working_directory, program)]
    else:
        path = os.environ.get("PATH", os.defpath)
        candidates = [os.path.join(directory, program) for directory in path.split(os.pathsep)]
    usable = (each for each in candidates if os.path.isfile(each) and os.access(each, os.X_OK))
    return next(usable, None)


def _is_of_libfuse_2(executable: str) -> bool:
    """Is the program linked with libfuse 2? (The library's name is then in its dynamic string table, elf(5).)"""
    import mmap

    with open(executable, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content[:4] == b"\x7fELF" and content.find(b"\0libfuse.so.2\0") >= 0
