"""Serving character devices over one /dev/fuse descriptor.

There is one thread, with trio. But an event loop costs more than a request does, so it is used only while it has
something to do. As long as no call waits and no device has a background task, the thread blocks in poll(2) until the
next request and answers it: one poll, one read, one write.

A device can be taken away while programs have it open, like one that is unplugged: the holder of the other end of the
control descriptor closes it, and from then on every call fails with ENODEV, including those that wait.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import select
from collections.abc import Mapping
from typing import NamedTuple

import trio

from viewfs.modules.api.device import CharDevice
from viewfs.modules.api.kept import Kept
from viewfs.mounts.fuse.counters import Counters
from viewfs.mounts.fuse.device_operations import DeviceOperations
from viewfs.mounts.fuse.lasting_devices import LastingDevices
from viewfs.mounts.fuse.ledger import FixedLedger
from viewfs.mounts.fuse.server import Server

__all__ = ["Lasting", "serve_devices"]

log = logging.getLogger("viewfs.fuse")


class Lasting(NamedTuple):
    """What outlives a server of devices that keep state."""

    ledger: FixedLedger
    kept: Kept

    @classmethod
    def of(cls, ledger: int, kept: int, size: int) -> Lasting:
        """From descriptors of `FixedLedger.create` and `Kept.create`, which are closed. Nothing is read yet: data that
        another server has written are only read once this process is sealed off."""
        try:
            return cls(FixedLedger(ledger), Kept(size, kept))
        finally:
            os.close(ledger)
            os.close(kept)

    def settle(self) -> None:
        """Undo the step that another server has begun and not finished."""
        before = self.ledger.last()
        if before is not None and before.answer is None:
            self.kept.undo()
            self.ledger.set_back(before.position)


def serve_devices(
    devices: Mapping[str, CharDevice],
    fd: int,
    counters: Counters,
    control: int,
    *,
    has_memory: bool = False,
    lasting: Lasting | None = None,
) -> None:
    """Answer the kernel over `fd` until nobody has the devices mounted or open any more.

    `devices` by name; one called "" is the root of the mount itself. `control` becomes readable when they are taken
    away. `has_memory`: this process may access its callers' memory. `lasting`: continue files of another server.
    """
    os.set_blocking(fd, False)
    gc.freeze()

    def notify(message: bytes) -> None:
        try:
            os.write(fd, message)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):  # nobody polls any more; unmounted
                log.error("a notification was refused: %s", error)

    operations: DeviceOperations
    if lasting is None:
        operations = DeviceOperations(devices, notify, has_memory=has_memory)
    else:
        operations = LastingDevices(devices, notify, ledger=lasting.ledger, kept=lasting.kept, has_memory=has_memory)
    server = _DeviceServer(operations, fd, counters, control, list(devices.values()))
    try:
        trio.run(server.serve)
    finally:
        server.close()
        operations.close()


class _DeviceServer(Server):
    def __init__(
        self, operations: DeviceOperations, fd: int, counters: Counters, control: int, devices: list[CharDevice]
    ) -> None:
        super().__init__(operations, fd, counters.rows[0])
        self._devices = operations
        self._control = control
        #: The devices whose background task is running.
        self._running = [device for device in devices if type(device).run is not CharDevice.run]
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._poll.register(control, select.POLLIN)

    async def serve(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_control)
            for device in self._running:
                nursery.start_soon(self._run_device, device)
            while True:
                if not self._is_busy:
                    self._wait_alone()
                try:
                    request = self.receive()
                except BlockingIOError:
                    if self._is_busy:
                        await trio.lowlevel.wait_readable(self.fd)
                    continue
                if request is None:
                    break
                self.handle(request, nursery)
                if self._is_busy:
                    await trio.lowlevel.checkpoint()  # a steady stream of requests must not starve those that wait
            nursery.cancel_scope.cancel()

    @property
    def _is_busy(self) -> bool:
        return bool(self.waiting or self._running)

    def _wait_alone(self) -> None:
        """Block this thread until there is a request; it has nothing else to do."""
        for fd, _event in self._poll.poll():
            if fd == self._control and not self._devices.withdrawn:
                self._withdraw()

    async def _watch_control(self) -> None:
        await trio.lowlevel.wait_readable(self._control)
        if not self._devices.withdrawn:
            self._withdraw()

    def _withdraw(self) -> None:
        self._poll.unregister(self._control)
        self.cancelled = errno.ENODEV
        self._devices.withdraw()
        for scope in list(self.waiting.values()):
            scope.cancel()

    async def _run_device(self, device: CharDevice) -> None:
        try:
            await device.run()
        except Exception:
            log.exception("what %s does by itself has failed", type(device).__name__)
        finally:
            self._running.remove(device)
