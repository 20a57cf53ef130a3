"""Finding modules: by name among the built-in ones, the installed ones (entry points of the group `viewfs.modules`) and
the user's own, in this order; or by place: the path of a .py file, `file.py:Class`, or `package.module:Class`."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

from viewfs.errors import DamagedSourceError, NotFoundError, UsageError, ViewfsError, explain_os_error
from viewfs.linux.apart import done_apart
from viewfs.modules.api import Module, Option, Source
from viewfs.modules.framework.foreign import is_pyfuse3_class, module_of_operations
from viewfs.modules.framework.recognition import recognize, recognize_nondescript

__all__ = [
    "BUILT_IN",
    "Found",
    "Listed",
    "available",
    "find_module",
    "forget_code",
    "likely_taker",
    "look_at_installed",
    "probe",
    "source_takers",
]

ENTRY_POINT_GROUP = "viewfs.modules"
#: Names that a file of the user's own can have, without its suffix.
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")

#: Name → place of the class, which is imported when it is asked for.
BUILT_IN = {
    "bind": "viewfs.modules.trees.bind:Bind",
    "chardev": "viewfs.modules.calls.chardev:CharacterDevice",
    "clock": "viewfs.modules.devices.clock:Clock",
    "crypto": "viewfs.modules.devices.crypto.module:Crypto",
    "exfat": "viewfs.modules.formats.fat.module:Exfat",
    "fanotify": "viewfs.modules.calls.fanotify:Fanotify",
    "ext": "viewfs.modules.formats.ext.module:Ext",
    "full": "viewfs.modules.devices.constant:Full",
    "fuse": "viewfs.modules.trees.fuse:Fuse",
    "fusermount": "viewfs.modules.trees.fusermount:Fusermount",
    "hello": "viewfs.modules.trees.hello:Hello",
    "nosync": "viewfs.modules.calls.nosync:NoSync",
    "null": "viewfs.modules.devices.constant:Null",
    "overlay": "viewfs.modules.trees.overlay:Overlay",
    "partitions": "viewfs.modules.devices.partitions:Partitions",
    "pipe": "viewfs.modules.devices.pipe:Pipe",
    "ramdisk": "viewfs.modules.devices.ramdisk:Ramdisk",
    "random": "viewfs.modules.devices.random:Random",
    "squashfs": "viewfs.modules.formats.squashfs.module:Squashfs",
    "time": "viewfs.modules.calls.time:Time",
    "tmp": "viewfs.modules.trees.tmp:Temporary",
    "uname": "viewfs.modules.calls.uname:Uname",
    "unreal": "viewfs.modules.trees.unreal:Unreal",
    "useless": "viewfs.modules.devices.useless:Useless",
    "vfat": "viewfs.modules.formats.fat.module:Vfat",
    "zero": "viewfs.modules.devices.constant:Zero",
}
#: The built-in modules that recognize a source by its content. (To find them by importing all would take long.)
KNOW_CONTENT = ("ext", "squashfs", "exfat", "vfat")
#: The first of these, with an offset in bytes and what is there in any such file system.
_MAGIC = (("ext", 1080, b"\x53\xef"), ("squashfs", 0, b"hsqs"))


@dataclass(frozen=True)
class Found:
    """A module's class and where it came from: "built in", a distribution's name, or a path."""

    module: type[Module]
    origin: str

    @property
    def built_in(self) -> bool:
        return self.origin == "built in"


def find_module(name: str, places: Sequence[str] = ()) -> Found:
    """The module called `name`; or the one in the file `name`, if that ends in .py, or the class that `file.py:Class`
    or `package.module:Class` is.

    `places`: directories in which a file NAME.py is the module NAME. A class of pyfuse3 operations is a module too.
    Raises `NotFoundError`, or `UsageError` for a file or class that is no module.
    """
    if name in BUILT_IN:
        return Found(_load(BUILT_IN[name]), "built in")
    if name.endswith(".py"):
        return Found(_load_file(name), name)
    file, _, class_name = name.rpartition(":")
    if file.endswith(".py"):
        return Found(_load_file(file, class_name), file)
    if ":" in name:
        return Found(_load_class(name), name.partition(":")[0])
    for entry_point in _entry_points():
        if entry_point.name == name:
            try:
                loaded = entry_point.load()
            except (Exception, SystemExit) as error:
                raise ViewfsError(f"module {name} does not load: {type(error).__name__}: {error}") from error
            module = _as_module(loaded, name)
            if module is None:
                raise UsageError(f"entry point {name} is {entry_point.value}, which is not a viewfs module")
            return Found(module, entry_point.dist.name if entry_point.dist else "installed")
    if _FILE_NAME.fullmatch(name):
        for place in places:
            if os.path.isfile(path := os.path.join(place, f"{name}.py")):
                return Found(_load_file(path), path)
    raise NotFoundError(
        f"no module is called {name}", remedy="see `viewfs lsmod --available`, or give the path of a .py file"
    )


def forget_code(name: str) -> None:
    """Make `find_module` read the code of module `name` again, because it may have changed."""
    place = BUILT_IN.get(name) or next((one.value for one in _entry_points() if one.name == name), "")
    package = place.partition(":")[0].rpartition(".")[0]
    own = package if package.count(".") > 1 else place.partition(":")[0]  # not what all modules have in common
    for loaded in [loaded for loaded in sys.modules if own and (loaded == own or loaded.startswith(f"{own}."))]:
        del sys.modules[loaded]
    importlib.invalidate_caches()


@dataclass(frozen=True)
class Listed:
    """What `viewfs lsmod --available` shows of a module."""

    name: str
    summary: str
    origin: str
    place: str | None
    takes_source: bool
    #: Name, value, default (as JSON has it), help, and the default as it is shown.
    options: list[dict[str, Any]]

    @classmethod
    def of(cls, found: Found, name: str | None = None) -> Listed:
        """`name`: the name that the module is found by, if that is not its own."""
        module = found.module
        summary = (module.__doc__ or "").strip().partition("\n")[0]
        options = [
            {
                "name": one.name,
                "value": one.metavar,
                "default": _plain(one),
                "help": one.help,
                "shown": one.show(one.default),
            }
            for one in module.options
        ]
        return cls(name or module.name, summary, found.origin, module.mount_point, module.takes_source, options)


def _plain(option: Option[Any]) -> Any:
    """The default of an option, as a value that JSON has."""
    return option.default if isinstance(option.default, bool | int | float | str) else option.show(option.default)


def available(places: Sequence[str] = ()) -> Iterator[Listed]:
    """Every module that has a name: built-in ones first, then installed ones, then the files in `places`. Modules that
    don't load are left out. (Each file is loaded in a process of its own, because its code can do anything.)"""
    names = []
    for found in _all(BUILT_IN):
        names.append(found.module.name)
        yield Listed.of(found)
    for name in sorted(set(_names_in(places)) - set(names)):
        path = next(path for place in places if os.path.isfile(path := os.path.join(place, f"{name}.py")))
        described = _described_apart(path, name)
        if described is not None:
            yield described


