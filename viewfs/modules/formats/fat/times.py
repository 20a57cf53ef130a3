"""Times of FAT and exFAT: local times, in a zone that the volume does not name. Pure, except for finding the zone."""

from __future__ import annotations

import os
import re
import struct
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from io import BytesIO
from zoneinfo import ZoneInfo

from viewfs.modules.api.options import Option

__all__ = ["TIME_ZONE", "Zone", "dos_time", "local_zone", "utc_offset"]

_SECOND = 1_000_000_000
_EPOCH = datetime(1970, 1, 1)
#: Days before each month of a year that is not a leap year. Months after December count as 0 (fs/fat/misc.c).
_DAYS_BEFORE = (0, 0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334, 0, 0, 0)
_OFFSET = re.compile(r"([+-])([0-9]{1,2})(?::?([0-5][0-9]))?")


class Zone:
    """A time zone."""

    def __init__(self, name: str, info: tzinfo) -> None:
        self.name = name
        self._info = info
        self._is_utc = name == "UTC"

    def to_utc(self, seconds: int) -> int:
        """Convert seconds since 1970 in local time to seconds since 1970 in UTC."""
        if self._is_utc:
            return seconds
        local = (_EPOCH + timedelta(seconds=seconds)).replace(tzinfo=self._info)
        offset = local.utcoffset()
        return seconds - int(offset.total_seconds()) if offset is not None else seconds


def local_zone() -> Zone:
    """The zone of this process: that of TZ, or the machine's. (A server that is sealed off can't look it up.)"""
    name = os.environ.get("TZ", "").removeprefix(":")
    try:
        return _named(name) if name and not name.startswith("/") else _from_file(name or "/etc/localtime")
    except (OSError, ValueError):
        pass
    try:
        return _by_rule(name)
    except ValueError:
        return Zone("UTC", UTC)  # as the C library does


def _from_file(path: str) -> Zone:
    with open(path, "rb") as file:
        return Zone("local", ZoneInfo.from_file(file))


def _by_rule(rule: str) -> Zone:
    """A zone from a rule such as “CET-1CEST,M3.5.0,M10.5.0/3” (tzset(3)), as the footer of a TZif file (RFC 9636)."""
    header = b"TZif2" + bytes(15)
    nothing = struct.pack(">6I", 0, 0, 0, 0, 1, 1) + bytes(6) + b"\0"  # one type of local time, and no transitions
    file = BytesIO((header + nothing) * 2 + b"\n" + rule.encode("ascii", "replace") + b"\n")
    zone = ZoneInfo.from_file(file)
    _EPOCH.replace(tzinfo=zone).utcoffset()
    return Zone(rule, zone)


def _named(name: str) -> Zone:
    if name in ("UTC", "UTC0", "Etc/UTC"):
        return Zone("UTC", UTC)
    if found := _OFFSET.fullmatch(name):
        offset = timedelta(hours=int(found[2]), minutes=int(found[3] or 0))
        if offset < timedelta(hours=24):
            return Zone(name, timezone(-offset if found[1] == "-" else offset))
    try:
        return Zone(name, ZoneInfo(name))
    except (OSError, ValueError):  # ZoneInfoNotFoundError is a KeyError
        pass
    except KeyError:
        pass
    raise ValueError("local, UTC, a zone such as Europe/Berlin, or an offset such as +02:00")


def _parse(value: str) -> Zone:
    return local_zone() if value == "local" else _named(value)


#: An option of both modules. The zone is looked up when the option is parsed, before the server is sealed off.
TIME_ZONE: Option[Zone] = Option(
    "tz", _parse, local_zone(), "the time zone of the times in it", "ZONE", show=lambda zone: zone.name
)


def dos_time(date: int, time: int, hundredths: int = 0) -> int:
    """Nanoseconds since 1970 in local time, from a date and a time as FAT packs them.

    Values out of range (such as the 31st of June) count on, as in Linux. `hundredths` of a second are added (0 to 199).
    """
    year, month, day = date >> 9, max(date >> 5 & 15, 1), max(date & 31, 1) - 1
    leap_days = (year + 3) // 4
    if year > 120:  # 2100 has none
        leap_days -= 1
    if year % 4 == 0 and year != 120 and month > 2:
        leap_days += 1
    # 3652 days from 1970 to 1980.
    days = 3652 + year * 365 + leap_days + _DAYS_BEFORE[month] + day
    seconds = (time & 31) * 2 + (time >> 5 & 63) * 60 + (time >> 11) * 3600 + days * 86400
    return seconds * _SECOND + hundredths * 10_000_000


def utc_offset(byte: int) -> int | None:
    """Seconds east of UTC, from exFAT's byte for the UTC offset (section 7.4.10); None if that is not valid."""
    if not byte & 0x80:
        return None
    quarters = byte & 0x7F
    return (quarters - 0x80 if quarters >= 0x40 else quarters) * 900
