"""Processes started as argument vectors, without a shell, inside limits, in a sandbox where there is one."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MAX_OUTPUT_BYTES: Final = 256 << 10
MAX_TIMEOUT_S: Final = 60.0
MEMORY_BYTES: Final = 1 << 30
FILE_BYTES: Final = 64 << 20
PROCESSES: Final = 256


@dataclass(frozen=True, slots=True)
class Finished:
    """``exit_code`` is negative for a signal; output beyond :data:`MAX_OUTPUT_BYTES` is dropped and said so."""

    exit_code: int
    stdout: str
    stderr: str
    timed_out: bool
    truncated: bool
    sandboxed: bool


def sandbox(root: Path) -> list[str]:
    """The bubblewrap prefix: system read-only, *root* writable, no network, nothing else; empty without bwrap."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return []
    read_only = [
        flag
        for path in ("/usr", "/bin", "/lib", "/lib64", "/etc/alternatives")
        if Path(path).exists()
        for flag in ("--ro-bind", path, path)
    ]
    return [
        bwrap, *read_only, "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp",
        "--bind", str(root), "/work", "--chdir", "/work", "--unshare-all", "--die-with-parent", "--new-session",
        "--cap-drop", "ALL",  # or a workbench of root could mount everything again, writable
        "--clearenv", "--setenv", "PATH", "/usr/bin:/bin", "--setenv", "HOME", "/work", "--setenv", "LANG", "C.UTF-8",
        "--",
    ]  # fmt: skip


def _limits() -> None:
    """In the child, before the program: what it may use at most."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NPROC, (PROCESSES * 4, PROCESSES * 4))
    resource.setrlimit(resource.RLIMIT_CPU, (int(MAX_TIMEOUT_S) + 1, int(MAX_TIMEOUT_S) + 1))


async def run(root: Path, argv: list[str], stdin: str, timeout_s: float, *, unsandboxed: bool = False) -> Finished:
    """Run *argv* in *root*; inside the sandbox it and all that it started are dead when this returns."""
    if not argv or not argv[0]:
        raise ValueError("argv must name a program")
    if not 0 < timeout_s <= MAX_TIMEOUT_S:
        raise ValueError(f"timeout_s must be above 0 and at most {MAX_TIMEOUT_S:.0f}")
    prefix = sandbox(root)
    if not prefix and not unsandboxed:
        raise RuntimeError("there is no bubblewrap, and programs run only inside a sandbox; install bubblewrap")
    process = await asyncio.create_subprocess_exec(
        *prefix,
        *argv,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=root,
        env={"PATH": "/usr/bin:/bin", "HOME": str(root), "LANG": "C.UTF-8"},
        start_new_session=True,
        preexec_fn=_limits,
    )
    out, err = _Kept(), _Kept()
    timed_out = False
    try:
        async with asyncio.timeout(timeout_s):
            await asyncio.gather(
                _feed(process, stdin.encode()), out.read(process.stdout), err.read(process.stderr), process.wait()
            )
    except TimeoutError:
        timed_out = True
    finally:
        _kill(process.pid)
    return Finished(
        exit_code=process.returncode if process.returncode is not None else -signal.SIGKILL,
        stdout=out.text(),
        stderr=err.text(),
        timed_out=timed_out,
        truncated=out.truncated or err.truncated,
        sandboxed=bool(prefix),
    )


class _Kept:
    """What a stream said, up to the limit; the rest is read and dropped, so that nobody blocks."""

    def __init__(self) -> None:
        self._data = b""
        self.truncated = False

    async def read(self, stream: asyncio.StreamReader | None) -> None:
        while stream is not None and (chunk := await stream.read(65536)):
            room = MAX_OUTPUT_BYTES - len(self._data)
            self._data += chunk[:room]
            self.truncated = self.truncated or len(chunk) > room

    def text(self) -> str:
        return self._data.decode("utf-8", "replace")


async def _feed(process: asyncio.subprocess.Process, data: bytes) -> None:
    if process.stdin is None:
        return
    try:
        process.stdin.write(data)
        await process.stdin.drain()
    except (BrokenPipeError, ConnectionResetError):
        return
    finally:
        process.stdin.close()


def _kill(process_group: int) -> None:
    try:
        os.killpg(process_group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
