"""A sandbox for tool servers that a node starts: they see the system's programs and what was named, and nothing else.

bubblewrap makes it out of namespaces: no other processes, no network unless that was named, no files of this node (its
key among them). A server in it can still do whatever its tools can do inside: it bounds what a hole in one reaches.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Final

from sidecar.config import SandboxConfig
from sidecar.node.upstream import UpstreamFailed

SYSTEM: Final = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/alternatives", "/etc/ld.so.cache", "/etc/ssl",
    "/etc/ca-certificates", "/etc/fonts", "/etc/localtime", "/etc/chromium", "/etc/chromium.d",
)  # fmt: skip
NETWORK: Final = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/services")


def prefix(config: SandboxConfig, cwd: Path | None) -> tuple[str, ...]:
    """What stands before the command; :class:`UpstreamFailed` where there is no bubblewrap."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise UpstreamFailed("there is no bubblewrap, and this server starts only inside a sandbox; install bubblewrap")
    python = {sys.prefix, sys.base_prefix}  # servers in our own Python are the usual case
    readable = (*SYSTEM, *(NETWORK if config.network else ()), *sorted(python), *map(_resolved, config.read))
    flags = ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]  # noqa: S108 (inside)
    flags += [flag for path in readable if Path(path).exists() for flag in ("--ro-bind", path, path)]
    flags += [flag for path in config.write for flag in ("--bind", _resolved(path), _resolved(path))]
    flags += ["--unshare-all", *(["--share-net"] if config.network else []), "--die-with-parent", "--new-session"]
    return (bwrap, *flags, *(("--chdir", _resolved(cwd)) if cwd is not None else ("--chdir", "/")), "--")


def _resolved(path: Path) -> str:
    return str(path.resolve())
