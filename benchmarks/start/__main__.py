"""The command behind `make bench-start`: whole commands, interleaved, as ratios to the start of Python itself.

Each round runs every command once, and each time another goes first. What asks an open view is run inside of one, by
this same module (`--inside`). As root it runs itself as the account that is named; the root part only writes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.account import as_account, parser
from benchmarks.machine import describe_machine
from benchmarks.report import put_between_marks

#: Commands of one round of the harness's own repetitions.
ROUNDS = 8
#: Mounts of a view that is opened in one go.
MANY = 100
Found = dict[str, list[float]]


@dataclass(frozen=True)
class Row:
    """A command, and how many times Python's start it may take."""

    name: str
    command: list[str]
    aim: float | None = None
    whole: bool = False
    #: Afterwards, not measured.
    undo: tuple[str, ...] = ()
    #: Its first byte is read too, and measured.
    read: str | None = None


def outside(base: Path) -> list[Row]:
    images = {name: str(base / f"image.{name}") for name in ("squashfs", "ext4")}
    rows = [
        Row("python3 -c pass", [sys.executable, "-c", "pass"]),
        Row("unshare -Urm true", ["unshare", "-Urm", "true"]),
        Row("bwrap --dev-bind / / true", ["bwrap", "--dev-bind", "/", "/", "true"]),
        Row("viewfs --version", ["viewfs", "--version"], 1.5),
        Row("viewfs run -- true", ["viewfs", "run", "--", "true"], 2),
        Row("the same by the whole program", ["viewfs", "run", "--", "true"], whole=True),
    ]
    for kind, image in images.items():
        command = ["viewfs", "run", "--mount", f"{image}:/m", "--", "cat", "/m/file"]
        rows.append(Row(f"viewfs run --mount {kind}:/m -- cat /m/file", command, 6))
    squashfuse = f"squashfuse {images['squashfs']} {base}/m && cat {base}/m/file; fusermount3 -u {base}/m"
    rows.append(Row("squashfuse, cat, fusermount3 -u", ["sh", "-c", squashfuse]))
    return [row for row in rows if shutil.which(row.command[0]) and ("squashfuse" not in row.name or has_squashfuse())]


def has_squashfuse() -> bool:
    return shutil.which("squashfuse") is not None and shutil.which("fusermount3") is not None


def inside(base: Path) -> list[Row]:
    rows = [
        Row("viewfs ps", ["viewfs", "ps"], 2),
        Row("viewfs lsmod", ["viewfs", "lsmod"], 2),
        Row("viewfs epochs", ["viewfs", "epochs"], 2),
        Row("viewfs ps, by the whole program", ["viewfs", "ps"], whole=True),
    ]
    for kind in ("squashfs", "ext4"):
        rows.append(
            Row(
                f"viewfs mount {kind} /m, and its first byte",
                ["viewfs", "mount", str(base / f"image.{kind}"), "/m"],
                3.5,
                undo=("viewfs", "umount", "/m"),
                read="/m/file",
            )
        )
    return rows


def measure(rows: list[Row], rounds: int) -> Found:
    found: Found = {row.name: [] for row in rows}
    for number in range(rounds):
        first = number % len(rows)
        for row in rows[first:] + rows[:first]:
            environment = os.environ | ({"VIEWFS_WHOLE": "1"} if row.whole else {})
            begun = time.perf_counter()
            subprocess.run(row.command, check=True, stdout=subprocess.DEVNULL, env=environment)
            if row.read is not None:
                with open(row.read, "rb", buffering=0) as file:
                    assert file.read(1)
            found[row.name].append(time.perf_counter() - begun)
            if row.undo:
                subprocess.run(row.undo, check=True, stdout=subprocess.DEVNULL)
    return found


def measure_inside(base: Path, rounds: int) -> Found:
    """The rows of an open view, by this module in one."""
    command = [sys.executable, "-m", "benchmarks.start", "--inside", str(rounds), str(base)]
    done = subprocess.run(["viewfs", "run", "--", *command], check=True, stdout=subprocess.PIPE, text=True)
    found: Found = json.loads(done.stdout)
    return found


def measure_many(base: Path, rounds: int) -> list[float]:
    """Seconds for a view of `MANY` mounts that is opened in one go."""
    mounts = [option for n in range(MANY) for option in ("--mount", f"{base}/image.squashfs:/many/{n}")]
    return measure([Row("many", ["viewfs", "run", *mounts, "--", "true"])], rounds)["many"]


@contextmanager
def prepared() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="viewfs-bench-start-") as name:
        base = Path(name)
        (base / "tree").mkdir()
        (base / "m").mkdir()
        (base / "runtime").mkdir(mode=0o700)
        (base / "tree/file").write_text("content\n")
        for command in (
            ["mksquashfs", base / "tree", base / "image.squashfs", "-quiet", "-no-progress"],
            ["mke2fs", "-q", "-t", "ext4", "-d", base / "tree", base / "image.ext4", "8M"],
        ):
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        os.environ["XDG_RUNTIME_DIR"] = str(base / "runtime")
        yield base


def page_section(machine: dict[str, str], found: Found) -> str:
    bare = median(found["python3 -c pass"])
    aims = {row.name: row.aim for rows in (outside, inside) for row in rows(Path("/"))}
    lines = [
        ", ".join(f"{name}: {value}" for name, value in machine.items()) + f". {len(found['viewfs ps'])} rounds.",
        "",
    ]
    lines += ["| | ms | × Python's start | aim |", "| --- | ---: | ---: | ---: |"]
    for name, values in found.items():
        if name == "many":
            continue
        aim = aims.get(name)
        ratio = median(value / bare for value in values)
        shown = "" if aim is None else f"{aim:g}{'' if ratio <= aim else ' **missed**'}"
        lines.append(f"| `{name}` | {median(values) * 1e3:.1f} | {ratio:.2f} | {shown} |")
    many = median(found["many"])
    lines.append(f"| a view of {MANY} mounts, in one go | {many * 1e3:.0f} | {many / bare:.0f} | 3 s |")
    return "\n".join(lines)


def main() -> None:
    if sys.argv[1:2] == ["--inside"]:
        print(json.dumps(measure(inside(Path(sys.argv[3])), int(sys.argv[2]))))
        return
    arguments = parser("tools/bench --start").parse_args()
    found = as_account("benchmarks.start", arguments)
    if found is None:
        rounds = arguments.repetitions * ROUNDS
        with prepared() as base:
            found = measure(outside(base), rounds) | measure_inside(base, rounds)
            found["many"] = measure_many(base, arguments.repetitions)
    if arguments.figures_only:
        print(json.dumps(found))
        return
    page: Path = arguments.repository / "docs/start.md"
    page.write_text(
        put_between_marks(page.read_text(encoding="utf-8"), page_section(describe_machine(), found)), "utf-8"
    )


if __name__ == "__main__":
    main()
