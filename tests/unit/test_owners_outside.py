"""The process that tells owners outside of a view: clients come and go, and are killed in the middle of a question."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

from viewfs.session.agent.owners_outside import _ASK, OwnersOutside, _answer


def test_a_client_that_is_killed_before_it_has_its_answer(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    answering = threading.Thread(target=_answer, args=[theirs])
    answering.start()
    first, second = OwnersOutside(ours), OwnersOutside(ours)
    fd = os.open(tmp_path, os.O_PATH)
    try:
        for _question in range(3):  # of which it reads no answer
            socket.send_fds(first._channel, [_ASK], [fd])
        first._channel.close()
        assert second.of(fd, os.stat(tmp_path)) == (os.getuid(), os.getgid())
    finally:
        os.close(fd)
        second._channel.close()
        ours.close()
        answering.join()
