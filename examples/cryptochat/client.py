#!/usr/bin/env python3
"""The chat client: says what it reads from standard input, a line a message, and prints what others say."""

from __future__ import annotations

import argparse
import socket
import sys
import threading

from channel import Channel, ChannelError
from cryptodev import Device


def print_messages(channel: Channel) -> None:
    try:
        while (message := channel.receive()) is not None:
            print(message.decode(errors="replace"), flush=True)
    except (ChannelError, OSError) as error:
        print(f"client: {error}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--passphrase", default="")
    parser.add_argument("name")
    arguments = parser.parse_args()
    try:
        device = Device()
        connection = socket.create_connection((arguments.host, arguments.port))
        channel = Channel(connection, device, arguments.passphrase, is_server=False)
        channel.send(arguments.name.encode())
    except (ChannelError, OSError) as error:
        sys.exit(f"client: {error}")
    listener = threading.Thread(target=print_messages, args=[channel])
    listener.start()
    try:
        for line in sys.stdin:
            channel.send(line.rstrip("\n").encode())
        connection.shutdown(socket.SHUT_WR)
    except OSError as error:
        print(f"client: {error}", file=sys.stderr)  # the server has gone
    listener.join()
    connection.close()
    device.close()


if __name__ == "__main__":
    main()
