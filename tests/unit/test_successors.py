"""Servers that die, and whether another is tried."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Any, cast

import pytest
import trio

from viewfs.errors import ViewfsError
from viewfs.mounts.fuse.counters import Counters
from viewfs.mounts.fuse.protocol import Opcode
from viewfs.session.patience import Patience
from viewfs.session.supervisor import servers
from viewfs.session.supervisor.agent_link import AgentLink
from viewfs.session.supervisor.history import History
from viewfs.session.supervisor.served import ServedMount
from viewfs.session.wire.reports import Decided, Found


class NoAgent:
    """One whose workers open nothing."""

    def worker(self, *_arguments: Any, **_options: Any) -> Any:
        raise ViewfsError("cannot have another server take over /m: it is damaged")


@pytest.fixture
def served() -> Iterator[ServedMount]:
    fuse_fd, other = os.pipe()
    served = ServedMount(
        "sealed",
        decided=Decided("ext", "/m", source="/i", uses_view=False, confinement="sealed", is_built_in=True),
        found=Found(stat.S_IFDIR, resumable=True),
        counters=Counters.create(),
        fuse_fd=fuse_fd,
        for_successor={"source": other},
    )
    served.patience = Patience(deadline=0.2)
    yield served
    served.forget()


@pytest.mark.parametrize("has_begun", [False, True])
def test_when_it_is_given_up(served: ServedMount, monkeypatch: pytest.MonkeyPatch, has_begun: bool) -> None:
    """At its deadline, if no server has ever begun with it: there is no request yet that could be refused. Else callers
    get errors, and others are tried."""
    refused, said = [], []

    async def refuse(fuse_fd: int) -> None:
        refused.append(fuse_fd)
        await trio.sleep_forever()

    monkeypatch.setattr(servers, "refuse", refuse)
    history = History(-1, keeps_all=False, time_ns=0)
    mount = history.epochs.mount("/m", "ext", "/i")
    history.served[mount.made_in] = served
    told: list[str] = []
    watching = servers.Servers(
        cast(AgentLink, NoAgent()),
        history,
        log=said.append,
        keep=lambda: None,
        tell=lambda kind, **_: told.append(kind),
    )
    assert served.counters is not None
    if has_begun:
        served.counters.rows[0].count(Opcode.INIT, 0, failed=False)

    async def find() -> Any:
        served.patience.begin(trio.current_time())
        with trio.move_on_after(1):
            return await watching._find_successor(mount, served)
        return "others are tried"

    found = trio.run(find)
    if has_begun:
        assert found == "others are tried" and set(refused) == {served.fuse_fd}
    else:
        assert found is None and not refused
        assert said[-1] == "no server of /m has begun to serve it, and it is given up"
