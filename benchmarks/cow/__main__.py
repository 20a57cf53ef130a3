"""The command behind `make bench-cow`: measures, interleaved, and writes a table into docs/cow.md.

As root it runs itself as the account that is named, for a view is an ordinary user's; the root part only writes.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks.account import as_account, parser
from benchmarks.cow.work import WORK
from benchmarks.machine import describe_machine
from benchmarks.report import put_between_marks

HERE = Path(__file__).parent
#: Files that `make` compiles, and the files of a tree that is only opened and compared.
SOURCES, CROWD = 20, 100_000
#: What → contender, at most (viewfs / contender).
AIMS = {"build": 1.05, "git clone": 1.15}
#: Milliseconds that opening a view may take longer where a tree of `CROWD` files is copy-on-write in it.
OPEN_AIM = 50.0
Found = dict[str, dict[str, list[float]]]


def _work(name: str, directory: Path | str) -> list[str]:
    return [sys.executable, str(HERE / "work.py"), name, str(directory)]


def _seconds(command: list[str]) -> float:
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.splitlines()[-1])


def direct(name: str, tree: Path, _aside: Path) -> float:
    """The work done in a copy of the tree."""
    return _seconds(_work(name, tree))


def viewfs(name: str, tree: Path, _aside: Path) -> float:
    """The same in a copy-on-write view."""
    # Kept until the end, so that its layer is too.
    return _seconds(["viewfs", "run", "--keep", "--cow", str(tree), "--", *_work(name, tree)])


def viewfs_in_memory(name: str, tree: Path, _aside: Path) -> float:
    """The same with the layer on a tmpfs."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as state:
        os.environ["XDG_STATE_HOME"] = state
        return _seconds(["viewfs", "run", "--cow", str(tree), "--", *_work(name, tree)])


def viewfs_fuse(name: str, tree: Path, _aside: Path) -> float:
    """The same with viewfs's own file system in place of the kernel's overlay."""
    options = ["--keep", "--cow-backend", "fuse", "--cow", str(tree)]
    return _seconds(["viewfs", "run", *options, "--", *_work(name, tree)])


def kernel_overlay(name: str, tree: Path, aside: Path) -> float:
    """An overlay mounted by hand in a user namespace."""
    (aside / "upper").mkdir()
    (aside / "work").mkdir()
    options = f"userxattr,lowerdir={tree},upperdir={aside}/upper,workdir={aside}/work"
    mount = f'mount -t overlay -o {options} overlay {tree} && exec "$@"'
    return _seconds(["unshare", "-Urm", "sh", "-c", mount, "sh", *_work(name, tree)])


def fuse_overlayfs(name: str, tree: Path, aside: Path) -> float:
    """containers' overlay in a FUSE server."""
    for one in ("upper", "work", "merged"):
        (aside / one).mkdir()
    options = f"lowerdir={tree},upperdir={aside}/upper,workdir={aside}/work"
    mount = f'fuse-overlayfs -o {options} {aside}/merged && "$@"; code=$?; umount {aside}/merged; exit $code'
    return _seconds(["unshare", "-Urm", "sh", "-c", mount, "sh", *_work(name, aside / "merged")])


def try_(name: str, tree: Path, aside: Path) -> float:
    """The shell script that makes an overlay of everything."""
    (aside / "sandbox").mkdir()
    # It pastes its arguments into a script.
    return _seconds(["try", "-N", str(aside / "sandbox"), shlex.join(_work(name, tree))])


CONTENDERS: dict[str, Callable[[str, Path, Path], float]] = {
    "direct": direct,
    "viewfs": viewfs,
    "kernel overlay": kernel_overlay,
    "viewfs, layer in memory": viewfs_in_memory,
    "viewfs, FUSE": viewfs_fuse,
    "fuse-overlayfs": fuse_overlayfs,
    "try": try_,
}
#: Those that are measured only where they are installed.
OTHERS = frozenset({"fuse-overlayfs", "try"})


