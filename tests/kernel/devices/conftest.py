"""A view with the probe device in it, and C programs that use devices."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kernel.conftest import SECONDS, View, Viewfs

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Compile a C file of this directory, once for each set of options."""
    directory = tmp_path_factory.mktemp("compiled")
    done: dict[tuple[str, ...], Path] = {}

    def build(name: str, *options: str) -> Path:
        key = (name, *options)
        if key not in done:
            program = directory / f"{name}{len(done)}"
            command = [
                "gcc",
                "-Wall",
                "-Wextra",
                "-Werror",
                "-O1",
                *options,
                "-o",
                program,
                HERE / f"{name}.c",
                "-pthread",
            ]
            subprocess.run(command, check=True, capture_output=True)
            done[key] = program
        return done[key]

    return build


@pytest.fixture(scope="session")
def client(compiled: Callable[..., Path]) -> Path:
    """Static: nothing that is preloaded would reach it."""
    return compiled("client", "-static")


class Program:
    """A program that runs in the view until it is told to end, or ends."""

    def __init__(self, view: View, *command: str | Path) -> None:
        self.process = subprocess.Popen(
            ["viewfs", "enter", view.name, "--", *map(str, command)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=view.viewfs.environment,
            cwd=view.viewfs.directory,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def rest(self) -> list[str]:
        """What it printed until its end."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        # (Not by communicate(), which does not know of what has been read ahead for `line`.)
        lines = self.process.stdout.read().splitlines()
        self.process.wait(SECONDS)
        return lines

    def tell(self, text: str = "\n") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()


@pytest.fixture
def start(open_view: Callable[..., View]) -> Iterator[Callable[..., Program]]:
    """Start programs in a view; those that run at the end of the test are killed."""
    programs: list[Program] = []

    def run(view: View, *command: str | Path) -> Program:
        programs.append(Program(view, *command))
        return programs[-1]

    yield run
    for program in programs:
        program.process.kill()
        program.process.wait()
        for stream in (program.process.stdin, program.process.stdout):
            assert stream is not None
            stream.close()


@pytest.fixture
def own_probe(open_view: Callable[..., View]) -> View:
    """A view of the test's own with the probe at /dev/probe."""
    view = open_view()
    view("insmod", HERE / "probe.py")
    return view


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[View]:
    """As `own_probe`, for tests that leave the device as they found it."""
    yield from shared_view(tmp_path_factory, "--load", HERE / "probe.py")


def shared_view(tmp_path_factory: pytest.TempPathFactory, *options: str | Path) -> Iterator[View]:
    """A view for all tests of a module."""
    view = View(Viewfs(tmp_path_factory.mktemp("shared")), "shared", *options)
    yield view
    assert view.close() == (0, "")
    for stream in (view.process.stdin, view.process.stdout, view.process.stderr):
        assert stream is not None
        stream.close()
