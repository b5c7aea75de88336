"""Workbenches for tests, forked from one process that has imported what takes a second to import.

``python -S zygote.py SOCKET ROOT`` hands its input and output to that process, which forks the real workbench on them,
and lives until that ends. Ended itself, its pipes close, and a workbench ends with its input.
"""

from __future__ import annotations

import array
import atexit
import os
import signal
import socket
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path


def _ask(where: str, root: str) -> None:
    """In the little process: pass on input and output, then wait for the end."""
    with socket.socket(socket.AF_UNIX) as asked:
        asked.connect(where)
        rights = array.array("i", [0, 1, 2])
        asked.sendmsg([root.encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        for number in (0, 1):
            os.close(number)
        asked.recv(1)


def _serve(listening: socket.socket) -> None:
    """In the prepared process: one child for each who asks."""
    from licet.workbench.server import build

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        asked, _ = listening.accept()
        root, rights, _, _ = asked.recvmsg(4096, socket.CMSG_SPACE(3 * 4))
        given = array.array("i", rights[0][2][: 3 * 4]) if rights else array.array("i")
        if len(given) == 3 and not os.fork():
            listening.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for number, inherited in enumerate(given):
                os.dup2(inherited, number)
                os.close(inherited)
            os.setsid()
            build(Path(root.decode())).run()
            os._exit(0)
        for inherited in given:
            os.close(inherited)
        asked.close()


@cache
def _prepared() -> str:
    """The socket of the prepared process of this test process."""
    where = str(Path(tempfile.mkdtemp(prefix="licet-")) / "zygote")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(where)
    listening.listen(64)
    number = listening.fileno()
    script = f"import socket; from tests.zygote import _serve; _serve(socket.socket(fileno={number}))"
    child = subprocess.Popen([sys.executable, "-c", script], pass_fds=[number])
    atexit.register(child.kill)
    listening.close()
    return where


def command(root: Path) -> tuple[str, ...]:
    """What starts a workbench over *root*, as a node's configuration has it."""
    return (sys.executable, "-S", "-E", __file__, _prepared(), str(root))


if __name__ == "__main__":
    _ask(sys.argv[1], sys.argv[2])
