"""Manual pages and completion scripts are those of the commands, and what their readers take."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from viewfs.cli.main import command_groups
from viewfs.cli.pages import completion_scripts, manual_pages

ROOT = Path(__file__).parents[2]
PAGES = manual_pages()


def test_there_is_a_page_for_each_command() -> None:
    names = [name for commands in command_groups().values() for name in commands]
    assert sorted(PAGES) == sorted(["viewfs.1", *(f"viewfs-{name}.1" for name in names)])


def test_what_is_installed_is_what_the_commands_say() -> None:
    """`make pages` writes them anew."""
    for name, text in PAGES.items():
        assert (ROOT / "share/man/man1" / name).read_text() == text, name
    assert {path.name for path in (ROOT / "share/man/man1").iterdir()} == set(PAGES)
    for place, script in completion_scripts().items():
        assert (ROOT / place).read_text() == script, place


@pytest.mark.needs("man")
@pytest.mark.parametrize("page", PAGES)
def test_man_shows_it(page: str) -> None:
    environment = os.environ | {"MANWIDTH": "100", "LC_ALL": "C.UTF-8", "MAN_KEEP_FORMATTING": ""}
    shown = subprocess.run(["man", "--warnings=w", "-l", ROOT / "share/man/man1" / page],
                           env=environment, capture_output=True, text=True, check=True)  # fmt: skip
    assert shown.stderr == ""
    for section in ("NAME", "SYNOPSIS", "DESCRIPTION", "EXIT STATUS", "SEE ALSO"):
        assert f"\n{section}\n" in shown.stdout
    assert "\n       -h, --help" in shown.stdout
    if page != "viewfs.1":
        assert "\nEXAMPLES\n" in shown.stdout and "\b" not in shown.stdout
