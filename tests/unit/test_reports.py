"""What a server that its input has taken over may say to the supervisor: a few facts, and nothing else."""

from __future__ import annotations

import json
import random
import stat
from typing import Any

import pytest

from viewfs.errors import ViewfsError
from viewfs.session.wire.reports import MAIN_DEVICE, Decided, Found

DIRECTORY = stat.S_IFDIR | 0o755


@pytest.mark.parametrize(
    ("found", "has_devices"),
    [
        (Found(DIRECTORY), False),
        (Found(stat.S_IFREG | 0o444, writable=True), False),
        (Found(DIRECTORY, resumable=True), False),
        (Found(stat.S_IFREG, writable=True, names=[""]), True),
        (Found(DIRECTORY, writable=True, names=[MAIN_DEVICE, "1", "p2", "cdrom-a.b"]), True),
    ],
)
def test_what_honest_servers_say(found: Found, has_devices: bool) -> None:
    assert Found.from_json(json.loads(json.dumps(found.to_json())), has_devices=has_devices) == found


def test_what_is_decided_comes_back() -> None:
    decided = Decided("ext", "/mnt", "image", False, "sealed", device=2049, source_identity=(1, 2, 3, 4))
    assert Decided.from_json(json.loads(json.dumps(decided.to_json()))) == decided


@pytest.mark.parametrize(
    "change",
    [
        {"type": "/tmp/evil.py"}, {"path": "/usr/bin"}, {"source": "x"}, {"uses_view": True}, {"descriptors": ["a"]},
        {"root_mode": stat.S_IFLNK | 0o777}, {"root_mode": stat.S_IFCHR}, {"root_mode": True}, {"root_mode": -1},
        {"root_mode": DIRECTORY | 1 << 20}, {"root_mode": str(DIRECTORY)}, {"root_mode": None}, {"root_mode": 1e5},
        {"writable": 1}, {"writable": None}, {"resumable": "yes"}, {"names": []}, {"names": [""]}, {"names": {}},
        {"names": "ab"},
    ],
    ids=str,
)  # fmt: skip
def test_what_no_file_system_says(change: dict[str, Any]) -> None:
    with pytest.raises(ViewfsError, match="what can't be"):
        Found.from_json(Found(DIRECTORY).to_json() | change, has_devices=False)


@pytest.mark.parametrize(
    "names",
    [
        None, [], "1", ["1", "1"], ["", "1"], ["../../usr/bin/ls"], ["a/b"], [".."], ["."], [".hidden"], ["\0"], [1],
        ["x" * 65], ["name with a space"], [str(number) for number in range(257)], ["\n"], ["é"], [None], [["1"]],
    ],
    ids=lambda names: str(names)[:30],
)  # fmt: skip
def test_names_that_no_device_has(names: Any) -> None:
    with pytest.raises(ViewfsError, match="what can't be"):
        Found.from_json(Found(DIRECTORY).to_json() | {"names": names}, has_devices=True)


def test_anything_at_all() -> None:
    """100,000 messages of a process that may say what it likes: refused in a line, or one of the few facts."""
    chance = random.Random(14)
    values: list[Any] = [
        None, True, 0, -1, DIRECTORY, stat.S_IFREG, 1 << 70, 1.5, "", "x", MAIN_DEVICE, "/etc", [], [""], ["1"], {},
        ["1", "2"], [MAIN_DEVICE], {"root_mode": DIRECTORY}, [["1"]], float("nan"),
    ]  # fmt: skip
    keys = [*Found(0).to_json(), "type", "path", "device", "descriptors", "ok", ""]
    taken = 0
    for _time in range(100_000):
        message = Found(DIRECTORY).to_json()
        for _change in range(chance.randrange(4)):
            if chance.random() < 0.1:
                message.pop(chance.choice(keys), None)
            else:
                message[chance.choice(keys)] = chance.choice(values)
        has_devices = chance.random() < 0.5
        try:
            found = Found.from_json(message, has_devices=has_devices)
        except ViewfsError as error:
            assert len(str(error)) < 200 and str(error).isprintable()
            continue
        taken += 1
        assert found.to_json() == message and set(message) == set(Found(0).to_json())
        assert stat.S_IFMT(found.root_mode) in (stat.S_IFDIR, stat.S_IFREG)
        assert (found.names is not None) == has_devices
    assert 1000 < taken < 90_000


def test_texts_of_errors_are_bounded() -> None:
    for text in ("\x1b]0;title\x07 \x1b[2J", "x" * 1_000_000, "two\nlines", "\udcff\x00", {"no": "text"}, 7):
        for value in (text, {"message": text, "exit_code": 5, "remedy": text}, {"message": text, "exit_code": [1]}):
            shown = str(ViewfsError.from_json(value))
            assert len(shown) < 25_000