def make_tree(tree: Path) -> None:
    """A C project, a repository with a history, and a directory of many files."""
    project = tree / "project"
    project.mkdir(parents=True)
    for number in range(SOURCES):
        body = "\n".join(f"int f{number}_{n}(int x) {{ return x * {n} + {number}; }}" for n in range(400))
        (project / f"file{number}.c").write_text(f"#include <stdio.h>\n#include <stdlib.h>\n{body}\n")
    (project / "main.c").write_text("int main(void) { return 0; }\n")
    (project / "Makefile").write_text(
        "OBJECTS := $(patsubst %.c,%.o,$(wildcard *.c))\nall: program\nprogram: $(OBJECTS)\n\t$(CC) -o $@ $^\n"
        "clean:\n\trm -f program *.o\n"
    )
    script = """
        git init -q -b main origin && cd origin
        for n in $(seq 1500); do mkdir -p d$((n % 60)); seq $n $((n + 200)) > d$((n % 60))/$n; done
        git add . && git -c user.name=n -c user.email=e commit -qm one
        for n in 1 2 3 4 5; do date -d @$n > d1/1; git -c user.name=n -c user.email=e commit -qam $n; done
    """
    subprocess.run(["bash", "-euc", script], cwd=tree, check=True, env=os.environ | {"GIT_CONFIG_GLOBAL": "/dev/null"})
    for number in range(100):
        (tree / f"many/{number}").mkdir(parents=True)
        for other in range(20):
            (tree / f"many/{number}/{other}").write_bytes(b"x" * 5000)


def measure_work(base: Path, repetitions: int) -> Found:
    """What → contender → seconds, one for each repetition."""
    found: Found = {name: {} for name in WORK}
    original = base / "original"
    make_tree(original)
    names = [name for name in CONTENDERS if name not in OTHERS or shutil.which(name)]
    for repetition in range(repetitions):
        for row in WORK:
            for contender in names[repetition % len(names) :] + names[: repetition % len(names)]:
                # Nothing is removed before the end: for minutes ext4 goes out of the way of inodes that were freed.
                directory = base / f"{repetition}-{row.replace(' ', '-')}-{re.sub('[ ,]+', '-', contender)}"
                tree, aside = directory / "tree", directory / "aside"
                aside.mkdir(parents=True)
                os.environ["XDG_STATE_HOME"] = f"{directory}/state"
                subprocess.run(["cp", "-a", original, tree], check=True)
                subprocess.run(["sync", "-f", base], check=True)
                value = CONTENDERS[contender](row, tree, aside)
                found[row].setdefault(contender, []).append(value)
                print(f"bench: {row}, {contender}: {value:.3f} s", file=sys.stderr)
    return found


