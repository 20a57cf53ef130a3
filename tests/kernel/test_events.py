"""`viewfs events` and `publish`: what happens to a session, told to whoever follows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable

import pytest

from tests.kernel.conftest import View, session_processes

OpenView = Callable[..., View]


def told(view: View, *options: str) -> list[dict[str, object]]:
    events: list[dict[str, object]] = json.loads(view("events", "--json", *options).out)["events"]
    return events


def test_what_has_happened(open_view: OpenView) -> None:
    view = open_view("--load", "hello")
    view("insmod", "unreal")
    view("publish", "build", '{"ok": [true, 1]}')
    view("rmmod", "unreal")
    events = told(view)
    assert [(one["kind"], one.get("module") or one.get("name")) for one in events if "command" not in one] == [
        ("start", None), ("insmod", "hello"), ("insmod", "unreal"), ("message", "build"), ("rmmod", "unreal"),
    ]  # fmt: skip
    assert [one["number"] for one in events] == list(range(1, len(events) + 1))
    message = next(one for one in events if one["kind"] == "message")
    assert message["value"] == {"ok": [True, 1]}
    assert told(view, "--after", str(message["number"])) == events[int(str(message["number"])) :]
    shown = view("events").out.splitlines()
    assert len(shown) == len(events)
    assert shown[int(str(message["number"])) - 1].endswith('message name=build value={"ok": [true, 1]}')


def test_who_follows_hears_of_it(open_view: OpenView) -> None:
    """Also where another supervisor takes over meanwhile, and until the session ends."""
    view = open_view("--load", "uname")
    with subprocess.Popen(
        ["viewfs", "events", "--follow", "--json", "--session", view.name],
        stdout=subprocess.PIPE, text=True, env=view.viewfs.environment, cwd=view.viewfs.directory,
    ) as follower:  # fmt: skip
        assert follower.stdout is not None
        heard = [json.loads(follower.stdout.readline()) for _event in range(2)]
        view("publish", "one")
        heard.append(json.loads(follower.stdout.readline()))
        supervisor = next(
            pid for pid, name in session_processes(view.viewfs.directory).items() if name == "viewfs-supervis"
        )
        os.kill(supervisor, signal.SIGKILL)
        view("publish", "two")
        heard.append(json.loads(follower.stdout.readline()))
        server = next(pid for pid, name in session_processes(view.viewfs.directory).items() if name == "viewfs-uname")
        os.kill(server, signal.SIGKILL)
        heard += [json.loads(follower.stdout.readline()) for _event in range(2)]
        view.close()
        assert follower.stdout.read() == "" and follower.wait(60) == 0
    assert [one.get("name") or one["kind"] for one in heard] == [
        "start", "insmod", "one", "two", "server-ended", "server-replaced",
    ]  # fmt: skip


def test_programs_inside_tell_each_other(open_view: OpenView) -> None:
    view = open_view()
    script = """viewfs events --follow --json > told & follower=$!
    until [ -s told ]; do sleep 0.05; done
    head -c 60000 /dev/zero | tr '\\0' 7 | sed 's/.*/"&"/' | viewfs publish big -
    until grep -q big told; do sleep 0.05; done; kill $follower; wc -c < told"""
    assert int(view.sh(script).out) > 60_000


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("", "1", "1 to 255 printable bytes"),
        ("x" * 256, "1", "1 to 255 printable bytes"),
        ("a\nb", "1", "1 to 255 printable bytes"),
        ("x", "{", "is no JSON"),
        ("x", "[" * 100_000, "is no JSON"),
        ("x", f'"{"é" * 33_000}"', "longer than 65536 bytes"),
    ],
    ids=["no name", "a long name", "a name of two lines", "half", "deep", "long"],
)
def test_what_is_no_message(open_view: OpenView, name: str, value: str, why: str) -> None:
    view = open_view()
    refused = view("publish", name, value, check=False)
    assert refused.code == 2 and why in refused.err and refused.err.count("\n") == 1
    assert not [one for one in told(view) if one["kind"] == "message"]


def test_only_the_last_are_kept(open_view: OpenView) -> None:
    """So that whoever publishes much takes no more memory than a few megabytes."""
    view = open_view()
    value = json.dumps("x" * 60_000)
    for number in range(45):
        view("publish", f"message{number}", value)
    kept = [one["name"] for one in told(view) if one["kind"] == "message"]
    assert kept[-1] == "message44" and 20 < len(kept) < 40
