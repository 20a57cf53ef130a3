"""What the documentation shows happens: its files are written, its commands run, their output compared.

In a ```console block, `$ ` begins a command outside and `(name) $ ` one inside the view that `viewfs shell --name name`
opened; `…` stands for anything. A block ```python file=NAME is written to NAME first.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kernel.conftest import View, Viewfs

TOP = Path(__file__).parents[2]
PAGES = [TOP / "README.md", *sorted((TOP / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\S+)(?: file=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^(?:\((?P<view>\w+)\) )?\$ (?P<command>.*)$")


@dataclass
class Example:
    """One command, where it is run, and what it shall print."""

    view: str | None
    command: str
    output: list[str]


def examples(block: str) -> list[Example]:
    found: list[Example] = []
    for line in block.splitlines():
        if match := COMMAND.match(line):
            found.append(Example(match["view"], match["command"], []))
        else:
            found[-1].output.append(line)
    return found


def matches(shown: list[str], printed: str) -> bool:
    def squeezed(text: str) -> str:
        return re.sub(" +", " ", text.strip())

    pattern = "\n".join(".*".join(map(re.escape, squeezed(line).split("…"))) for line in shown)
    return re.fullmatch(pattern, "\n".join(map(squeezed, printed.splitlines()))) is not None


def shows_something(page: Path) -> bool:
    return any(kind == "console" for kind, _name, _body in BLOCK.findall(page.read_text()))


@pytest.mark.parametrize("page", list(filter(shows_something, PAGES)), ids=lambda page: page.name)
def test_what_a_page_shows_happens(viewfs: Viewfs, open_view: Callable[..., View], tmp_path: Path, page: Path) -> None:
    open_now: dict[str, View] = {}
    for kind, name, body in BLOCK.findall(page.read_text()):
        if name:
            (tmp_path / name).write_text(body)
        if kind != "console":
            continue
        for example in examples(body):
            opening = re.fullmatch(r"viewfs shell --name (\w+)(.*)", example.command)
            if opening:
                open_now[opening[1]] = open_view(*opening[2].split(), name=opening[1])
                continue
            if example.view is not None and example.command == "exit":
                assert open_now.pop(example.view).close() == (0, "")
                continue
            around = [] if example.view is None else ["viewfs", "enter", example.view, "--"]
            done = subprocess.run(
                [*around, "bash", "-c", example.command],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=viewfs.environment,
                cwd=tmp_path,
                timeout=60,
            )
            assert matches(example.output, done.stdout), f"{page.name}: {example}\nprinted:\n{done.stdout}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
