"""The command behind `make bench`; tools/bench prepares what it needs and says where things are."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.dataset import FULL, QUICK
from benchmarks.images import IMAGES, prepare
from benchmarks.measurements import MEASUREMENTS, MOUNTING
from benchmarks.plot import write_plot
from benchmarks.report import write_page
from benchmarks.results import Results
from benchmarks.run import Plan, run
from benchmarks.stage import Stage

_REPETITIONS = 5


@dataclass(frozen=True)
class _Output:
    """Where the figures go."""

    results: Path
    page: Path
    plot: Path

    @classmethod
    def of_repository(cls, top: Path) -> _Output:
        return cls(top / "benchmarks/results.json", top / "docs/benchmarks.md", top / "docs/benchmarks.svg")

    @classmethod
    def of_directory(cls, top: Path) -> _Output:
        return cls(top / "results.json", top / "benchmarks.md", top / "benchmarks.svg")


def _arguments() -> argparse.Namespace:
    images = [image.name for image in IMAGES]
    names = [*MOUNTING, *MEASUREMENTS]
    parser = argparse.ArgumentParser(prog="tools/bench", description="Measure viewfs beside others on the same images.")
    option = parser.add_argument
    option("--repetitions", type=int, metavar="N", help=f"default: {_REPETITIONS}")
    option("--only", action="append", choices=images, help="this image only; repeatable")
    option("--measure", action="append", choices=names, metavar="NAME", help=f"only, repeatable: {', '.join(names)}")
    option("--quick", action="store_true", help="little data, once: does the harness work?")
    option("--report-only", action="store_true", help="page and picture from the results that are there")
    option("--timeout", type=float, default=60, metavar="SECONDS", help="of each measurement; default: 60")
    option("--slow", type=float, default=10, metavar="SECONDS", help="who takes longer is asked once; default: 10")
    option(
        "--output",
        type=Path,
        metavar="DIRECTORY",
        help="for the figures; default: the repository, for a partial run the benchmark's own directory",
    )
    option("--base", type=Path, required=True, help=argparse.SUPPRESS)
    option("--repository", type=Path, required=True, help=argparse.SUPPRESS)
    option("--account", default=None, help=argparse.SUPPRESS)
    return parser.parse_args()


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def _measure(arguments: argparse.Namespace) -> Results:
    recipe = QUICK if arguments.quick else FULL
    data = prepare(arguments.base, recipe, _say)
    plan = Plan(
        images=tuple(image for image in IMAGES if image.name in (arguments.only or [image.name])),
        measurements=arguments.measure or [*MOUNTING, *MEASUREMENTS],
        repetitions=arguments.repetitions or (1 if arguments.quick else _REPETITIONS),
        timeout=arguments.timeout,
        slow=arguments.slow,
        recipe=recipe,
    )
    if not arguments.account:
        _say("the kernel's own mount is left out: it needs root")
    with Stage(arguments.base, data, arguments.account, arguments.timeout) as stage:
        return run(plan, stage, _say)


def main() -> None:
    arguments = _arguments()
    os.umask(0o022)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))  # which unmounts on the way
    partial = arguments.quick or arguments.only or arguments.measure
    output = _Output.of_repository(arguments.repository)
    if arguments.output or partial:
        output = _Output.of_directory(arguments.output or arguments.base / "partial")
    started = time.monotonic()
    if arguments.report_only:
        results = Results.load(output.results)
    else:
        results = _measure(arguments)
        results.save(output.results)
    write_plot(results, output.plot)
    write_page(results, output.page, output.plot.name)
    _say(f"{output.page} and {output.plot}, after {(time.monotonic() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
