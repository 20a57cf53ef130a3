"""How a module server shuts itself in: as much as its module allows."""

from __future__ import annotations

import os
import time

from viewfs.linux.namespaces import CloneFlags, unshare
from viewfs.linux.plain import signal
from viewfs.linux.process import (
    FAKE_ROOT_CAPABILITIES,
    drop_capabilities,
    no_new_privileges,
    raise_descriptor_limit,
    set_name,
    show_memory,
)
from viewfs.modules.api import Module, Mounting
from viewfs.modules.api.calls import CallModule
from viewfs.modules.api.device import DeviceModule
from viewfs.namespaces.sandbox import Confinement, Limits, Needs, confine

__all__ = ["confinement_of", "shut_in"]


def confinement_of(module: Module) -> Confinement:
    return Confinement.of(uses_view=module.uses_view, uses_network=module.uses_network)


def shut_in(module: Module, mounting: Mounting, limits: Limits) -> None:
    """Shut this process in, as `module` allows."""
    confinement = confinement_of(module)
    set_name(f"viewfs-{module.name}")
    if isinstance(module, CallModule) and module.lives_in_view:
        become_program()
        return
    if not module.never_waits:
        import trio  # noqa: F401  # while it can be read; as a rule it is in memory already, for the agent has it

    _read_time_zone()
    if confinement is Confinement.SEALED:
        unshare(CloneFlags.NEWNS)  # the snapshot stays as it is; what is emptied is a copy of it
    if isinstance(module, DeviceModule):
        needs = Needs.CALLERS
        if module.uses_caller_memory:
            needs |= Needs.CALLER_MEMORY
        if module.uses_kernel_crypto(mounting.options):
            needs |= Needs.KERNEL_CRYPTO
        confine(confinement, needs, limits)
    elif isinstance(module, CallModule):
        confine(confinement, Needs.CALLS, limits)
    else:
        confine(confinement, limits=limits)


def become_program() -> None:
    """Have no other rights than the programs of the view."""
    os.chdir("/")
    raise_descriptor_limit()
    drop_capabilities(FAKE_ROOT_CAPABILITIES if os.geteuid() == 0 else (), bounding=False)
    no_new_privileges()
    show_memory()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which the session sends at its end
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])


def _read_time_zone() -> None:
    """Have the C library read the time zone while it can. It reads the default one again whenever it converts a time,
    and would then go on with UTC; one that TZ names (tzset(3)) it reads once."""
    os.environ.setdefault("TZ", ":/etc/localtime")
    time.tzset()
