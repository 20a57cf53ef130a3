"""Rules that the project has set itself and that a program can check."""

from __future__ import annotations

import ast
import configparser
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Lines that say something: neither blank nor comment nor docstring.
LONGEST = 450

_NOT_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def texts(*places: str) -> Iterator[tuple[str, str]]:
    """Path and content of each text file in those places."""
    for place in places:
        start = ROOT / place
        for path in sorted(start.rglob("*")) if start.is_dir() else [start]:
            if not path.is_file() or path.is_symlink() or "__pycache__" in path.parts:
                continue
            try:
                yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue  # an image


def lines_of_code(text: str) -> int:
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            docstrings |= set(range(node.lineno, (node.end_lineno or 0) + 1))
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _NOT_CODE:
            code |= set(range(token.start[0], token.end[0] + 1))
    return len(code - docstrings)


def is_program(name: str, text: str) -> bool:
    return name.endswith(".py") or (text.startswith("#!") and "python" in text.partition("\n")[0])


def test_lines_of_code_are_counted() -> None:
    assert (
        lines_of_code('"""Doc\nstring."""\n\n# comment\nx = [\n    1,  # one\n]\n\n\ndef f():\n    """Doc."""\n') == 4
    )


def test_no_file_is_too_long() -> None:
    long = {
        name: count
        for name, text in texts("viewfs", "tests", "tools")
        if is_program(name, text) and (count := lines_of_code(text)) > LONGEST
    }
    assert not long, f"more than {LONGEST} lines of code"


def test_every_file_says_what_it_is_for() -> None:
    without = [
        name
        for name, text in texts("viewfs", "tests", "tools", "examples")
        if is_program(name, text) and text.strip() and not ast.get_docstring(ast.parse(text))
    ]
    assert without in ([], ["viewfs/__main__.py"])


def test_the_project_speaks_of_itself_only() -> None:
    """Not of the places where somebody happened to write it."""
    elsewhere = re.compile(
        "|".join(("/" + "work/", "shared" + "/design", "/home/" + r"(?!\w*<|user\b|you\b|me\b)\w+/checkout"))
    )
    places = (
        "viewfs",
        "tests",
        "tools",
        "docs",
        "examples",
        ".ci",
        "README.md",
        "Makefile",
        "setup.cfg",
        "pyproject.toml",
    )
    found = [
        f"{name}:{number}: {line.strip()}"
        for name, text in texts(*places)
        for number, line in enumerate(text.splitlines(), 1)
        if elsewhere.search(line)
    ]
    assert not found


def required(section: str, option: str) -> list[str]:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = [line for line in config[section][option].splitlines() if line and not line.startswith("#")]
    return [re.split(r"[<>=!~\[; ]", line)[0] for line in lines]


@pytest.mark.parametrize("package", required("options", "install_requires"))
def test_every_dependency_is_accounted_for(package: str) -> None:
    """In docs/dependencies.md: once, as the first column of a table or as a heading."""
    page = ROOT / "docs/dependencies.md"
    assert page.exists(), "docs/dependencies.md says why each"
    text = page.read_text(encoding="utf-8")
    name = re.escape(package)
    assert len(re.findall(rf"^(?:\|\s*`{name}`\s*\||#+ +`?{name}`?\s*$)", text, re.MULTILINE)) == 1


def test_the_links_at_the_top_lead_to_the_packages() -> None:
    for name in ("mounts", "namespaces", "modules"):
        assert (ROOT / name).resolve() == ROOT / "viewfs" / name


def test_pages_have_short_lines() -> None:
    """A sentence a line, at most 100 columns, so that a change shows what was changed. (Tables and code can't.)"""
    wrong = []
    for path, text in texts("docs", "README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"):
        if not path.endswith(".md"):
            continue
        body = re.sub(r"^```.*?^```$|<!-- figures -->.*?<!-- /figures -->", "", text, flags=re.MULTILINE | re.DOTALL)
        for line in body.splitlines():
            if len(line) > 100 and not line.startswith(("|", "#")) and " " in line.strip()[40:100]:
                wrong.append(f"{path}: {line[:60]}…")
            elif not line.startswith("|") and re.search(r"[a-z]\. [A-Z][a-z]+ [a-z]+ .* [a-z]+\. [A-Z]", line):
                wrong.append(f"{path}: several sentences: {line[:60]}…")
    assert not wrong, "\n".join(wrong)
