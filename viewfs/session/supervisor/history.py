"""What a view has been, epoch by epoch: what was mounted and by which server, and which epochs can still be entered.

A supervisor that dies leaves it to the next one: `entries` writes all of it, and `take_up` reads that again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from viewfs.epochs import Change, Epoch, EpochStack, Mount
from viewfs.errors import NotFoundError
from viewfs.session.supervisor.deposit import Entry, Row
from viewfs.session.supervisor.served import ServedMount

__all__ = ["History"]

#: How many mounts that are gone for good are remembered, with their changes in the log, in a session without --history.
_PAST = 1000


class History:
    """The epochs of a view, and what has to be held for each."""

    def __init__(self, live_namespace: int, *, keeps_all: bool, time_ns: int) -> None:
        """`live_namespace`: a descriptor of the mount namespace that the view lives in. `keeps_all`: epochs can be
        entered even if what was mounted in them has been unmounted."""
        self.epochs = EpochStack.begin(time_ns)
        self.served: dict[Epoch, ServedMount] = {}
        #: Epoch whose state of copy-on-write trees was kept → name of that state.
        self.state_names: dict[Epoch, str] = {}
        self._live_namespace = live_namespace
        self._keeps_all = keeps_all
        self._snapshots: dict[Epoch, int] = {}
        #: Epoch → an earlier one in which the same was mounted, and whose namespace stands for it.
        self._same_as: dict[Epoch, Epoch] = {}

    @property
    def kept(self) -> list[Epoch]:
        """Epochs of which a namespace of their own is kept."""
        return list(self._snapshots)

    @property
    def first_namespace(self) -> int:
        """The namespace of epoch 0, if that has ended and can be entered; else the live one."""
        return self._snapshots.get(Epoch(0), self._live_namespace)

    def namespace_of(self, epoch: Epoch) -> int:
        """A descriptor of the mount namespace of `epoch`, which stays ours. Raises `NotFoundError`."""
        if epoch not in self.epochs:
            raise NotFoundError(
                f"there is no epoch {epoch}", remedy=f"the newest is {self.epochs.current}; see `viewfs epochs`"
            )
        if epoch == self.epochs.current:
            return self._live_namespace
        snapshot = self._snapshots.get(self._same_as.get(epoch, epoch))
        if snapshot is None:
            gone = [mount for mount in self.epochs.past.values() if mount.in_epoch(epoch)]
            gone += [mount for mount in self.epochs.in_epoch(epoch) if mount.made_in not in self.epochs.alive()]
            what = (
                f"{gone[-1].path} ({gone[-1].type}) was unmounted in epoch {gone[-1].removed_in}" if gone else "freed"
            )
            raise NotFoundError(
                f"epoch {epoch} can't be entered any more: {what}",
                remedy="a session started with --history keeps what is unmounted",
            )
        return snapshot

    def enterable(self) -> set[Epoch]:
        """The epochs that can be entered."""
        return {*self._snapshots, *self._same_as, self.epochs.current}

    def keep_snapshot(self, namespace: int) -> None:
        """Keep `namespace`, which shows the current epoch. That is about to end."""
        mounts = {mount.made_in for mount in self.epochs.live()}
        for epoch in self._snapshots:
            if epoch not in self.state_names and {mount.made_in for mount in self.epochs.in_epoch(epoch)} == mounts:
                self._same_as[self.epochs.current] = epoch
                os.close(namespace)
                return
        self._snapshots[self.epochs.current] = namespace

    def keep_state(self, namespace: int) -> Epoch:
        """Keep `namespace`, which shows the current epoch with its own state. That is about to end, and is returned."""
        self._snapshots[self.epochs.current] = namespace
        return self.epochs.current

    def mount_on_device(self, number: int | None) -> Epoch | None:
        """The mount whose files have this st_dev, if it still works."""
        if number is None:
            return None
        device = f"{os.major(number)}:{os.minor(number)}"
        alive = self.epochs.alive()
        return next(
            (epoch for epoch, served in self.served.items() if served.device == device and epoch in alive), None
        )

    def free(self) -> None:
        """Let go of the epochs in which something no longer works; the kernel then ends what nobody holds."""
        alive = self.epochs.alive()
        for epoch, served in self.served.items():
            if epoch not in alive:
                served.withdraw(calls=not self._keeps_all)
        if self._keeps_all:
            return
        for epoch in list(self._snapshots):
            if not all(mount.made_in in alive for mount in self.epochs.in_epoch(epoch)):
                os.close(self._snapshots.pop(epoch))
        self._same_as = {epoch: other for epoch, other in self._same_as.items() if other in self._snapshots}
        entered = [Epoch(epoch) for epoch in (*self._snapshots, self.epochs.current)]
        for mount in list(self.epochs.mounts.values()):
            served = self.served[mount.made_in]
            if mount.made_in in alive or served.is_running or any(map(mount.in_epoch, entered)):
                continue
            self.served.pop(mount.made_in).forget()
            self.epochs.retire(mount)
        if len(self.epochs.past) > _PAST + _PAST // 10:
            forgotten = self.epochs.forget(_PAST)
            self._same_as = {epoch: other for epoch, other in self._same_as.items() if epoch not in forgotten}

    def close(self) -> None:
        """Close every descriptor that keeps a file system or an epoch alive."""
        for served in self.served.values():
            served.forget()
        for fd in self._snapshots.values():
            os.close(fd)
        self._snapshots.clear()

    def entries(self) -> Iterator[Entry]:
        """All of it, for `take_up`."""
        for change in self.epochs.changes:
            yield Entry(f"change {change.epoch}", change, partial(_plain, change))
        for mounts, is_past in ((self.epochs.mounts, False), (self.epochs.past, True)):
            for mount in mounts.values():
                yield Entry(f"mount {mount.made_in}", (mount, is_past), partial(_plain, mount, past=is_past))
        for epoch, served in self.served.items():
            yield Entry(f"served {epoch}", served.mark, served.row)
            if served.calls_fd is not None:
                yield self._owner_entry(epoch, served, served.calls_fd)
        for epoch, fd in self._snapshots.items():
            yield Entry(f"snapshot {epoch}", fd, partial(Row, None, (fd,)))
        names = {"same_as": list(self._same_as.items()), "state_names": list(self.state_names.items())}
        yield Entry("epochs", names, partial(Row, names))

    def _owner_entry(self, epoch: Epoch, served: ServedMount, fd: int) -> Entry:
        """A module that answers system calls: the stand-by tells the notifier (`calls.owner.Owner`)."""
        mount, decided = self.epochs.mount_of(epoch), served.decided
        assert mount is not None
        assert decided is not None
        value = {
            "module": mount.type,
            "calls": decided.calls,
            "places": [mount.source, decided.real_path],
            "token": decided.token,
            "until": mount.removed_in,
        }
        return Entry(f"calls {epoch}", (fd, mount.removed_in), partial(Row, value, (fd,)))

    def take_up(self, rows: Mapping[str, Row]) -> None:
        """Restore it from `rows`. The servers still have to be found (`ServedMount.server_number`)."""
        self.epochs.changes.clear()
        answering: dict[Epoch, int] = {}
        for key, row in rows.items():
            kind, _, number = key.partition(" ")
            epoch = Epoch(int(number)) if number.isdigit() else Epoch(-1)
            if kind == "change":
                self.epochs.changes.append(Change(**row.value))
            elif kind == "mount":
                values = dict(row.value)
                is_past = values.pop("past")
                mount = Mount(**values | {"also": tuple(values["also"])})
                (self.epochs.past if is_past else self.epochs.mounts)[epoch] = mount
            elif kind == "served":
                self.served[epoch] = ServedMount.of_row(row)
            elif kind == "snapshot":
                self._snapshots[epoch] = row.fds[0]
            elif kind == "calls":
                answering[epoch] = row.fds[0]
            elif kind == "epochs":
                self._same_as = {Epoch(key): Epoch(value) for key, value in row.value["same_as"]}
                self.state_names = {Epoch(key): value for key, value in row.value["state_names"]}
        for epoch, fd in answering.items():
            self.served[epoch].calls_fd = fd
        self.epochs.changes.sort(key=lambda change: change.epoch)
        for found in (self.epochs.mounts, self.epochs.past):
            for epoch in sorted(found):
                found[epoch] = found.pop(epoch)


def _plain(record: Change | Mount, **more: Any) -> Row:
    return Row(asdict(record) | more)
