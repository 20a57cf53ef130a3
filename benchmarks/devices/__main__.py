"""The command behind `make bench-devices`: measures, interleaved, and writes a table into docs/devices.md.

As root it runs itself as the account that is named, for a device is an ordinary user's; the root part only writes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from benchmarks.account import as_account, parser
from benchmarks.devices import in_process
from benchmarks.machine import describe_machine
from benchmarks.report import put_between_marks

HERE = Path(__file__).parent
#: What → calls in one measurement, bytes of each.
SIZES = (1, 4 << 10, 128 << 10)
ROWS = [
    *(
        (f"{what} {size}", what, 20_000 if size < 100_000 else 5000, size)
        for what in ("read", "write")
        for size in SIZES
    ),
    ("ioctl", "ioctl", 20_000, 0),
    ("crypt 4096", "crypt", 10_000, 4 << 10),
    ("crypt 65536", "crypt", 3000, 64 << 10),
    ("poll", "poll", 500, 1),
]
TITLES = {
    "ioctl": "ioctl, empty", "crypt 4096": "CIOCCRYPT of 4 KiB", "crypt 65536": "CIOCCRYPT of 64 KiB",
    "poll": "waking up from poll(2)",
    **{f"{what} {size}": f"{what} of {text}" for what in ("read", "write")
       for size, text in zip(SIZES, ("1 B", "4 KiB", "128 KiB"), strict=True)},
}  # fmt: skip
#: Row, contender, at most (viewfs / contender), or at least for a rate.
AIMS = [
    ("read 1", "pyfuse3", 1.5), ("write 1", "pyfuse3", 1.5), ("read 4096", "pyfuse3", 1.5),
    ("write 4096", "pyfuse3", 1.5), ("read 131072", "pyfuse3", 1 / 0.6), ("crypt 65536", "in process", 1 / 0.5),
]  # fmt: skip
Measure = Callable[[str, int, int], float | None]


def _timed(program: Path, what: str, count: int, size: int, path: str | Path) -> float:
    command = [program, what, str(count), str(size), path]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


@contextmanager
def _viewfs(program: Path, directory: Path) -> Iterator[Measure]:
    """A view with the devices, and a shell in it that runs what it is told."""
    load = ["--load", f"{HERE / 'probe.py'}:/dev/probe", "--load", "crypto"]
    shell = subprocess.Popen(
        ["viewfs", "run", *load, "--", "sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert shell.stdin is not None and shell.stdout is not None

    def measure(what: str, count: int, size: int) -> float:
        device = {"crypt": "/dev/crypto", "poll": "/dev/probe-signal"}.get(what, "/dev/probe")
        print(program, what, count, size, device, file=shell.stdin, flush=True)
        return float(shell.stdout.readline())

    yield measure
    shell.communicate()


@contextmanager
def _pyfuse3(program: Path, directory: Path) -> Iterator[Measure]:
    place = directory / "pyfuse3"
    place.mkdir()
    server = subprocess.Popen([sys.executable, HERE / "pyfuse3_file.py", place], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None and server.stdout.readline() == "mounted\n"

    def measure(what: str, count: int, size: int) -> float | None:
        return _timed(program, what, count, size, place / "zero") if what in ("read", "write") else None

    yield measure
    subprocess.run(["fusermount3", "-u", place], check=True)
    server.wait()


@contextmanager
def _pipe(program: Path, directory: Path) -> Iterator[Measure]:
    def measure(what: str, count: int, size: int) -> float | None:
        if what not in ("read", "write"):
            return None
        asked, answered = os.pipe(), os.pipe()
        server = subprocess.Popen([sys.executable, HERE / "echo_process.py"], stdin=asked[0], stdout=answered[1])
        os.close(asked[0])
        os.close(answered[1])
        command = f'exec "$0" pipe-{what} {count} {size} - 3<&{answered[0]} 4>&{asked[1]}'
        done = subprocess.run(
            ["sh", "-c", command, program],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=(answered[0], asked[1]),
        )
        os.close(asked[1])
        os.close(answered[0])
        server.wait()
        return float(done.stdout)

    yield measure


@contextmanager
def _kernel(program: Path, directory: Path) -> Iterator[Measure]:
    fifo = directory / "fifo"
    os.mkfifo(fifo)
    holder = os.open(fifo, os.O_RDWR)

    def measure(what: str, count: int, size: int) -> float | None:
        if what == "poll":
            return _timed(program, what, count, size, fifo)
        return _timed(program, what, count * 10, size, "/dev/zero") if what in ("read", "write") else None

    yield measure
    os.close(holder)


@contextmanager
def _in_process(program: Path, directory: Path) -> Iterator[Measure]:
    def measure(what: str, count: int, size: int) -> float | None:
        return in_process.crypt_ns(count, size) if what == "crypt" else None

    yield measure


CONTENDERS = {
    "viewfs": _viewfs, "pyfuse3": _pyfuse3, "pipe": _pipe, "kernel": _kernel, "in process": _in_process,
}  # fmt: skip


def measure_all(repetitions: int) -> dict[str, dict[str, list[float]]]:
    """Row → contender → nanoseconds a call, one for each repetition."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name, *_rest in ROWS}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        directory = Path(name)
        program = directory / "timed"
        subprocess.run(["gcc", "-O2", "-o", program, HERE / "timed.c"], check=True)
        measures = {name: stack.enter_context(open_one(program, directory)) for name, open_one in CONTENDERS.items()}
        for repetition in range(repetitions):
            for row, what, count, size in ROWS:
                names = list(measures)
                for contender in names[repetition % len(names) :] + names[: repetition % len(names)]:
                    value = measures[contender](what, count, size)
                    if value is not None:
                        found[row].setdefault(contender, []).append(value)
                        print(f"bench: {row}, {contender}: {value / 1000:.2f} µs", file=sys.stderr)
    return found


def section(found: dict[str, dict[str, list[float]]], machine: dict[str, str], repetitions: int) -> str:
    """The figures as Markdown."""
    names = list(CONTENDERS)
    lines = [
        f"Microseconds a call: the median of {repetitions} (least–most), interleaved; below it **viewfs / it**. "
        f"{machine['Kernel']}, {machine['Processor']}, {machine['viewfs']}, {machine['Date']}.",
        "",
        "| µs | " + " | ".join(names) + " |",
        "| --- | " + " | ".join("---:" for _ in names) + " |",
    ]
    for row, values in found.items():
        cells = [TITLES[row]]
        for name in names:
            if name not in values:
                cells.append("")
                continue
            each = [value / 1000 for value in values[name]]
            cell = f"{median(each):.2f} ({min(each):.2f}–{max(each):.2f})"
            if name != "viewfs":
                cell += f"<br>**{median(values['viewfs']) / median(values[name]):.2f}**"
            cells.append(cell)
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| aim | at most | found |", "| --- | --- | --- |"]
    for row, other, most in AIMS:
        ratio = median(found[row]["viewfs"]) / median(found[row][other])
        lines.append(
            f"| {TITLES[row]}, time to {other} | {most:.2f} | {ratio:.2f}{'' if ratio <= most else ', **missed**'} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, or have the account measure; write."""
    arguments = parser("tools/bench --devices").parse_args()
    found = as_account("benchmarks.devices", arguments) or measure_all(arguments.repetitions)
    if arguments.figures_only:
        json.dump(found, sys.stdout)
        return
    page = arguments.repository / "docs/devices.md"
    text = put_between_marks(page.read_text(), section(found, describe_machine(), arguments.repetitions))
    page.write_text(text)


if __name__ == "__main__":
    main()
