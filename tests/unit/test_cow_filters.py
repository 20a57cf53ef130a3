"""Which paths patterns mean: `viewfs.cow.compare.filters.Filter`, and selections with one."""

from __future__ import annotations

from os import fsencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from viewfs.cow.commit.planning import Selection
from viewfs.cow.compare.filters import EVERYTHING, Filter


def passes(path: str, exclude: tuple[str, ...] = (), include: tuple[str, ...] = ()) -> bool:
    return Filter.of(exclude, include).passes(fsencode(path))


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("*.o", "a.o", True),
        ("*.o", "src/deep/a.o", True),
        ("*.o", "a.oo", False),
        ("*.o", "a.o/inside", True),
        ("*", ".hidden", True),
        ("a", "a", True),
        ("a", "b/a", True),
        ("a", "b/a/c", True),
        ("a", "ab", False),
        ("a", "A", False),
        ("?", "ab", False),
        ("[ab]", "b", True),
        ("[!ab]", "b", False),
        ("[!ab]", "c", True),
        ("[", "[", True),
        ("src/a", "src/a", True),
        ("src/a", "src/a/b", True),
        ("src/a", "top/src/a", False),
        ("src/*.o", "src/a.o", True),
        ("src/*.o", "a.o", False),
        ("src/**/a", "src/b/c/a", True),
        ("**/a", "b/c/a", True),
        ("target/", "target", True),
        ("target/", "target/debug", True),
        ("new\nline", "new\nline", True),
        ("a", "a\n", False),
        ("ä*", "äö/x", True),
    ],
)
def test_patterns(pattern: str, path: str, matches: bool) -> None:
    assert passes(path, (pattern,)) is not matches
    assert passes(path, (), (pattern,)) is matches, "taken in by itself"
    assert passes(path, (pattern,), (pattern,)), "of what is excluded, this all the same"
    assert passes(path, ("*",), (pattern,)) is matches


def test_names_that_are_no_text() -> None:
    only = Filter.of(["*.\udcff"], [])
    assert not only.passes(b"dir/a.\xff") and only.passes(b"dir/a.\xfe")


def test_nothing_said_is_everything() -> None:
    assert Filter.of([], []) == Filter.of((), ()) == EVERYTHING
    assert EVERYTHING.passes(b"any/thing") and EVERYTHING.may_pass_below(b"any")


@pytest.mark.parametrize(
    ("pattern", "left_out", "kept"),
    [
        ("src/*.o", "src/a.o", "src/deep/a.o"),
        ("src/**/a.o", "src/a.o", "a.o"),
        ("src/**/a.o", "src/deep/er/a.o", "lib/a.o"),
        ("**/build", "build", "builds"),
        ("**/build", "src/build/x", "src/builds"),
        ("/build", "build/x", "src/build"),
        ("build/", "src/build/x", "rebuild"),
        ("./src", "src/x", "lib/src"),
        ("./src/", "src/x", "lib/src"),
        ("src/**", "src/deep/x", "src"),
    ],
)
def test_slashes(pattern: str, left_out: str, kept: str) -> None:
    only = Filter.of([pattern], [])
    if (pattern, kept) == ("src/**", "src"):
        assert not only.passes(b"src"), "any number of directories is none too"
    else:
        assert only.passes(kept.encode())
    assert not only.passes(left_out.encode())


def test_what_is_taken_in_below_what_is_left_out() -> None:
    only = Filter.of(["build"], ["build/keep", "*.log"])
    assert [path for path in (b"build", b"build/x", b"build/keep", b"build/keep/y", b"build/a.log", b"src/x")
            if only.passes(path)] == [b"build/keep", b"build/keep/y", b"build/a.log", b"src/x"]  # fmt: skip
    assert only.may_pass_below(b"build") and only.may_pass_below(b"src")
    assert not Filter.of(["build"], []).may_pass_below(b"build")


NAMES = st.text(alphabet="ab.*?[]!-\n\udcff", min_size=1, max_size=4).filter(lambda name: name not in (".", ".."))
PLAIN = st.text(alphabet="ab.c", min_size=1, max_size=3).filter(lambda name: name not in (".", ".."))
PATHS = st.lists(PLAIN, min_size=1, max_size=4).map("/".join)
PATTERNS = st.lists(st.one_of(NAMES, PATHS, st.lists(NAMES, min_size=2, max_size=3).map("/".join)), max_size=3)


@given(PATHS, PATTERNS, PATTERNS)
def test_all_in_a_directory_goes_with_it(path: str, exclude: list[str], include: list[str]) -> None:
    """Without --include, nothing in what is excluded is meant; what is included is meant with all that is in it."""
    only = Filter.of(exclude, include)
    above = path.rpartition("/")[0]
    if not above:
        return
    if not include and not only.passes(fsencode(above)):
        assert not only.passes(fsencode(path))
    if Filter.of([], include).passes(fsencode(above)) and include:
        assert only.passes(fsencode(path))


@given(PATHS, PATTERNS, PATTERNS, PATTERNS)
def test_more_patterns(path: str, exclude: list[str], include: list[str], more: list[str]) -> None:
    """Another --exclude means no more than before, another --include no less."""
    here = fsencode(path)
    if exclude:
        if not Filter.of(exclude, include).passes(here):
            assert not Filter.of([*exclude, *more], include).passes(here)
        if Filter.of(exclude, include).passes(here):
            assert Filter.of(exclude, [*include, *more]).passes(here)
    assert Filter.of(exclude, include) == Filter.of([one + "/" for one in exclude], include)


@given(PATHS, PATTERNS, PATTERNS)
def test_what_is_meant_and_what_is_not_are_the_whole(path: str, exclude: list[str], include: list[str]) -> None:
    """--exclude of patterns and --include of the same are opposites."""
    here = fsencode(path)
    if include:
        assert Filter.of([], include).passes(here) != Filter.of(include, []).passes(here)
    meant = Filter.of(exclude, include).passes(here)
    if exclude:
        left_out = not Filter.of(exclude, []).passes(here)
        taken_in = bool(include) and Filter.of([], include).passes(here)
        assert meant == (taken_in or not left_out)


@given(PATHS, PATTERNS, PATTERNS)
def test_whoever_looks_below_finds_all(path: str, exclude: list[str], include: list[str]) -> None:
    """What is meant is in directories that may have something that is."""
    only = Filter.of(exclude, include)
    parts = fsencode(path).split(b"/")
    if only.passes(fsencode(path)):
        for count in range(1, len(parts)):
            assert only.may_pass_below(b"/".join(parts[:count]))


@given(PATHS, st.lists(PATHS, max_size=2))
def test_a_path_by_itself_is_its_own_pattern(path: str, others: list[str]) -> None:
    assert not passes(path, (path, *others)) and passes(path, (), (*others, path))
    assert passes("", (path,)), "the top is always meant"


@given(st.lists(PATHS, max_size=2), PATHS, PATTERNS)
def test_selections(named: list[str], path: str, exclude: list[str]) -> None:
    """A path is selected if it is named, or below what is, and meant."""
    only = Filter.of(exclude, [])
    selection, here = Selection([fsencode(one) for one in named], only), fsencode(path)
    assert selection.has(here) == (Selection(selection.paths).has(here) and only.passes(here))
    assert not selection.is_everything and Selection([b""]).is_everything
    assert Selection([b""], only).is_everything == (not exclude)
