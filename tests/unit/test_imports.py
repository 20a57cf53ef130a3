"""Who imports whom: the packages of viewfs depend on each other in one direction, and on each library in one place."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import viewfs

ROOT = Path(viewfs.__file__).parent
FILES = {
    ".".join(("viewfs", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}

#: What readers of formats have in common.
READERS_MAY_IMPORT = {
    "viewfs.modules.api", "viewfs.modules.framework.cache", "viewfs.modules.framework.damage",
    "viewfs.modules.framework.image", "viewfs.modules.framework.owners", "viewfs.modules.framework.sources",
    "viewfs.errors",
}  # fmt: skip

#: Package (or module) → what of viewfs it may import, besides itself. cli → session → mounts → modules.api; session →
#: namespaces; everything → linux → errors. The longest name that fits a module is the one that counts.
MAY_IMPORT = {
    "viewfs": {"viewfs.linux"},
    "viewfs.__main__": {"viewfs.cli"},
    "viewfs.cli.quick.start": {"viewfs.cli"},
    "viewfs.cli": {
        "viewfs", "viewfs.python", "viewfs.session", "viewfs.cow", "viewfs.doctor", "viewfs.modules", "viewfs.linux",
        "viewfs.errors",
    },
    "viewfs.doctor": {"viewfs.mounts", "viewfs.modules", "viewfs.namespaces", "viewfs.linux", "viewfs.errors"},
    "viewfs.session": {
        "viewfs", "viewfs.python", "viewfs.mounts", "viewfs.modules", "viewfs.namespaces", "viewfs.cow",
        "viewfs.epochs",
        "viewfs.linux", "viewfs.paths", "viewfs.errors",
    },
    "viewfs.cow": {
        "viewfs.mounts.overlay", "viewfs.modules.api", "viewfs.linux", "viewfs.paths", "viewfs.errors",
    },
    "viewfs.mounts": {
        "viewfs.modules.api", "viewfs.modules.framework.damage", "viewfs.linux", "viewfs.paths", "viewfs.errors",
    },
    "viewfs.modules": {"viewfs", "viewfs.linux", "viewfs.errors"},
    "viewfs.namespaces": {"viewfs.linux", "viewfs.errors"},
    "viewfs.linux": {"viewfs.errors"},
    "viewfs.errors": set(),
    "viewfs.python": set(),
    "viewfs.paths": set(),
    # Pure: no kernel, no process, nothing to wait for.
    "viewfs.epochs": {"viewfs.paths"},
    "viewfs.session.wire.protocol": {"viewfs.session.wire.plain_json", "viewfs.errors"},
    "viewfs.session.wire.plain_json": set(),
    "viewfs.mounts.fuse.protocol": {"viewfs.modules.api"},
    "viewfs.mounts.fuse.dirents": {"viewfs.modules.api", "viewfs.mounts.fuse.protocol"},
    # What an author implements knows nothing of how it is served; a reader of a format nothing of anything.
    "viewfs.modules.api": {"viewfs.errors"},
    "viewfs.modules.api.calls": {"viewfs.modules.api", "viewfs.linux", "viewfs.errors"},
    "viewfs.modules.api.kept": set(),
    "viewfs.modules.api.options": {"viewfs.errors"},
    "viewfs.modules.api.lasting": {"viewfs.modules.api", "viewfs.errors"},
    "viewfs.modules.api.nodes": {"viewfs.modules.api", "viewfs.errors"},
    "viewfs.modules.api.device": {"viewfs.modules.api", "viewfs.linux", "viewfs.errors"},
    "viewfs.modules.framework.image": {"viewfs.modules.api"},
    "viewfs.modules.api.ioctls": set(),
    "viewfs.modules.trees.overlay": {
        "viewfs.modules.api", "viewfs.modules.framework.kernel", "viewfs.mounts.overlay", "viewfs.errors",
    },
    # It serves what it watches itself, in the view.
    "viewfs.modules.calls.fanotify": {
        "viewfs.modules.api", "viewfs.mounts", "viewfs.linux", "viewfs.paths", "viewfs.errors",
    },
    "viewfs.modules.formats.ext": READERS_MAY_IMPORT,
    "viewfs.modules.formats.fat": READERS_MAY_IMPORT,
    "viewfs.modules.formats.squashfs": READERS_MAY_IMPORT,
}  # fmt: skip

#: Library → where it may be imported.
LIBRARIES = {
    "click": {"viewfs.cli"},
    "rich": {"viewfs.cli"},
    "trio": {"viewfs.session", "viewfs.mounts.fuse", "viewfs.modules"},
    "pyfuse3": {"viewfs.modules.framework.foreign"},
    "crc32c": {"viewfs.modules.formats.ext"},
    "cryptography": {"viewfs.modules.devices"},
    "pytsk3": {"viewfs.modules.devices.partitions"},
    **{key: {"viewfs.modules.formats.squashfs.codecs"} for key in ("deflate", "lz4", "lzallright", "backports")},
}

#: All that a pure module may import of the standard library. (os: device numbers and strerror.)
PURE = {
    "viewfs.epochs": {"bisect", "collections", "dataclasses", "typing"},
    "viewfs.session.wire.protocol": {"collections", "struct", "typing"},
    "viewfs.session.wire.plain_json": {"_json", "collections", "json", "typing"},
    "viewfs.mounts.fuse.protocol": {"collections", "enum", "errno", "os", "struct", "typing"},
    "viewfs.mounts.fuse.dirents": {"collections", "functools", "struct"},
    "viewfs.modules.api.ioctls": {"collections", "ctypes", "typing"},
}


@cache
def imports(module: str) -> frozenset[tuple[str, int]]:
    """Every module that `module` imports anywhere in it, in functions and for type checking too, with the line."""

    def found() -> Iterator[tuple[str, int]]:
        for node in ast.walk(ast.parse(FILES[module].read_text())):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield alias.name, node.lineno
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{module}:{node.lineno}: imports are absolute"
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    yield whole if whole in FILES else str(node.module), node.lineno
            elif isinstance(node, ast.Call) and getattr(node.func, "attr", None) == "import_module":
                (argument,) = node.args
                assert not isinstance(argument, ast.Constant), f"{module}:{node.lineno}: import it in the ordinary way"

    return frozenset(found())


def lies_in(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def rule_for(module: str) -> str:
    return max((name for name in MAY_IMPORT if lies_in(module, name)), key=len)


def test_all_of_viewfs_is_looked_at() -> None:
    assert len(FILES) > 60
    assert {"viewfs", "viewfs.epochs", "viewfs.linux.libc", "viewfs.mounts.fuse.host"} <= set(FILES)
    assert not [name for name in MAY_IMPORT if name not in FILES]
    directories = {".".join(("viewfs", *path.relative_to(ROOT).parts[:-1])) for path in FILES.values()}
    assert directories <= set(FILES), "a package without __init__.py is not in the wheel"


def test_packages_depend_on_each_other_in_one_direction() -> None:
    wrong = []
    for module in FILES:
        rule = rule_for(module)
        own = rule if (ROOT.parent / rule.replace(".", "/")).is_dir() and rule != "viewfs" else module
        for imported, line in sorted(imports(module)):
            if not lies_in(imported, "viewfs") or lies_in(imported, own):
                continue
            # "viewfs" alone is the version, not all of the packages in it.
            if not any(imported == name or (name != "viewfs" and lies_in(imported, name)) for name in MAY_IMPORT[rule]):
                wrong.append(f"{module}:{line} imports {imported}, which {rule} may not")
    assert not wrong, "\n".join(wrong)


#: Room of the session → the rooms that it may import, besides what lies in none ("": which itself imports these).
ROOMS = {
    "front": {"agent", "supervisor", "wire", ""},
    "supervisor": {"agent", "wire", ""},
    "agent": {"wire", ""},
    "wire": set(),
    "": {"wire", "agent"},
}


def room_of(module: str) -> str | None:
    """Of the session; "" if it lies in none of its rooms."""
    if not lies_in(module, "viewfs.session"):
        return None
    first = module.split(".")[2:3]
    return first[0] if first and first[0] in ROOMS else ""


def test_rooms_of_the_session_depend_on_each_other_in_one_direction() -> None:
    wrong = []
    for module in FILES:
        here = room_of(module)
        for imported, line in sorted(imports(module)):
            there = room_of(imported)
            if here is not None and there is not None and there != here and there not in ROOMS[here]:
                wrong.append(f"{module}:{line} imports {imported}")
    assert not wrong, "\n".join(wrong)


def test_nothing_imports_itself_by_way_of_others() -> None:
    left = {module: {name for name, _line in imports(module) if name in FILES and name != module} for module in FILES}
    while ends := [module for module, names in left.items() if not names]:
        for module in ends:
            del left[module]
        for names in left.values():
            names.difference_update(ends)
    # What is left imports each other, or what does.
    imported_by_others = set().union(*left.values())
    assert not left, f"in circles: {sorted(set(left) & imported_by_others)}"


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_is_imported_in_one_place(library: str) -> None:
    wrong = [
        f"{module}:{line}"
        for module in FILES
        for imported, line in sorted(imports(module))
        if lies_in(imported, library) and not any(lies_in(module, place) for place in LIBRARIES[library])
    ]
    assert not wrong, f"{library} is imported by {', '.join(wrong)}"


def test_no_other_library_is_imported() -> None:
    # "compression" is the standard library's, from Python 3.14 on.
    known = {*LIBRARIES, "viewfs", "compression", *sys.stdlib_module_names}
    others = {f"{imported} ({module}:{line})" for module in FILES for imported, line in imports(module)
              if imported.partition(".")[0] not in known}  # fmt: skip
    assert not others, "not in LIBRARIES above, nor perhaps in setup.cfg"


@pytest.mark.parametrize("module", PURE)
def test_what_is_pure_stays_pure(module: str) -> None:
    standard = {imported.partition(".")[0] for imported, _line in imports(module)} - {"viewfs", "__future__"}
    assert standard <= PURE[module]


#: What the quick ways do without: each takes longer to import than the view takes to be made.
SLOW = {
    "site", "enum", "typing", "re", "dataclasses", "contextlib", "functools", "collections", "ctypes", "json", "socket",
    "signal", "subprocess", "argparse", "importlib", "pathlib", "warnings", "traceback", "click", "rich", "trio",
}  # fmt: skip


@pytest.mark.parametrize(
    ("line", "at_most"),
    [("--version", 20), ("ps", 45), ("mount /nothing /there --session none", 50), ("run -- true", 80)],
)
def test_the_quick_ways_import_little(line: str, at_most: int, tmp_path: Path) -> None:
    start = [sys.executable, "-ISE", "-X", "importtime", ROOT / "cli/quick/start.py", *line.split()]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    said = subprocess.run(start, env=environment, capture_output=True, text=True, check=False).stderr
    lines = [line.rpartition("|")[2].strip() for line in said.splitlines() if line.startswith("import time:")]
    assert "viewfs.cli.quick.door" in lines
    assert not {name for name in lines if name.partition(".")[0] in SLOW and name != "zipimport"}
    assert len({name for name in lines if lies_in(name, "viewfs")}) <= at_most


#: What a few mounts do without, besides.
SLOW_TO_MOUNT = {
    "site", "trio", "asyncio", "socket", "subprocess", "uuid", "json", "click", "rich", "argparse", "pathlib",
}  # fmt: skip


@pytest.mark.parametrize(
    "imports",
    [
        "viewfs.session.supervisor.standby, viewfs.session.supervisor.first_mounts",
        "viewfs.session.agent.agent; viewfs.session.agent.agent.warm_for_few({'ext', 'squashfs'})",
    ],
)
def test_a_few_mounts_import_little(imports: str) -> None:
    code = (
        f"import sys; sys.path.append({str(ROOT.parent)!r}); import {imports}; "
        "print(*(name for name, loaded in sys.modules.items() if loaded))"
    )
    done = subprocess.run([sys.executable, "-ISEc", code], capture_output=True, text=True, check=True)
    names = done.stdout.split()
    assert not SLOW_TO_MOUNT & {name.partition(".")[0] for name in names}
    assert ("viewfs.modules.formats.ext.volume" in names) == ("warm_for_few" in imports)


def test_where_this_program_lies() -> None:
    """Nowhere else: what is mounted in other places needs no preparation."""
    code = (
        f"import sys, os, mmap; sys.path[:0] = ['/', {str(ROOT.parent)!r}]; from viewfs.python import own_places; "
        "file = os.memfd_create('x'); os.ftruncate(file, 4096); mapped = mmap.mmap(file, 4096), mmap.mmap(-1, 4096); "
        "print(*own_places(), sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-ISEc", code], capture_output=True, text=True, check=True)
    places = set(done.stdout.split("\n"))
    assert {str(ROOT), os.path.dirname(os.__file__), "/proc"} <= places
    assert not places & {"/", "/dev", "/home", "/usr", "/usr/lib", "/tmp"}


def test_the_quick_ways_are_those_of_every_command() -> None:
    """What is imported at the top of a module of the quick way is such a module, or of the standard library's C."""
    seen, open_ends = set(), ["viewfs.cli.quick.door", "viewfs.cli.quick.opening", "viewfs.cli.quick.view",
                              "viewfs.session.front.front", "viewfs.session.agent.agent"]  # fmt: skip
    while open_ends:
        module = open_ends.pop()
        if module in seen:
            continue
        seen.add(module)
        for node in ast.parse(FILES[module].read_text()).body:
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                continue
            assert not {name.partition(".")[0] for name in names} & SLOW, f"{module}:{node.lineno}"
            open_ends += [name for name in names if name in FILES]
