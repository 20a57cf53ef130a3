"""Options of modules: declared once; parsed, checked and shown from that."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from viewfs.cli.quick.requests import split_options
from viewfs.errors import UsageError
from viewfs.modules.api.options import (
    Option,
    choice,
    flag,
    integer,
    parse_options,
    permissions,
    size,
    text,
)

DECLARED = (
    text("label", "none", "what to call it"),
    integer("level", 3, "how much", minimum=1, maximum=0x10),
    size("room", 0, "how large"),
    flag("ro", "not to be written"),
    choice("journal", ["replay", "ignore"], "replay", "what to do with it"),
    permissions("mode", 0o755, "bits"),
)


def parse(*arguments: str) -> dict[str, object]:
    return parse_options("test", DECLARED, split_options(arguments))


def complaint(*arguments: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_not_given_has_its_default() -> None:
    assert (
        parse()
        == parse("")
        == {"label": "none", "level": 3, "room": 0, "ro": False, "journal": "replay", "mode": 0o755}
    )


@pytest.mark.parametrize(
    ("argument", "name", "value"),
    [
        ("label=a=b", "label", "a=b"),
        ("label=", "label", ""),
        ("level=16", "level", 16),
        ("level=0x10", "level", 16),
        ("level=0o7", "level", 7),
        ("room=4096", "room", 4096),
        ("room=64K", "room", 64 << 10),
        ("room=64k", "room", 64 << 10),
        ("room=2MiB", "room", 2 << 20),
        ("room=1GB", "room", 1 << 30),
        ("room=1T", "room", 1 << 40),
        ("room=3P", "room", 3 << 50),
        ("ro", "ro", True),
        ("ro=", "ro", True),
        ("ro=YES", "ro", True),
        ("ro=no", "ro", False),
        ("ro=0", "ro", False),
        ("journal=ignore", "journal", "ignore"),
        ("mode=700", "mode", 0o700),
        ("mode=01777", "mode", 0o1777),
    ],
)
def test_a_value(argument: str, name: str, value: object) -> None:
    assert parse(argument)[name] == value


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("level=0", "from 1 to 16"),
        ("level=17", "from 1 to 16"),
        ("level=much", "a whole number"),
        ("level=", "a whole number"),
        ("level=1.5", "a whole number"),
        ("room=-1", "a size such as"),
        ("room=1.5G", "a size such as"),
        ("room=64X", "a size such as"),
        ("room=" + "9" * 5000, "a size such as"),
        ("ro=maybe", "yes or no"),
        ("journal=eat", "replay, ignore"),
        ("label", "needs a value"),
        ("level", "level=N"),
        ("mode=999", "mode"),
        ("mode=-1", "mode"),
        ("mode=10000", "mode"),
        ("nosuch=1", "no option nosuch"),
        ("=1", "no name"),
        ("level=1,level=2", "given twice"),
    ],
)
def test_a_value_that_is_none(argument: str, said: str) -> None:
    assert said in complaint(argument)


def test_an_unknown_option_is_answered_with_those_that_there_are() -> None:
    assert "label, level, room, ro, journal, mode" in complaint("nosuch")
    with pytest.raises(UsageError, match="it has none"):
        parse_options("test", (), {"a": None})


def test_options_are_given_at_once_or_one_by_one() -> None:
    assert split_options(["a=1,b", "c=2", "", ",,d=,"]) == {"a": "1", "b": None, "c": "2", "d": ""}
    with pytest.raises(UsageError):
        split_options(["a=1", "a=1"])


@settings(max_examples=200, deadline=None, database=None)
@given(
    st.lists(st.builds("{}={}".format, st.sampled_from([o.name for o in DECLARED]), st.text(max_size=8)), max_size=3)
)
def test_whatever_is_given_is_parsed_or_refused(arguments: list[str]) -> None:
    try:
        values = parse(*arguments)
    except UsageError:
        return
    assert [type(value) for value in values.values()] == [str, int, int, bool, str, int]


def test_a_default_is_shown_as_one_would_write_it() -> None:
    options: tuple[Option[Any], ...] = DECLARED
    for option in options:
        assert option.parse(option.show(option.default)) == option.default
