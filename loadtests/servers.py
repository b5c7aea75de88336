"""Real servers for load and for tests, each on a free port with a directory of its own, ended with whoever started it."""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final

import psutil

WITHIN_S: Final = 20.0


def free_port() -> int:
    return free_ports(1)


def free_ports(count: int) -> int:
    """The first of so many in a row. Below those that systems give to connections that are made, which could take one
    before whoever asked has it."""
    while True:
        first = random.randrange(10_000, 32_000)
        with contextlib.ExitStack() as probes:
            try:
                for port in range(first, first + count):
                    probes.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
        return first


def await_port(port: int, process: subprocess.Popen[bytes], what: str) -> None:
    deadline = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.01)
    raise AssertionError(f"{what} did not start")


class Redis:
    """It can be stopped and started again with or without its memory."""

    def __init__(self, home: Path, host: str = "127.0.0.1") -> None:
        self.home = home
        self.host = host
        self.port = free_port()
        self.url = f"redis://{host}:{self.port}/0"

    def start(self, *more: str) -> None:
        binary = shutil.which("redis-server")
        assert binary, "make debian installs redis-server"
        command = [binary, "--port", str(self.port), "--dir", str(self.home), "--save", "", *more]
        command += ["--bind", *sorted({"127.0.0.1", self.host}), "--protected-mode", "no"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        await_port(self.port, self.process, "redis-server")

    def stop(self) -> None:
        """As by a power failure."""
        self.process.kill()
        self.process.wait()

    def remove(self) -> None:
        if hasattr(self, "process"):
            self.stop()


class Postgres:
    """A cluster of its own. PostgreSQL does not run as root, so then it is the user of the Debian package."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.host = host
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
        assert found, "make debian installs postgresql"
        self._binaries = found[-1].parent
        self._user = "postgres" if os.geteuid() == 0 else None
        self.home = Path(tempfile.mkdtemp(prefix="licet-postgres-"))
        if self._user is not None:
            entry = pwd.getpwnam(self._user)
            os.chown(self.home, entry.pw_uid, entry.pw_gid)
        self._data = self.home / "data"
        self._run(
            "initdb", "-D", str(self._data), "-U", "licet", "-A", "trust", "--no-sync", "-E", "UTF8", "--no-locale"
        )
        with (self._data / "pg_hba.conf").open("a") as rules:
            rules.write("host all all 10.91.0.0/16 trust\n")
        self.port = free_port()

    def _run(self, name: str, *arguments: str) -> None:
        command = [str(self._binaries / name), *arguments]
        subprocess.run(command, user=self._user, cwd=self.home, env=_plain(), stdout=subprocess.DEVNULL, check=True)

    def start(self, *settings: str) -> None:
        given = [part for setting in ("fsync=on", "max_connections=60", *settings) for part in ("-c", setting)]
        command = [str(self._binaries / "postgres"), "-D", str(self._data), "-p", str(self.port)]
        command += ["-k", str(self.home), "-c", f"listen_addresses=127.0.0.1,{self.host}", *given]
        log = (self.home / "log").open("ab")
        self.process = subprocess.Popen(command, user=self._user, cwd=self.home, env=_plain(), stdout=log, stderr=log)
        log.close()
        await_port(self.port, self.process, "postgres")
        # It accepts connections before it takes them: until it has recovered it says so.
        deadline = time.monotonic() + WITHIN_S
        ready = [str(self._binaries / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        while subprocess.run(ready, env=_plain(), check=False).returncode and time.monotonic() < deadline:
            time.sleep(0.02)

    def database(self, name: str) -> str:
        """The URL of a new database."""
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "licet", name)
        return self.url(name)

    def drop(self, name: str) -> None:
        self._run("dropdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "licet", "--force", name)

    def url(self, name: str) -> str:
        return f"postgresql://licet@{self.host}:{self.port}/{name}"

    def kill(self) -> None:
        """As by a power failure of its machine: the server and every session at once."""
        self._signal(signal.SIGKILL)
        self.process.wait()

    def pause(self) -> None:
        """It says nothing any more, and no connection is closed."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        """To the server first, so that it starts nothing more; each session is a process group of its own."""
        server = psutil.Process(self.process.pid)
        server.send_signal(number)
        for session in server.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                session.send_signal(number)

    def remove(self) -> None:
        if hasattr(self, "process") and self.process.poll() is None:
            self.kill()
        shutil.rmtree(self.home, ignore_errors=True)


class Pooler:
    """A PgBouncer in session mode before *postgres*, as installed by Debian; it does not run as root either."""

    def __init__(self, postgres: Postgres, home: Path) -> None:
        binary = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
        assert binary, "make debian installs pgbouncer"
        self.port = free_port()
        users, config = home / "users.txt", home / "pgbouncer.ini"
        users.write_text('"licet" ""\n')
        config.write_text(
            f"[databases]\n* = host=127.0.0.1 port={postgres.port}\n[pgbouncer]\npool_mode = session\nunix_socket_dir =\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {self.port}\nauth_type = trust\nauth_file = {users}\n"
        )
        user = "postgres" if os.geteuid() == 0 else None
        for path in (home, users, config):
            path.chmod(0o755 if path.is_dir() else 0o644)
        command = [binary, str(config)]
        self._process = subprocess.Popen(
            command, user=user, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        await_port(self.port, self._process, "pgbouncer")

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def _plain() -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
