"""The server of a module that answers system calls: it takes requests from the notifier, and has handlers answer them.

It answers each call once, even if a notifier that takes over asks again.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import trio

from viewfs.linux.plain import socket
from viewfs.linux.scm import parked, rights
from viewfs.linux.signatures import Argument, parse_signature
from viewfs.modules.api.calls import GO_ON, Caller, CallModule, Descriptor, File, Handed, Handler, Opened
from viewfs.modules.framework.call_arguments import Answer as Made
from viewfs.modules.framework.call_arguments import decode
from viewfs.mounts.fuse.counters import Counters
from viewfs.python import print_traceback
from viewfs.session.calls import messages
from viewfs.session.calls.messages import (
    COUNTED,
    ERRNO_END,
    FACTS,
    MOST,
    PART_MOST,
    Answer,
    Request,
    pack_answer,
    unpack_request,
)
from viewfs.session.calls.slots import COUNT

__all__ = ["CallServer", "calls_of_module"]

#: So many calls are remembered that were answered. (No more than `COUNT` can be asked again.)
_REMEMBERED = 2 * COUNT


def calls_of_module(module: type[CallModule] | CallModule) -> list[tuple[str, str, list[Handler]]]:
    """What it answers: call, signature and handlers, the first for which it is. One for the call itself comes first;
    unlinkat(2) is of two families."""
    found: dict[str, tuple[str, list[Handler]]] = {}
    for handler in sorted(module.handlers(), key=lambda handler: handler.family is not None):
        for name, signature in handler.signatures.items():
            found.setdefault(name, (signature, []))[1].append(handler)
    return [(name, *found[name]) for name in sorted(found)]


class _Call(NamedTuple):
    name: str
    signature: tuple[Argument, ...]
    #: For which family, and what is called.
    methods: list[tuple[str | None, Callable[..., Any]]]


class CallServer:
    """Answers calls for one module."""

    def __init__(self, module: CallModule, fd: int, counters: Counters) -> None:
        """It owns the socket `fd`."""
        self._module = module
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fd)  # (all that could be asked for)
        self._buffer = memoryview(bytearray(MOST))
        self._row = counters.rows[0]
        self._calls = [
            _Call(name, parse_signature(signature), [(one.family, getattr(module, one.method)) for one in handlers])
            for name, signature, handlers in calls_of_module(module)
        ]
        module.hear_more = self._hear_more
        self._nursery: trio.Nursery | None = None
        self._has_choice = type(module).owns is not CallModule.owns
        #: Ids of calls that were begun, and of those of them that were answered, the oldest first.
        self._begun: set[int] = set()
        self._answered: deque[int] = deque()
        #: What is to be told of the numbers that a caller has got.
        self._handed: dict[int, Callable[[list[int], bool], None]] = {}
        #: What is waited for.
        self._under_way: dict[int, trio.CancelScope] = {}

    def serve(self, *, resumed: bool) -> None:
        """Answer calls until the module is unloaded. `resumed`: another server has answered some before."""
        waiting = self._begin_anew() if resumed else []
        try:
            if self._module.waits():
                trio.run(self._serve_async, waiting)
                return
            for request in waiting:
                self._begin(request, None)
            while packet := self._receive():
                self._hear(packet, None)
        finally:
            self._module.end()

    def _receive(self) -> bytes:
        """The next packet; empty when the module was unloaded."""
        return bytes(self._buffer[: self._socket.recv_into(self._buffer)])

    def _begin_anew(self) -> list[Request]:
        """Find out what the server before this one has not begun, and tell the notifier, which has the rest fail. (What
        was asked for again may have been begun when it was asked for first.)"""
        number = int.from_bytes(os.getrandom(7), sys.byteorder) + 1
        self._send(Answer(0, messages.BEGUN, number))
        found: dict[int, Request] = {}
        while packet := self._receive():
            request = unpack_request(packet)
            if request.kind == messages.MARK and request.id == number:
                break
            if request.kind == messages.MARK and request.id == 0:  # another notifier, which may not know that
                self._send(Answer(0, messages.BEGUN, number))
            if request.kind == messages.CALL:
                found[request.id] = request
        ids = b"".join(number.to_bytes(8, sys.byteorder) for number in found)
        self._send(Answer(0, messages.HAS, outs=((0, ids),)))
        return list(found.values())

    async def _serve_async(self, waiting: list[Request]) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._module.run)
            for request in waiting:
                self._begin(request, nursery)
            while True:
                await trio.lowlevel.wait_readable(self._socket.fileno())
                try:
                    packet = self._socket.recv(MOST, socket.MSG_DONTWAIT)
                except BlockingIOError:  # somebody has heard it meanwhile (`_hear_more`)
                    continue
                if not packet:
                    break
                self._hear(packet, nursery)
            nursery.cancel_scope.cancel()

    def _hear_more(self) -> None:
        """Take all that has come. (The end is for whoever waits for more.)"""
        while True:
            try:
                packet = self._socket.recv(MOST, socket.MSG_DONTWAIT)
            except OSError:
                return
            if not packet:
                return
            self._hear(packet, self._nursery)

    def _hear(self, packet: bytes, nursery: trio.Nursery | None) -> None:
        request = unpack_request(packet)
        if request.kind in (messages.CALL, messages.AGAIN):
            self._begin(request, nursery)
        elif request.kind == messages.CANCEL and (scope := self._under_way.get(request.id)) is not None:
            scope.cancel()
        elif request.kind == messages.GIVEN and (tell := self._handed.pop(request.id, None)) is not None:
            numbers, failed = request.copied[0], bool(request.copied[1])
            tell(list(memoryview(numbers).cast("i")), failed)  # type: ignore[arg-type]

    def _begin(self, request: Request, nursery: trio.Nursery | None) -> None:
        if request.id in self._begun:
            return
        self._begun.add(request.id)
        begun_ns = time.perf_counter_ns()
        self._row.begin(begun_ns)
        try:
            result, make = self._handle(request)
            if isinstance(result, Awaitable):
                if nursery is None:
                    raise TypeError("a handler that waits has to be an async method")
                nursery.start_soon(self._wait_for, request, begun_ns, result, make)
                return
            answer = self._answer_of(request, result, make)
        except Exception as error:
            answer = self._failure(request, error)
        finally:
            self._row.begin(0)
        self._finish(request, begun_ns, answer)

    def _handle(self, request: Request) -> tuple[Any, Callable[[Any], Made]]:
        """What the handler returns, and what makes an answer of that."""
        call = self._calls[request.which]
        for family, method in call.methods:
            decoded = decode(call.name, family, call.signature, request.bits, request.words, request.copied)
            if decoded.arguments is None:
                continue
            caller = _caller(call.name, request)
            if self._has_choice and not self._module.owns(caller, *decoded.arguments):
                break
            return method(caller, *decoded.arguments), decoded.answer
        return GO_ON, decoded.answer

    async def _wait_for(
        self, request: Request, begun_ns: int, result: Awaitable[Any], make: Callable[[Any], Made]
    ) -> None:
        answer = Answer(request.id, messages.CANCELLED)
        with trio.CancelScope() as scope:
            self._under_way[request.id] = scope
            try:
                answer = self._answer_of(request, await result, make)
            except Exception as error:
                answer = self._failure(request, error)
            finally:
                del self._under_way[request.id]
        self._finish(request, begun_ns, answer)

    def _failure(self, request: Request, error: Exception) -> Answer:
        """An OSError is the caller's errno. Everything else is a defect of the module."""
        number = error.errno if isinstance(error, OSError) else None
        if isinstance(number, int) and 0 < number < ERRNO_END:
            return Answer(request.id, messages.ERROR, number)
        print_traceback()
        return Answer(request.id, messages.ERROR, errno.EIO)

    def _answer_of(self, request: Request, result: Any, make: Callable[[Any], Made]) -> Answer:
        """Raises whatever `make` does for a result that the call can't have."""
        if result is GO_ON:
            return Answer(request.id, messages.GO_ON)
        made = make(result)
        match made.descriptor:
            case Descriptor(fd, close_on_exec):
                return Answer(request.id, messages.DESCRIPTOR, 0, close_on_exec, descriptor=fd)
            case Opened(path, flags, is_special):
                flags |= messages.IS_SPECIAL if is_special else 0
                return Answer(request.id, messages.OPENED, flags, outs=((0, os.fsencode(path)),))
            case Handed() as handed:
                return self._handing(request, made.value, handed)
            case File(content, close_on_exec):
                if len(content) > PART_MOST:
                    raise ValueError(f"a file of {len(content)} bytes, which is more than {PART_MOST}")
                return Answer(request.id, messages.FILE, 0, close_on_exec, ((0, content),))
        if not (-1 << 63 <= made.value <= -ERRNO_END or 0 <= made.value < 1 << 63):
            raise ValueError(f"{made.value}, which is no result of a system call")
        return Answer(request.id, messages.ANSWER, made.value, outs=made.outs)

    def _handing(self, request: Request, value: int, handed: Handed) -> Answer:
        """Raises OSError if descriptors can't be handed out."""
        signature = self._calls[request.which].signature
        written = next(number for number, argument in enumerate(signature) if argument.is_out)
        if not handed.fds:
            handed.given([], False)
            return Answer(request.id, messages.ANSWER, value, outs=((written, handed.data),))
        places = b"".join(messages.NUMBER.pack(one.offset, one.good, one.close_on_exec) for one in handed.fds)
        fds = [one.fd for one in handed.fds]
        try:
            queue = parked(*fds)
        finally:
            for fd in fds:
                os.close(fd)
        self._handed[request.id] = handed.given
        outs = ((written, handed.data), (messages.NUMBERS, places))
        return Answer(request.id, messages.HANDED, value, outs=outs, descriptor=queue)

    def _finish(self, request: Request, begun_ns: int, answer: Answer) -> None:
        which = min(request.which, COUNTED)
        written = sum(len(data) for _argument, data in answer.outs)
        self._row.count(which, written, failed=answer.kind == messages.ERROR)
        self._row.count_latency(which, time.perf_counter_ns() - begun_ns)
        self._answered.append(request.id)
        if len(self._answered) > _REMEMBERED:
            self._begun.discard(self._answered.popleft())
        self._send(answer)
        if answer.kind == messages.HANDED:
            os.close(answer.descriptor or 0)

    def _send(self, answer: Answer) -> None:
        try:
            if isinstance(answer.descriptor, int):
                self._socket.sendmsg([pack_answer(answer)], rights([answer.descriptor]))
            else:
                self._socket.send(pack_answer(answer))
        except OSError as error:
            if answer.descriptor is None and error.errno != errno.EMSGSIZE:
                raise
            # What was to be handed out was no open descriptor; or buffers of sockets are small here.
            self._socket.send(pack_answer(Answer(answer.id, messages.ERROR, error.errno or errno.EIO)))


def _caller(name: str, request: Request) -> Caller:
    facts, cwd = request.copied[messages.CALLER], request.copied[messages.CWD]
    assert isinstance(facts, bytes)
    assert isinstance(cwd, bytes)
    relative = frozenset(request.copied.get(messages.RELATIVE, b""))  # type: ignore[arg-type]
    pid, tid, uid, gid = FACTS.unpack(facts)
    return Caller(name, pid, tid, uid, gid, request.bits, os.fsdecode(cwd), request.words, relative)
