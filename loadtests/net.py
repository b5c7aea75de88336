"""Wires that can be cut or slow: to a network namespace on this machine, and to one server."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import Final

_NOBODY: Final = "02:00:00:00:00:99"
"""A hardware address that nobody has: what is sent there is lost without a sign."""
INSIDE: Final = 10
_NUMBERS: Final = itertools.count()


class Island:
    """Root only. Addresses end in 1 to 9 outside, and in 10 inside."""

    def __init__(self) -> None:
        number = (os.getpid() + next(_NUMBERS)) % 250
        self._name = f"licet-{number}"
        self._near, self._far = f"lcn{number}", f"lcf{number}"
        self._net = f"10.91.{number}"
        _ip("netns", "add", self._name)
        _ip("link", "add", self._near, "type", "veth", "peer", "name", self._far, "netns", self._name)
        for last in range(1, INSIDE):
            _ip("address", "add", f"{self.address(last)}/24", "dev", self._near)
        _ip("link", "set", self._near, "up")
        self._inside("address", "add", f"{self.address(INSIDE)}/24", "dev", self._far)
        self._inside("link", "set", self._far, "up")
        self._inside("link", "set", "lo", "up")

    def address(self, last: int) -> str:
        return f"{self._net}.{last}"

    @property
    def command(self) -> Sequence[str]:
        """Before a command that is to run inside."""
        return ("ip", "netns", "exec", self._name)

    def cut(self, last: int) -> None:
        """Whatever is sent from inside to this address is lost."""
        self._inside("neigh", "replace", self.address(last), "lladdr", _NOBODY, "dev", self._far, "nud", "permanent")

    def heal(self, last: int) -> None:
        self._inside("neigh", "del", self.address(last), "dev", self._far)

    def remove(self) -> None:
        subprocess.run(["ip", "netns", "del", self._name], check=False, capture_output=True)

    def _inside(self, *arguments: str) -> None:
        _ip("-n", self._name, *arguments)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Wire:
    """A wire to a server that can be slow: each piece, either way, comes ``delay_s`` later."""

    def __init__(self, host: str, port: int) -> None:
        self.delay_s = 0.0
        self._to = (host, port)
        self._listening = socket.create_server((host, 0))
        self.port = int(self._listening.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                try:
                    far = socket.create_connection(self._to)
                except OSError:
                    near.close()
                    continue
                for begin, end in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(begin, end), daemon=True).start()

    def _carry(self, begin: socket.socket, end: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := begin.recv(1 << 16):
                time.sleep(self.delay_s)
                end.sendall(data)
        for one in (begin, end):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def remove(self) -> None:
        self._listening.close()
