"""fsync(2) and its kind succeed at once: for installers and test suites whose files need not survive a power cut."""

from viewfs.modules.api.calls import Caller, CallModule, call


class NoSync(CallModule):
    """Calls that wait for the disk do nothing."""

    name = "nosync"

    @call("sync")
    def sync(self, caller: Caller, file: int | None) -> None:
        pass
