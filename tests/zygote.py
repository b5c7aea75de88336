"""Processes for tests, forked from one that has imported what takes a second to import: workbenches and ``licet``.

``python -S zygote.py SOCKET ROOT`` hands its input and output to that process, which forks the real workbench on them,
and lives until that ends. Ended itself, its pipes close, and a workbench ends with its input. The command line is
imported anew in each fork, under the environment that it was given; only what it imports from elsewhere is there.
"""

from __future__ import annotations

import array
import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

MAX_ASKED = 1 << 18


def _send(where: str, asked: dict[str, Any], given: list[int]) -> bytes:
    """Ask for a process with these files as its input, output and errors; its exit code, when it has ended and told."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(where)
        rights = array.array("i", given)
        connection.sendmsg([json.dumps(asked).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        for number in given:
            os.close(number)
        return connection.recv(1)


def _serve(listening: socket.socket) -> None:
    """In the prepared process: one child for each who asks."""
    from licet.workbench.server import build

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        connection, _ = listening.accept()
        data, rights, _, _ = connection.recvmsg(MAX_ASKED, socket.CMSG_SPACE(3 * 4))
        given = array.array("i", rights[0][2][: 3 * 4]) if rights else array.array("i")
        asked = json.loads(data) if len(given) == 3 else {}
        if "words" in asked:
            _import_for_licet()
        if asked and not os.fork():
            listening.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for number, inherited in enumerate(given):
                os.dup2(inherited, number)
                os.close(inherited)
            os.setsid()
            if "words" not in asked:
                build(Path(asked["root"])).run()
            elif child := os.fork():  # which may become another program
                _, ended = os.waitpid(child, 0)
                connection.send(bytes([os.waitstatus_to_exitcode(ended) % 256]))
            else:
                os._exit(_run_licet(asked["words"], asked["environment"], asked["directory"]))
            os._exit(0)
        for inherited in given:
            os.close(inherited)
        connection.close()


@cache
def _import_for_licet() -> None:
    """Everything that the command line imports from elsewhere; itself it is forgotten again."""
    import importlib
    import pkgutil

    import licet.cli

    for module in pkgutil.iter_modules(licet.cli.__path__, "licet.cli."):
        importlib.import_module(module.name)
    for name in [name for name in sys.modules if name.partition(".")[0] == "licet"]:
        del sys.modules[name]


def _run_licet(words: list[str], environment: dict[str, str], directory: str) -> int:
    """In a fork: as ``python -m licet``; the exit code."""
    import runpy
    import traceback

    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["licet", *words]
    try:
        runpy.run_module("licet", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


@cache
def _prepared() -> str:
    """The socket of the prepared process of this test process."""
    where = str(Path(tempfile.mkdtemp(prefix="licet-")) / "zygote")
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
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


def licet(words: list[str], environment: dict[str, str], directory: Path) -> tuple[int, str, str]:
    """(exit code, output, errors) of ``licet WORDS…``, once it has ended."""
    asked = {"words": words, "environment": environment, "directory": str(directory)}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given = [os.open(os.devnull, os.O_RDONLY), os.dup(out.fileno()), os.dup(err.fileno())]
        told = _send(_prepared(), asked, given)
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode())
    assert told, f"it ended without an exit code: {said[1]}"
    return told[0], said[0], said[1]


if __name__ == "__main__":
    _send(sys.argv[1], {"root": sys.argv[2]}, [0, 1, os.dup(2)])
