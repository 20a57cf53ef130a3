"""What the processes of a session say to each other: as bytes, and over real sockets with descriptors."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from viewfs.errors import NotFoundError, UsageError, ViewfsError
from viewfs.session.wire.channel import Channel, socket_pair
from viewfs.session.wire.protocol import (
    MAX_FDS,
    MAX_FRAME,
    FrameDecoder,
    Message,
    ProtocolError,
    encode,
    failure,
    result_of,
    success,
)

quick = settings(max_examples=100, deadline=None, database=None)

#: Text as Python has it for any path: undecodable bytes are the surrogates U+DC80 to U+DCFF.
paths = st.binary(max_size=20).map(os.fsdecode)
texts = st.text(st.characters(codec="utf-8"), max_size=20) | paths
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
messages = st.dictionaries(texts.filter(lambda name: name != "fds"), values, max_size=5)


def decode(*chunks: bytes) -> list[Message]:
    decoder = FrameDecoder()
    return [message for chunk in chunks for message in decoder.feed(chunk)]


def frame(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


# -- bytes


@quick
@given(messages)
def test_a_message_comes_back_as_it_was(message: Message) -> None:
    assert decode(encode(message)) == [message]


@quick
@given(st.binary(max_size=100))
def test_a_path_of_any_bytes_comes_back(path: bytes) -> None:
    (message,) = decode(encode({"path": os.fsdecode(path)}))
    assert os.fsencode(message["path"]) == path


@quick
@given(st.lists(messages, max_size=5), st.data())
def test_messages_come_through_however_the_stream_is_cut(sent: list[Message], data: st.DataObject) -> None:
    stream = b"".join(map(encode, sent))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    chunks = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert decode(*chunks) == sent


def test_byte_by_byte() -> None:
    decoder = FrameDecoder()
    stream = encode({"id": 1, "op": "status"})
    for index in range(len(stream) - 1):
        assert not list(decoder.feed(stream[index : index + 1]))
    assert list(decoder.feed(stream[-1:])) == [{"id": 1, "op": "status"}]


def only_protocol_errors(stream: bytes) -> None:
    try:
        for message in decode(stream):
            assert isinstance(message, dict)
            assert 0 <= message.get("fds", 0) <= MAX_FDS
    except ProtocolError:
        pass


@quick
@given(st.binary(max_size=200))
def test_hostile_streams(stream: bytes) -> None:
    only_protocol_errors(stream)


@quick
@given(
    st.binary(max_size=100)
    | values.map(lambda value: json.dumps(value).encode())
    | st.text(max_size=40).map(lambda t: t.encode("utf-16"))
)
def test_hostile_frames(body: bytes) -> None:
    only_protocol_errors(frame(body))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b"\xff\xfe",
        b"{}{}",
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"a":' + b"9" * 10_000 + b"}",
    ],
    ids=["empty", "null", "list", "text", "open", "no encoding", "two", "deep lists", "deep objects", "long number"],
)
def test_what_is_no_message(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(frame(body))


@pytest.mark.parametrize("fds", [-1, MAX_FDS + 1, 1.0, "1", None, [], 10**30])
def test_a_wrong_number_of_descriptors(fds: Any) -> None:
    with pytest.raises(ProtocolError):
        decode(frame(json.dumps({"fds": fds}).encode()))


def test_too_long_is_refused_from_its_announcement_on() -> None:
    with pytest.raises(ProtocolError):
        decode(struct.pack(">I", MAX_FRAME + 1))
    assert decode(struct.pack(">I", MAX_FRAME)) == [], "the rest may still come"


def test_too_long_is_not_sent() -> None:
    with pytest.raises(ProtocolError):
        encode({"op": "x" * MAX_FRAME})
    with pytest.raises(ProtocolError):
        encode({}, MAX_FDS + 1)


def test_what_came_before_the_damage_is_kept() -> None:
    decoder = FrameDecoder()
    messages = decoder.feed(encode({"id": 1}) + frame(b"nonsense"))
    assert next(messages) == {"id": 1}
    with pytest.raises(ProtocolError):
        next(messages)


def test_the_caller_s_message_is_left_as_it_is() -> None:
    message: Message = {"op": "attach"}
    assert decode(encode(message, 2)) == [{"op": "attach", "fds": 2}]
    assert message == {"op": "attach"}


def test_replies() -> None:
    request = {"id": 7, "op": "mount"}
    assert result_of(success(request, epoch=3)) == {"epoch": 3}
    assert success(request, epoch=3)["id"] == failure(request, ViewfsError("no"))["id"] == 7
    (over_the_wire,) = decode(encode(failure(request, NotFoundError("no such path", remedy="look elsewhere"))))
    with pytest.raises(NotFoundError) as caught:
        result_of(over_the_wire)
    assert (caught.value.message, caught.value.remedy) == ("no such path", "look elsewhere")


# -- sockets


@pytest.fixture
def pair() -> Iterator[tuple[Channel, Channel]]:
    near, far = socket_pair()
    with closing(Channel(near)) as one, closing(Channel(far)) as other:
        yield one, other


def write_end(reader: int, fd: int, text: bytes) -> bool:
    """Is `fd` the other end of the pipe `reader`?"""
    os.write(fd, text)
    return os.read(reader, 100) == text


def test_messages_go_both_ways(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    one.send({"id": 1})
    one.send({"id": 2})
    assert other.receive() == ({"id": 1}, [])
    assert other.has_more
    assert other.receive() == ({"id": 2}, [])
    assert not other.has_more
    other.send({"id": 3})
    assert one.receive() == ({"id": 3}, [])


def test_more_descriptors_than_the_kernel_takes_at_once(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    read, write = os.pipe()
    try:
        one.send({"id": 1}, [write] * 700)
        one.send({"id": 2}, [read])
        for number, count in ((1, 700), (2, 1)):
            received = other.receive()
            assert received is not None
            message, fds = received
            assert (message["id"], len(fds)) == (number, count)
            assert {os.fstat(fd).st_ino for fd in fds} == {os.fstat(read).st_ino}
            for fd in fds:
                os.close(fd)
    finally:
        os.close(read)
        os.close(write)


def test_descriptors_arrive_with_their_messages(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    pipes = [os.pipe() for _ in range(4)]
    try:
        one.send({"id": 0})
        one.send({"id": 1}, [pipes[0][1]])
        one.send({"id": 2})
        one.send({"id": 3}, [write for _read, write in pipes[1:]])
        for index, expected in enumerate([[], [0], [], [1, 2, 3]]):
            received = other.receive()
            assert received is not None
            message, fds = received
            assert message["id"] == index and len(fds) == len(expected)
            for number, fd in zip(expected, fds, strict=True):
                assert not os.get_inheritable(fd), "close-on-exec"
                assert write_end(pipes[number][0], fd, b"%d" % number)
                os.close(fd)
    finally:
        for end in (fd for pipe in pipes for fd in pipe):
            os.close(end)


def test_the_most_descriptors_that_a_message_can_have(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    for _ in range(3):
        one.send({"op": "take"}, [0] * MAX_FDS)  # (what is on its way counts against RLIMIT_NOFILE, too)
        received = other.receive()
        assert received is not None and len(received[1]) == MAX_FDS
        for fd in received[1]:
            os.close(fd)
    with pytest.raises(ProtocolError):
        one.send({"op": "take"}, [0] * (MAX_FDS + 1))


def test_descriptors_of_a_message_longer_than_the_socket_s_buffer(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    read, write = os.pipe()
    message = {"op": "spawn", "environment": "x" * (4 << 20)}
    sender = threading.Thread(target=one.send, args=(message, [write]))
    sender.start()
    received = other.receive()
    sender.join()
    assert received is not None and received[0] == message | {"fds": 1}
    (fd,) = received[1]
    assert write_end(read, fd, b"hello")
    for end in (read, write, fd):
        os.close(end)


def test_descriptors_that_nobody_took_are_closed(pair: tuple[Channel, Channel]) -> None:
    """The fixture that looks for leaked descriptors judges this one."""
    one, other = pair
    socket.send_fds(one.socket, [encode({"id": 1})], [0, 0])
    one.send({"id": 2}, [0])
    assert other.receive() == ({"id": 1}, []), "it announced none"


def test_fewer_descriptors_than_announced(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    one.socket.sendall(encode({"id": 1}, 3))
    with pytest.raises(ProtocolError, match="where 3 were announced"):
        other.receive()


@pytest.mark.parametrize("cut", [0, 2, 4, 9])
def test_the_end_of_the_connection(pair: tuple[Channel, Channel], cut: int) -> None:
    """Between messages or in the middle of one: there is no next message."""
    one, other = pair
    one.socket.sendall(encode({"id": 1}) + encode({"id": 2})[:cut])
    one.close()
    assert other.receive() == ({"id": 1}, [])
    assert other.receive() is None
    assert other.receive() is None


def test_an_end_that_leaves_messages_unread(pair: tuple[Channel, Channel]) -> None:
    """The kernel says ECONNRESET then (unix(7)); for the reader it is an end like any other."""
    one, other = pair
    one.send({"id": 1})
    other.send({"nobody": "reads this"})
    one.close()
    assert other.receive() == ({"id": 1}, [])
    assert other.receive() is None


def test_an_end_with_descriptors_under_way(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    data = encode({"id": 1}, 1)
    socket.send_fds(one.socket, [data[:-1]], [0])
    one.close()
    assert other.receive() is None


def test_garbage_ends_in_a_protocol_error(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    one.socket.sendall(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(ProtocolError):
        other.receive()


def serve(channel: Channel, *replies: Message) -> threading.Thread:
    """Answer one request with `replies`, the request's number in those that have none."""

    def answer() -> None:
        received = channel.receive()
        assert received is not None
        for fd in received[1]:
            os.close(fd)
        for reply in replies:
            channel.send({"id": received[0]["id"]} | reply, [0] if "fds" in reply else [])

    thread = threading.Thread(target=answer)
    thread.start()
    return thread


def test_a_call_waits_for_its_own_reply(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    thread = serve(other, {"id": None, "ended": 1, "fds": 1}, {"id": 99, "ok": {}}, {"ok": {"epoch": 4}})
    assert one.call("status") == ({"epoch": 4}, [])
    thread.join()
    thread = serve(other, {"ok": {}, "fds": 1})
    _result, (fd,) = one.call("enter", [0])
    os.close(fd)
    thread.join()


def test_a_call_raises_what_the_other_side_says(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    thread = serve(other, {"error": UsageError("no such option").to_json()})
    with pytest.raises(UsageError, match="no such option"):
        one.call("mount", path="/mnt")
    thread.join()


def test_a_call_to_nobody(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    other.close()
    with pytest.raises(OSError):
        one.call("status")


def test_a_call_that_is_never_answered(pair: tuple[Channel, Channel]) -> None:
    one, other = pair

    def end() -> None:
        other.receive()
        other.close()

    thread = threading.Thread(target=end)
    thread.start()
    with pytest.raises(ConnectionError):
        one.call("status")
    thread.join()
