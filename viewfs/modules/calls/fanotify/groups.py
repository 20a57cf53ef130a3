"""Groups, their marks and their events: what fanotify(7) says of them, and the kernel does (fs/notify/fanotify).

Nothing here reads a file or knows FUSE. Who waits for an answer gets it by `trio`.
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import trio

from viewfs.errors import os_error
from viewfs.linux.fanotify import Event, Init, Mark

__all__ = ["Group", "Groups", "Happening", "Key", "MarkOn", "Queued", "Scope", "Thing", "described"]

#: What an inode mark, a mount mark and a file-system mark are on.
Scope = Literal["inode", "mount", "filesystem"]
#: Device and inode number; a mount's number; a device.
Key = tuple[Scope, int, int]
#: /proc/sys/fs/fanotify: events of a queue, and marks of a group, where these are limited.
QUEUE_MOST, MARKS_MOST = 16384, 8192
#: FAN_ALLOW, FAN_DENY, FAN_AUDIT.
_ALLOW, _DENY, _AUDIT = 1, 2, 0x10
_NONE = Event(0)


class Thing(NamedTuple):
    """A file or directory to which something happens, as marks can be on it."""

    inode: tuple[int, int]
    #: Of its directory; None: nobody watches that.
    parent: tuple[int, int] | None
    mount: int
    is_directory: bool


class Happening(NamedTuple):
    """Something happens to a thing."""

    thing: Thing
    mask: Event
    pid: int
    tid: int


@dataclass
class MarkOn:
    """A mark of a group."""

    mask: Event = _NONE
    ignored: Event = _NONE
    survives: bool = False
    #: FAN_MARK_IGNORE, whose flags for directories and children count; and not FAN_MARK_IGNORED_MASK.
    heeds_flags: bool = False
    is_evictable: bool = False

    def effective_ignored(self, *, on_directory: bool, is_parent: bool) -> Event:
        """What it has ignored of what happens to a directory, or to something in it."""
        if not on_directory and not is_parent:
            return self.ignored
        flags = self.ignored if self.heeds_flags else Event.ONDIR | (self.mask & Event.EVENT_ON_CHILD)
        if on_directory and not flags & Event.ONDIR:
            return Event(0)
        if is_parent and not flags & Event.EVENT_ON_CHILD:
            return Event(0)
        return self.ignored


@dataclass(eq=False)
class Queued:
    """An event in a queue. `hold` keeps the thing; `drop` lets go of it."""

    mask: Event
    pid: int
    thing: Thing | None
    hold: int = -1
    #: Somebody waits for the answer, and gets it: an errno, or 0.
    answer: Callable[[int], None] | None = None

    @property
    def is_question(self) -> bool:
        return self.answer is not None

    def settle(self, number: int) -> None:
        if self.answer is not None:
            answer, self.answer = self.answer, None
            answer(number)


@dataclass(eq=False)
class Group:
    """What fanotify_init(2) makes."""

    number: int
    flags: Init
    #: How descriptors of events are opened.
    file_flags: int
    #: Closes what an event holds.
    release: Callable[[Queued], None]
    marks: dict[Key, MarkOn] = field(default_factory=dict)
    #: Events that were not read.
    queue: list[Queued] = field(default_factory=list)
    #: What a reader is about to be given, or to be told of.
    on_the_way: list[Queued] = field(default_factory=list)
    #: Questions that readers have, the oldest first, each with the number of its descriptor.
    asked: list[tuple[int, Queued]] = field(default_factory=list)
    #: Called when events have come.
    on_change: Callable[[], None] = lambda: None
    is_closed: bool = False
    _mergeable: dict[tuple[Thing, int], Queued] = field(default_factory=dict)
    _come: trio.Event = field(default_factory=trio.Event)
    _has_overflown: bool = False

    @property
    def priority(self) -> int:
        """Groups of a higher one are asked first."""
        return 2 if self.flags & Init.CLASS_PRE_CONTENT else 1 if self.flags & Init.CLASS_CONTENT else 0

    # -- marks

    def add_mark(self, key: Key, mask: Event, flags: Mark, *, on_directory: bool, written_to: bool) -> None:
        """Raises OSError as fanotify_mark(2) does. `written_to`: somebody has the file open for writing."""
        ignoring = flags & (Mark.IGNORED_MASK | Mark.IGNORE)
        survives = bool(flags & Mark.IGNORED_SURV_MODIFY)
        mark = self.marks.get(key)
        if mark is not None:
            if not mark.is_evictable and flags & Mark.EVICTABLE:
                raise os_error(errno.EEXIST)
            if mark.heeds_flags and flags & Mark.IGNORED_MASK:
                raise os_error(errno.EEXIST)
            if mark.ignored and mark.survives and flags & Mark.IGNORE and not survives:
                raise os_error(errno.EEXIST)
        if ignoring and not survives and not on_directory and key[0] == "inode" and written_to:
            return  # it would be cleared at once
        if mark is None:
            if len(self.marks) >= MARKS_MOST and not self.flags & Init.UNLIMITED_MARKS:
                raise os_error(errno.ENOSPC)
            mark = self.marks[key] = MarkOn(is_evictable=bool(flags & Mark.EVICTABLE))
        elif not flags & Mark.EVICTABLE:
            mark.is_evictable = False
        if not ignoring:
            mark.mask |= mask
            return
        mark.ignored |= mask
        mark.survives |= survives
        mark.heeds_flags |= bool(flags & Mark.IGNORE)

    def remove_mark(self, key: Key, mask: Event, flags: Mark, unseen: Event) -> None:
        """Raises OSError: ENOENT. `unseen`: flags that alone keep no mark."""
        mark = self.marks.get(key)
        if mark is None:
            raise os_error(errno.ENOENT)
        if flags & (Mark.IGNORED_MASK | Mark.IGNORE):
            mark.ignored &= ~(mask | unseen)
        else:
            mark.mask &= ~(mask | unseen)
        if not (mark.mask | mark.ignored) & ~unseen:
            del self.marks[key]

    def flush(self, scope: Scope) -> None:
        """Remove all marks of that kind."""
        self.marks = {key: mark for key, mark in self.marks.items() if key[0] != scope}

    def _marks_on(self, thing: Thing) -> Iterator[tuple[MarkOn, bool]]:
        """Those that see what happens to it; and whether one is on its directory."""
        device, _inode = thing.inode
        for key in (("inode", *thing.inode), ("mount", thing.mount, 0), ("filesystem", device, 0)):
            if (mark := self.marks.get(key)) is not None:
                yield mark, False
        if thing.parent is not None and (mark := self.marks.get(("inode", *thing.parent))) is not None:
            flags = mark.mask | (mark.ignored if mark.heeds_flags else 0)
            if flags & Event.EVENT_ON_CHILD:
                yield mark, True

    def interest(self, thing: Thing, mask: Event) -> Event:
        """Which of these events the group is told of, or asked about."""
        wanted = ignored = Event(0)
        for mark, is_parent in self._marks_on(thing):
            ignored |= mark.effective_ignored(on_directory=thing.is_directory, is_parent=is_parent)
            if thing.is_directory and not mark.mask & Event.ONDIR:
                continue
            if is_parent and not mark.mask & Event.EVENT_ON_CHILD:
                continue
            wanted |= mark.mask
        return mask & wanted & ~ignored & ~(Event.ONDIR | Event.EVENT_ON_CHILD)

    def clear_ignored(self, thing: Thing) -> None:
        """The thing was modified: what is ignored until then no longer is."""
        for mark, _is_parent in self._marks_on(thing):
            if not mark.survives:
                mark.ignored = Event(0)

    # -- events

    def tell(self, happening: Happening, mask: Event, hold: Callable[[], int]) -> None:
        """Queue an event, or add it to one that waits. `hold` makes the descriptor that it keeps."""
        pid = self._shown_pid(happening)
        waiting = self._mergeable.get((happening.thing, pid))
        if waiting is not None:
            waiting.mask |= mask
            return
        if self._is_full():
            self._overflow()
            return
        event = Queued(mask, pid, happening.thing)
        event.hold = hold()
        self._mergeable[happening.thing, pid] = event
        self._put(event)

    def ask(
        self, happening: Happening, mask: Event, hold: Callable[[], int], answer: Callable[[int], None]
    ) -> Queued | None:
        """Queue a question. None: there is no room, which allows it."""
        if self._is_full():
            self._overflow()
            return None
        event = Queued(mask, self._shown_pid(happening), happening.thing, answer=answer)
        event.hold = hold()
        self._put(event)
        return event

    def _shown_pid(self, happening: Happening) -> int:
        return happening.tid if self.flags & Init.REPORT_TID else happening.pid

    def _is_full(self) -> bool:
        return len(self.queue) >= QUEUE_MOST and not self.flags & Init.UNLIMITED_QUEUE

    def _overflow(self) -> None:
        if not self._has_overflown:
            self._has_overflown = True
            self._put(Queued(Event.Q_OVERFLOW, 0, None))

    def _put(self, event: Queued) -> None:
        self.queue.append(event)
        self._wake()

    def _wake(self) -> None:
        self._come.set()
        self._come = trio.Event()
        self.on_change()

    async def wait(self) -> None:
        """Wait until an event has come, or the group is closed."""
        await self._come.wait()

    def take(self, room: int, size_of: Callable[[Queued], int]) -> list[Queued]:
        """Take as many events as fit into `room` bytes out of the queue. Raises OSError: EINVAL if none does."""
        taken: list[Queued] = []
        for event in self.queue:
            room -= size_of(event)
            if room < 0:
                break
            taken.append(event)
        if self.queue and not taken:
            raise os_error(errno.EINVAL)
        del self.queue[: len(taken)]
        self.on_the_way += taken
        for event in taken:
            if event.mask & Event.Q_OVERFLOW:
                self._has_overflown = False
            elif event.thing is not None and self._mergeable.get((event.thing, event.pid)) is event:
                del self._mergeable[event.thing, event.pid]
        return taken

    def put_back(self, events: Iterable[Queued]) -> None:
        """Events that a reader has not got come first again."""
        back = [event for event in events if not self.is_closed or self._settle_closed(event)]
        self.arrived(back)
        if back:
            self.queue[:0] = back
            self._wake()

    def arrived(self, events: Iterable[Queued]) -> None:
        """They are no longer on the way."""
        gone = set(events)
        self.on_the_way = [event for event in self.on_the_way if event not in gone]

    def _settle_closed(self, event: Queued) -> bool:
        self.let_go(event)
        return False

    def let_go(self, event: Queued, number: int = 0) -> None:
        """An event is done with; who waits for it gets `number`."""
        self.arrived([event])
        event.settle(number)
        self.release(event)

    def respond(self, fd: int, response: int) -> None:
        """Answer the question that a reader was given with the descriptor `fd`. Raises OSError: EINVAL, ENOENT."""
        if fd < 0 or response & ~_AUDIT not in (_ALLOW, _DENY):
            raise os_error(errno.EINVAL)
        if response & _AUDIT and not self.flags & Init.ENABLE_AUDIT:
            raise os_error(errno.EINVAL)
        found = next((one for one in self.asked if one[0] == fd), None)
        if found is None:
            raise os_error(errno.ENOENT)
        self.asked.remove(found)
        self.let_go(found[1], errno.EPERM if response & _DENY else 0)

    def withdraw(self, event: Queued) -> None:
        """Who waits for an answer does so no longer."""
        event.answer = None
        if event in self.queue:
            self.queue.remove(event)
            self.release(event)
        for one in [one for one in self.asked if one[1] is event]:
            self.asked.remove(one)
            self.release(event)

    def close(self) -> None:
        """The group is closed: all that it was asked is allowed."""
        self.is_closed = True
        self.marks.clear()
        for event in (*self.queue, *self.on_the_way, *(event for _fd, event in self.asked)):
            self.let_go(event)
        self.queue.clear()
        self.on_the_way.clear()
        self.asked.clear()
        self._mergeable.clear()
        self._wake()


def described(group: Group, before: str) -> str:
    """What /proc/PID/fdinfo says of a group, behind what it says `before` of every descriptor (proc_pid_fdinfo(5))."""
    lines = [f"fanotify flags:{group.flags:x} event-flags:{group.file_flags:x}"]
    for (scope, first, second), mark in group.marks.items():
        flags = (
            Mark.IGNORED_SURV_MODIFY * mark.survives | Mark.EVICTABLE * mark.is_evictable
            | Mark.IGNORE * mark.heeds_flags
        )  # fmt: skip
        masks = f"mask:{mark.mask:x} ignored_mask:{mark.ignored:x}"
        device = os.major(first) << 20 | os.minor(first)
        match scope:
            case "inode":
                lines.append(f"fanotify ino:{second:x} sdev:{device:x} mflags: {flags:x} {masks} ")
            case "mount":
                lines.append(f"fanotify mnt_id:{first:x} mflags:{flags:x} {masks}")
            case "filesystem":
                lines.append(f"fanotify sdev:{device:x} mflags:{flags:x} {masks}")
    return before + "".join(f"{line}\n" for line in lines)


class Groups:
    """All groups: what happens goes through these."""

    def __init__(self) -> None:
        self._groups: OrderedDict[int, Group] = OrderedDict()

    def __iter__(self) -> Iterator[Group]:
        return iter(list(self._groups.values()))

    def __bool__(self) -> bool:
        return bool(self._groups)

    def add(self, group: Group) -> None:
        """It is told after those of a higher priority, and those that were there."""
        everyone = sorted((*self._groups.values(), group), key=lambda one: -one.priority)
        self._groups = OrderedDict((one.number, one) for one in everyone)

    def get(self, number: int) -> Group | None:
        return self._groups.get(number)

    def remove(self, number: int) -> None:
        group = self._groups.pop(number, None)
        if group is not None:
            group.close()

    def has_mark(self, key: Key) -> bool:
        return any(key in group.marks for group in self)

    def modified(self, thing: Thing) -> None:
        """It was modified in a way of which groups are not told: by truncate(2)."""
        for group in self:
            group.clear_ignored(thing)

    def tell(self, happening: Happening, hold: Callable[[], int]) -> None:
        """Something has happened."""
        for group in self:
            mask = group.interest(happening.thing, happening.mask)
            if happening.mask & Event.MODIFY:
                group.clear_ignored(happening.thing)
            if mask:
                group.tell(happening, mask, hold)

    def who_is_asked(self, thing: Thing, event: Event) -> list[Group]:
        """The groups that are to be asked before this happens, one after the other."""
        return [group for group in self if group.priority and group.interest(thing, event)]