#: Seconds and bytes that a file may take to be loaded and described.
_FILE_SECONDS, _FILE_BYTES = 5.0, 1 << 20


def _described_apart(path: str, name: str) -> Listed | None:
    import json

    def describe(_writing: int) -> bytes:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(null, stream)
        return json.dumps(asdict(Listed.of(Found(_load_file(path), path), name))).encode()

    try:
        return Listed(**json.loads(done_apart(describe, seconds=_FILE_SECONDS, most=_FILE_BYTES, group=True)))
    except (ValueError, TypeError):
        return None


def _all(built_in: Iterable[str]) -> Iterator[Found]:
    names = list(built_in)
    names += sorted({entry_point.name for entry_point in _entry_points()} - set(BUILT_IN))
    for name in names:
        try:
            yield find_module(name)
        except ViewfsError:
            continue


def _names_in(places: Sequence[str]) -> Iterator[str]:
    for place in places:
        try:
            files = os.listdir(place)
        except OSError:
            continue
        names = (name for name, suffix in map(os.path.splitext, files) if suffix == ".py")
        yield from (name for name in names if _FILE_NAME.fullmatch(name) and os.path.isfile(f"{place}/{name}.py"))


def likely_taker(source: Source) -> Found | None:
    """The built-in module whose magic number is in `source`. If it recognizes the content, no other comes before it,
    and none has to be imported."""
    try:
        name = next((name for name, offset, magic in _MAGIC if source.pread(len(magic), offset) == magic), None)
    except OSError:
        return None
    return None if name is None else find_module(name)


def source_takers() -> list[Found]:
    """The modules that may recognize a source by its content: the built-in ones, and installed ones that take one."""
    return [found for found in _all(KNOW_CONTENT) if found.module.takes_source]


