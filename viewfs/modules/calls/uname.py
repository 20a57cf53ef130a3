"""What uname(2) says: another kernel's release, another machine, another name."""

import os

from viewfs.errors import UsageError
from viewfs.modules.api import Mounting
from viewfs.modules.api.calls import Caller, CallModule, Utsname, call
from viewfs.modules.api.options import text

#: Bytes of a field, with the NUL behind it (linux/utsname.h).
_SIZE = 65


class Uname(CallModule):
    """What uname(1) shows, as the options say; the rest as it was."""

    name = "uname"
    options = (
        text("sysname", "", "the name of the kernel"),
        text("nodename", "", "the name of the machine in the network"),
        text("release", "", "the kernel's release"),
        text("version", "", "the kernel's version"),
        text("machine", "", "the kind of machine"),
        text("domainname", "", "the NIS domain"),
    )

    def begin(self, mounting: Mounting) -> None:
        self._given = {name: os.fsencode(value) for name, value in mounting.options.items() if value}
        for name, value in self._given.items():
            if len(value) >= _SIZE:
                raise UsageError(f"option {name} of module uname: at most {_SIZE - 1} bytes")

    @call("uname")
    def uname(self, caller: Caller, answer: Utsname) -> None:
        before = Utsname.now()
        for name in Utsname.FIELDS:
            setattr(answer, name, self._given.get(name, getattr(before, name)))
