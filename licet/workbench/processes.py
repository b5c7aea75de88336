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


async def run(root: Path, argv: list[str], stdin: str, timeout_s: float) -> Finished:
    """Run *argv* in *root*; it and all that it started are dead when this returns."""
    if not argv or not argv[0]:
        raise ValueError("argv must name a program")
    if not 0 < timeout_s <= MAX_TIMEOUT_S:
        raise ValueError(f"timeout_s must be above 0 and at most {MAX_TIMEOUT_S:.0f}")
    prefix = sandbox(root)
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
    timed_out = False
    reading = asyncio.gather(
        _feed(process, stdin.encode()), _capped(process.stdout), _capped(process.stderr), process.wait()
    )
    try:
        async with asyncio.timeout(timeout_s):
            _, out, err, _ = await asyncio.shield(reading)
    except TimeoutError:
        timed_out = True
        _kill(process.pid)
        _, out, err, _ = await reading
    finally:
        _kill(process.pid)
    return Finished(
        exit_code=process.returncode if process.returncode is not None else -signal.SIGKILL,
        stdout=out[0].decode("utf-8", "replace"),
        stderr=err[0].decode("utf-8", "replace"),
        timed_out=timed_out,
        truncated=out[1] or err[1],
        sandboxed=bool(prefix),
    )


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


async def _capped(stream: asyncio.StreamReader | None) -> tuple[bytes, bool]:
    """What came, up to the limit, and whether there was more; read to the end so that nobody blocks."""
    kept, truncated = b"", False
    while stream is not None and (chunk := await stream.read(65536)):
        room = MAX_OUTPUT_BYTES - len(kept)
        kept += chunk[:room]
        truncated = truncated or len(chunk) > room
    return kept, truncated


def _kill(process_group: int) -> None:
    try:
        os.killpg(process_group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
