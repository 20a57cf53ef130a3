"""A file that stat(2) says is a character device: for programs that look before they use an emulated one."""

import os
import stat
import time

from viewfs.errors import UsageError
from viewfs.modules.api import Attributes, InodeNumber, Mounting
from viewfs.modules.api.calls import Caller, CallModule, call
from viewfs.modules.api.options import integer, permissions

_MINOR_MOST = (1 << 20) - 1


class CharacterDevice(CallModule):
    """What stat(2) says of PLACE is a character device."""

    name = "chardev"
    options = (
        integer("major", 240, "the number of its driver", maximum=4095),
        integer("minor", 0, "the number of the device", maximum=_MINOR_MOST),
        permissions("mode", 0o666, "its permission bits"),
    )

    def begin(self, mounting: Mounting) -> None:
        if not mounting.mount_point:
            raise UsageError("chardev needs a place", remedy="viewfs insmod chardev /dev/NAME -o major=N,minor=N")
        options = mounting.options
        self._attributes = Attributes(
            InodeNumber(1),
            stat.S_IFCHR | options["mode"],
            uid=mounting.identities.uid,
            gid=mounting.identities.gid,
            rdev=os.makedev(options["major"], options["minor"]),
            **dict.fromkeys(("atime_ns", "mtime_ns", "ctime_ns"), time.time_ns()),
        )

    @call("lstat")
    def lstat(self, caller: Caller, target: str | int, follow: bool) -> Attributes:
        return self._attributes