def probe(source: Source, source_name: str, takers: list[Found]) -> Found:
    """The first of `takers` that recognizes `source` by its content.

    Raises `DamagedSourceError` if none does; the message says what the source is instead, if that is known.
    """
    for found in takers:
        if found.module.probe(source):
            return found
    try:
        known = recognize(source, source_name)
        if known is None:
            for found in takers:
                if found.module.probe_damaged(source):
                    return found
            known = recognize_nondescript(source)
    except OSError as error:
        raise explain_os_error(f"cannot read {source_name}", error) from error
    if known is not None:
        raise DamagedSourceError(f"{source_name} is {known.kind}, which viewfs does not mount", remedy=known.remedy)
    tried = ", ".join(found.module.name for found in takers)
    raise DamagedSourceError(
        f"cannot tell what {source_name} is",
        remedy=f"no module knows it by its content (tried: {tried}); -t TYPE names one",
    )


#: The installed entry points when they were last read, by the modification times of the directories in sys.path.
_installed: dict[tuple[tuple[str, int], ...], list[importlib.metadata.EntryPoint]] = {}


def _entry_points() -> list[importlib.metadata.EntryPoint]:
    """The entry points of installed packages. (They are cached: reading all of them takes longer than a mount.)"""
    looks = tuple((path, _changed_ns(path)) for path in sys.path)
    if looks not in _installed:
        import importlib.metadata

        _installed.clear()
        _installed[looks] = list(importlib.metadata.entry_points(group=ENTRY_POINT_GROUP))
    return _installed[looks]


def _changed_ns(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def look_at_installed() -> None:
    """Read the entry points now, so that processes forked from this one have them in memory."""
    _entry_points()


def _load(place: str) -> type[Module]:
    module_name, _, class_name = place.partition(":")
    loaded: type[Module] = getattr(importlib.import_module(module_name), class_name)
    return loaded


def _load_file(path: str, class_name: str | None = None) -> type[Module]:
    """The module in the file `path`: its only one, or the class of that name."""
    if not os.path.isfile(path):
        raise NotFoundError(f"no such module file: {path}")
    name = "viewfs_module_" + os.path.basename(path).removesuffix(".py")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python module")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded  # dataclasses and others look up the module of a class here
    try:
        spec.loader.exec_module(loaded)
    except (Exception, SystemExit) as error:
        sys.modules.pop(name, None)
        raise ViewfsError(f"module {path} does not load: {type(error).__name__}: {error}") from error
    if class_name is not None:
        return _module_called(class_name, loaded, f"{path}:{class_name}")
    own = [value for value in vars(loaded).values() if getattr(value, "__module__", None) == name]
    called = os.path.basename(path).removesuffix(".py")
    modules = {value for value in own if _is_module(value)} or {value for value in own if is_pyfuse3_class(value)}
    if len(modules) != 1:
        raise UsageError(
            f"{path} defines {len(modules)} modules",
            remedy=(
                f"say which: {path}:{min(value.__name__ for value in modules)}"
                if modules
                else "it must define a subclass of Module with a name, or of pyfuse3.Operations"
            ),
        )
    found = _as_module(modules.pop(), called)
    assert found is not None
    return found


def _load_class(name: str) -> type[Module]:
    """The class that `package.module:Class` names. Raises `NotFoundError`, `UsageError`, `ViewfsError`."""
    place, _, attribute = name.partition(":")
    try:
        loaded = importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is not None and (place == error.name or place.startswith(f"{error.name}.")):
            raise NotFoundError(f"there is no Python module {error.name}", remedy="is it installed?") from None
        raise ViewfsError(f"module {name} does not load: {error}") from error
    except (Exception, SystemExit) as error:
        raise ViewfsError(f"module {name} does not load: {type(error).__name__}: {error}") from error
    return _module_called(attribute, loaded, name)


def _module_called(attribute: str, loaded: ModuleType, name: str) -> type[Module]:
    found = _as_module(getattr(loaded, attribute, None), attribute)
    if found is None:
        raise UsageError(f"{name} is neither a viewfs module nor a class of pyfuse3 operations")
    return found


def _as_module(loaded: object, name: str) -> type[Module] | None:
    if _is_module(loaded):
        module: type[Module] = loaded  # type: ignore[assignment]
        return module
    return module_of_operations(loaded, name) if is_pyfuse3_class(loaded) else None  # type: ignore[arg-type]


def _is_module(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, Module) and isinstance(getattr(value, "name", None), str)
