"""Workers that become servers of devices. The event loop that these use is imported with this module."""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from viewfs.errors import DamagedSourceError, UsageError, ViewfsError
from viewfs.modules.api import Mounting
from viewfs.modules.api.device import DeviceModule
from viewfs.modules.api.kept import Kept
from viewfs.mounts.fuse.counters import Counters
from viewfs.mounts.fuse.device_host import Lasting, serve_devices
from viewfs.mounts.fuse.ledger import FixedLedger
from viewfs.namespaces.sandbox import Limits
from viewfs.session.agent.shutting_in import shut_in
from viewfs.session.wire.reports import MAIN_DEVICE, Found

__all__ = ["open_devices", "what_is_kept"]


def what_is_kept(module: DeviceModule, mounting: Mounting) -> dict[str, int]:
    """Descriptors, by name, of what outlives this server, if its devices keep something."""
    size = module.keeps(mounting.options)
    if size is None:
        return {}
    try:
        kept = Kept.create(size)
        Kept(size, kept)  # can it be had?
        return {"ledger": FixedLedger.create(), "kept": kept}
    except (OSError, OverflowError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "too large"
        raise UsageError(f"no memory for a {module.name} of {size} bytes: {reason.lower()}") from None


def open_devices(
    module: DeviceModule, mounting: Mounting, limits: Limits, fds: dict[str, int]
) -> tuple[Callable[[int, Counters], None], Found]:
    """Shut this process in, and only then let the module make its devices: what serves them, and what to report.

    `fds`: the pipe by which they are taken away (`watch`), and what outlives the server if they keep something.

    One device is a mount of its own. Several are files of one mount that is attached nowhere; each of their mount
    points shows one. Their names are what is appended to the place; that of the device at the place itself is “.main”.
    """
    lasting = None
    if "kept" in fds:
        lasting = Lasting.of(fds["ledger"], fds["kept"], module.keeps(mounting.options) or 0)
        mounting = replace(mounting, kept=lasting.kept)
    shut_in(module, mounting, limits)
    try:
        if lasting is not None:
            lasting.settle()
        devices = module.devices(mounting)
    except OSError as error:
        raise DamagedSourceError(f"cannot read {mounting.source_name}: {error.strerror or error}") from error
    if not devices or any("/" in name or name.startswith(".") for name in devices):
        raise ViewfsError(f"module {module.name} has no devices, or no good names for them: {', '.join(devices)}")
    if list(devices) != [""]:
        devices = {name or MAIN_DEVICE: device for name, device in devices.items()}
    serving = partial(
        serve_devices, devices, control=fds["watch"], has_memory=module.uses_caller_memory, lasting=lasting
    )
    return serving, Found(stat.S_IFREG if "" in devices else stat.S_IFDIR, writable=True, names=list(devices))
