#!/usr/bin/env python3
"""The chat server: forwards what each client says to all the others. One thread for each client."""

from __future__ import annotations

import argparse
import socket
import sys
import threading

from channel import Channel, ChannelError
from cryptodev import Device


class Room:
    """Who is there, and how they are told something."""

    def __init__(self) -> None:
        self._members: dict[str, Channel] = {}
        self._lock = threading.Lock()

    def enter(self, name: str, channel: Channel) -> bool:
        """False if there is somebody of that name."""
        with self._lock:
            if name in self._members:
                return False
            self._members[name] = channel
            return True

    def leave(self, name: str) -> None:
        with self._lock:
            del self._members[name]

    def tell_others(self, name: str, message: str) -> None:
        with self._lock:
            for other, channel in self._members.items():
                if other != name:
                    try:
                        channel.send(message.encode())
                    except OSError:
                        pass  # its own thread notices


def serve(connection: socket.socket, room: Room, passphrase: str) -> None:
    """One client, from its first byte to its last."""
    device = Device()
    name = None
    try:
        channel = Channel(connection, device, passphrase, is_server=True)
        first = channel.receive()
        wanted = (first or b"").decode(errors="replace").strip()
        if not wanted or not room.enter(wanted, channel):
            channel.send(b"* that name is taken, or none")
            return
        name = wanted
        channel.send(b"* welcome")
        room.tell_others(name, f"* {name} is here")
        while (message := channel.receive()) is not None:
            room.tell_others(name, f"{name}: {message.decode(errors='replace')}")
    except (ChannelError, OSError) as error:
        print(f"server: {name or 'somebody'}: {error}", file=sys.stderr, flush=True)
    finally:
        if name is not None:
            room.leave(name)
            room.tell_others(name, f"* {name} has left")
        connection.close()
        device.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="default: any; it is printed")
    parser.add_argument("--passphrase", default="")
    arguments = parser.parse_args()
    room = Room()
    with socket.create_server((arguments.host, arguments.port)) as listener:
        print(f"listening on port {listener.getsockname()[1]}", flush=True)
        while True:
            connection, _address = listener.accept()
            threading.Thread(target=serve, args=(connection, room, arguments.passphrase), daemon=True).start()


if __name__ == "__main__":
    main()
