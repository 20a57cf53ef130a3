"""Another time of day: later or earlier, faster or slower, or standing still."""

import time

from viewfs.errors import UsageError
from viewfs.modules.api import Mounting
from viewfs.modules.api.calls import GO_ON, Caller, CallModule, Result, call
from viewfs.modules.api.options import decimal, flag

#: CLOCK_REALTIME, CLOCK_REALTIME_COARSE, CLOCK_TAI of linux/time.h.
_TIMES_OF_DAY = {0: time.CLOCK_REALTIME, 5: time.CLOCK_REALTIME, 11: time.CLOCK_TAI}
_NS = 10**9
_RATE_MOST, _OFFSET_MOST = 1e6, 1e11


class Time(CallModule):
    """The time of day that programs see."""

    name = "time"
    options = (
        decimal("offset", 0, "seconds that it is ahead"),
        decimal("rate", 1, "how much faster it goes"),
        flag("freeze", "it stands still"),
    )

    def begin(self, mounting: Mounting) -> None:
        rate = 0.0 if mounting.options["freeze"] else float(mounting.options["rate"])
        if not 0 <= rate <= _RATE_MOST:
            raise UsageError(f"option rate of module time: from 0 to {_RATE_MOST:g}; no time goes backwards")
        if abs(mounting.options["offset"]) > _OFFSET_MOST:
            raise UsageError(f"option offset of module time: at most {_OFFSET_MOST:g} seconds")
        self._rate = rate
        self._offset_ns: int = round(mounting.options["offset"] * _NS)
        self._began_ns = {clock: time.clock_gettime_ns(clock) for clock in set(_TIMES_OF_DAY.values())}

    @call("time")
    def now(self, caller: Caller, clock: int) -> Result:
        if clock not in _TIMES_OF_DAY:
            return GO_ON
        real = _TIMES_OF_DAY[clock]
        began: int = self._began_ns[real]
        passed = time.clock_gettime_ns(real) - began
        return max(began + (passed if self._rate == 1 else round(passed * self._rate)) + self._offset_ns, 0)
