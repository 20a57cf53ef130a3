"""The example that gets its ciphers from /dev/crypto alone: a server, and three clients in two views."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.kernel.conftest import View
from tests.kernel.devices.conftest import Program

EXAMPLE = Path(__file__).parents[3] / "examples/cryptochat"


def test_three_clients_in_two_views(open_view: Callable[..., View], start: Callable[..., Program]) -> None:
    first, second = open_view("--load", "crypto", name="first"), open_view("--load", "crypto", name="second")
    python = "/usr/bin/python3"
    server = start(first, python, EXAMPLE / "server.py", "--passphrase", "secret")
    port = server.line().removeprefix("listening on port ")

    def client(view: View, name: str, passphrase: str = "secret") -> Program:
        return start(view, python, EXAMPLE / "client.py", "--port", port, "--passphrase", passphrase, name)

    ada = client(first, "ada")
    assert ada.line() == "* welcome"
    charles = client(second, "charles")
    assert (charles.line(), ada.line()) == ("* welcome", "* charles is here")
    grace = client(second, "grace")
    assert (grace.line(), ada.line(), charles.line()) == ("* welcome", "* grace is here", "* grace is here")

    ada.tell("good morning\n")
    assert (charles.line(), grace.line()) == ("ada: good morning", "ada: good morning")
    grace.tell("a longer message: " + "x" * 5000 + "\n")
    assert ada.line() == charles.line() == "grace: a longer message: " + "x" * 5000

    stranger = client(second, "stranger", passphrase="guessed")
    assert stranger.rest() == [], "who does not know the passphrase has other keys, and is not let in"
    assert grace.rest() == []
    assert (ada.line(), charles.line()) == ("* grace has left", "* grace has left")
