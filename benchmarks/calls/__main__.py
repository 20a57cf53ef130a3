"""The command behind `make bench-calls`: calls and whole programs in views and under a tracer, interleaved, as ratios
to a view without notified calls.

A call is measured by a program of C, and the figure is the 10th percentile: others use the processors too. As root it
runs itself as the account that is named; the root part only writes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from benchmarks.account import as_account, parser
from benchmarks.machine import describe_machine
from benchmarks.report import put_between_marks

HERE = Path(__file__).parent
MODULE = """
from viewfs.modules.api.calls import CallModule, call


class Probe(CallModule):
    name = "probe"

    @call(5000, "text out@2 size")
    def answer(self, caller, who, answer, size):
        answer += b"hello"
        return 5
"""
#: Runs a command a few times, and prints how many seconds the quickest took.
TIMED = """
import subprocess, sys, time
times = []
for _time in range(5):
    begun = time.perf_counter()
    subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
    times.append(time.perf_counter() - begun)
print(min(times))
"""
#: Calls that nobody is asked about, and how many of them make a figure.
UNTOUCHED, UNTOUCHED_COUNT = ("getppid", "read", "stat", "open"), 200_000
ASKED_COUNT = 4000
#: How → what runs a command so.
WAYS = {
    "no filter (`--no-calls`)": ["viewfs", "run", "--no-calls", "--"],
    "a view": ["viewfs", "run", "--"],
    "`--calls=all`": ["viewfs", "run", "--calls=all", "--"],
    "PRoot, which traces every call": ["proot"],
}
BASE = next(iter(WAYS))
AIMS = {"read": 1.10, "stat": 1.10, "open": 1.10, "find": 1.03, "gcc": 1.03}
Found = dict[str, dict[str, list[float]]]


@contextmanager
def prepared() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="viewfs-bench-calls-") as name:
        base = Path(name)
        (base / "runtime").mkdir(mode=0o700)
        (base / "probe.py").write_text(MODULE)
        function = "int f%d(int x) { for (int i = 0; i < x; i++) x ^= i * %d; return x; }\n"
        (base / "program.c").write_text("".join(function % (n, n) for n in range(400)))
        subprocess.run(["gcc", "-O1", "-o", base / "calls", HERE / "calls.c"], check=True)
        os.environ["XDG_RUNTIME_DIR"] = str(base / "runtime")
        os.environ["PROOT_NO_SECCOMP"] = "1"
        yield base


def numbers(command: list[str]) -> list[float]:
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return [float(word) for word in done.stdout.split()]


def measure(base: Path, rounds: int) -> Found:
    ways = {name: command for name, command in WAYS.items() if shutil.which(command[0])}
    found: Found = {name: {} for name in ways}
    programs = {
        "find": ["find", "/usr/share/doc", "/usr/include", "/usr/lib/python3", "-name", "x*", "-size", "+1k"],
        "gcc": ["gcc", "-O1", "-c", str(base / "program.c"), "-o", str(base / "program.o")],
    }

    def note(way: str, what: str, value: float) -> None:
        found[way].setdefault(what, []).append(value)

    for number in range(rounds):
        order = list(ways)[number % len(ways) :] + list(ways)[: number % len(ways)]
        for way in order:
            count = UNTOUCHED_COUNT if way in list(WAYS)[:2] else ASKED_COUNT
            values = numbers([*ways[way], str(base / "calls"), str(count), *UNTOUCHED])
            for name, value in zip(UNTOUCHED, values, strict=True):
                note(way, name, value)
            note(way, "uname", numbers([*ways[way], str(base / "calls"), str(ASKED_COUNT), "uname"])[0])
            for name, program in programs.items():
                note(way, name, numbers([*ways[way], "python3", "-c", TIMED, *program])[0])
            for _time in range(5):
                begun = time.perf_counter()
                subprocess.run([*ways[way], "true"], check=True)
                note(way, "start", time.perf_counter() - begun)
        loaded = ["viewfs", "run", "--load", str(base / "probe.py"), "--"]
        note("a view", "module", numbers([*loaded, str(base / "calls"), str(ASKED_COUNT), "5000"])[0])
    return found


def _ratio(found: Found, way: str, what: str) -> float:
    """To what it is without a filter: the median of those of each round."""
    return median(one / base for one, base in zip(found[way][what], found[BASE][what], strict=True))


def page_section(machine: dict[str, str], found: Found) -> str:
    rounds = len(found[BASE]["find"])
    lines = [", ".join(f"{name}: {value}" for name, value in machine.items()) + f". {rounds} rounds.", ""]
    lines += ["| | " + " | ".join(found) + " | aim of a view |", "| --- |" + " ---: |" * (len(found) + 1)]
    for what in (*UNTOUCHED, "find", "gcc"):
        ratios = {way: _ratio(found, way, what) for way in found}
        own = median(found[BASE][what])
        cells = [f"{own:.0f} ns" if what in UNTOUCHED else f"{own * 1e3:.0f} ms"]
        cells += [f"{ratio:.2f}" for way, ratio in ratios.items() if way != BASE]
        aim = AIMS.get(what)
        shown = "" if aim is None else f"{aim:.2f}{'' if ratios['a view'] <= aim else ' **missed**'}"
        lines.append(f"| `{what}` | {' | '.join(cells)} | {shown} |")
    for title, what, unit, digits, aim in (
        ("`uname`, which is asked about, µs", "uname", 1e-3, 1, "15"),
        ("from start to end of `true`, ms", "start", 1e3, 1, "+5"),
    ):
        cells = [f"{median(values[what]) * unit:.{digits}f}" for values in found.values()]
        lines.append(f"| {title} | {' | '.join(cells)} | {aim} |")
    answered = median(found["a view"]["module"]) / 1e3
    lines.append(f"| a call that a module answers, µs | | {answered:.0f} |{' |' * (len(found) - 1)}")
    return "\n".join(lines)


def main() -> None:
    arguments = parser("tools/bench --calls").parse_args()
    found = as_account("benchmarks.calls", arguments)
    if found is None:
        with prepared() as base:
            found = measure(base, arguments.repetitions)
    if arguments.figures_only:
        print(json.dumps(found))
        return
    page: Path = arguments.repository / "docs/calls.md"
    page.write_text(
        put_between_marks(page.read_text(encoding="utf-8"), page_section(describe_machine(), found)), "utf-8"
    )


if __name__ == "__main__":
    main()