def timed(*command: str) -> float:
    """Seconds that a whole process takes."""
    begun = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def measure_opening(base: Path, repetitions: int) -> Found:
    """Opening a view, and comparing one in which ten files were changed, with a small tree and with a large one."""
    os.environ["XDG_STATE_HOME"] = f"{base}/state"
    crowd, few = base / "crowd", base / "few"
    for tree, count in ((crowd, CROWD), (few, 1000)):
        for number in range(count // 100):
            (tree / f"{number % 100}/{number}").mkdir(parents=True)
            for other in range(100):
                (tree / f"{number % 100}/{number}/{other}").touch()
        change = f"for n in 0 1 2 3 4 5 6 7 8 9; do echo x > {tree}/$n/$n/1; done"
        subprocess.run(["viewfs", "run", "--name", tree.name, "--cow", tree, "--", "sh", "-c", change], check=True)
    found: Found = {"open": {}, "diff": {}}
    for _ in range(repetitions * 3):
        for name, command in (
            ("plain", ("run", "--", "true")),
            ("few", ("run", "--cow", str(few), "--", "true")),
            ("crowd", ("run", "--cow", str(crowd), "--", "true")),
        ):
            found["open"].setdefault(name, []).append(timed("viewfs", *command))
        for name in ("few", "crowd"):
            found["diff"].setdefault(name, []).append(timed("viewfs", "diff", "--session", name, "--stat"))
    return found


def section(work: Found, opening: Found, machine: dict[str, str], repetitions: int) -> str:
    """The figures as Markdown."""
    names = [name for name in CONTENDERS if any(name in values for values in work.values())]
    lines = [
        f"Seconds: the median of {repetitions} (least–most), interleaved, each on a copy of the tree; below it the"
        f" ratio to the work done directly. {machine['Kernel']}, {machine['Processor']}, {machine['viewfs']},"
        f" {machine['Date']}.",
        "",
        "| | " + " | ".join(names) + " |",
        "| --- | " + " | ".join("---:" for _ in names) + " |",
    ]
    for row, values in work.items():
        cells = [f"`{WORK[row]}`"]
        for name in names:
            each = values[name]
            cell = f"{median(each):.2f} ({min(each):.2f}–{max(each):.2f})"
            cells.append(cell if name == "direct" else f"{cell}<br>**{median(each) / median(values['direct']):.2f}**")
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", f"| whole commands, ms, the median of {repetitions * 3} | |", "| --- | ---: |"]
    titles = {
        ("open", "plain"): "`viewfs run -- true`",
        ("open", "few"): "the same with `--cow` of 1,000 files",
        ("open", "crowd"): f"the same with `--cow` of {CROWD:,} files",
        ("diff", "few"): "`viewfs diff --stat`, ten files of 1,000 changed",
        ("diff", "crowd"): f"`viewfs diff --stat`, ten files of {CROWD:,} changed",
    }
    milliseconds = {key: 1000 * median(opening[key[0]][key[1]]) for key in titles}
    lines += [f"| {titles[key]} | {value:.0f} |" for key, value in milliseconds.items()]
    lines += ["", "| aim | at most | found |", "| --- | --- | --- |"]
    for row, most in AIMS.items():
        ratio = median(work[row]["viewfs"]) / median(work[row]["direct"])
        lines.append(f"| {row}, time to direct | {most:.2f} | {ratio:.2f}{'' if ratio <= most else ', **missed**'} |")
    more = milliseconds["open", "crowd"] - milliseconds["open", "plain"]
    missed = "" if more <= OPEN_AIM else ", **missed**"
    lines.append(
        f"| opening a view with {CROWD:,} files, ms beyond a plain one | {OPEN_AIM:.0f} | {more:.0f}{missed} |"
    )
    ratio = milliseconds["diff", "crowd"] / milliseconds["diff", "few"]
    missed = "" if ratio <= 1.2 else ", **missed**"
    lines.append(f"| diff of a tree a hundred times as large | 1.20 | {ratio:.2f}{missed} |")
    return "\n".join(lines)


def measure_all(base: Path, repetitions: int) -> tuple[Found, Found]:
    """The work, and the commands."""
    directory = Path(tempfile.mkdtemp(dir=base))
    try:
        return measure_work(directory, repetitions), measure_opening(directory, repetitions)
    finally:
        listed = subprocess.run(["viewfs", "ps", "--json"], check=True, stdout=subprocess.PIPE, text=True).stdout
        for session in json.loads(listed)["sessions"]:
            if str(HERE / "work.py") in session["command"]:
                subprocess.run(["viewfs", "kill", session["name"]], check=True)
        subprocess.run(["chmod", "-R", "u+rwx", directory], check=True)
        shutil.rmtree(directory)


def main() -> None:
    """Measure, or have the account measure; write."""
    arguments = parser("tools/bench --cow").parse_args()
    found = as_account("benchmarks.cow", arguments) or measure_all(arguments.base, arguments.repetitions)
    work, opening = found
    if arguments.figures_only:
        json.dump([work, opening], sys.stdout)
        return
    page = arguments.repository / "docs/cow.md"
    text = put_between_marks(page.read_text(), section(work, opening, describe_machine(), arguments.repetitions))
    page.write_text(text)


if __name__ == "__main__":
    main()
