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
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/alternatives", "/etc/ld.so.cache", "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf", "/etc/ca-certificates", "/etc/fonts", "/etc/localtime", "/etc/chromium", "/etc/chromium.d",
)  # fmt: skip
NETWORK: Final = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/services")


TMP_BYTES: Final = 256 << 20


def prefix(config: SandboxConfig, cwd: Path | None, home: Path) -> tuple[str, ...]:
    """What stands before the command; *home* is this node's, which nothing in a sandbox sees. :class:`UpstreamFailed`
    where there is no bubblewrap, or a folder is named that would show it."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise UpstreamFailed("there is no bubblewrap, and this server starts only inside a sandbox; install bubblewrap")
    python = [Path(path).resolve() for path in {sys.prefix, sys.base_prefix}]  # servers in our own Python are usual
    named = [path.resolve() for path in (*config.read, *config.write)]
    own = home.resolve()
    if any(path == own or own in path.parents for path in named):
        raise UpstreamFailed(f"a sandbox that shows {own}, the node's own home with its key, is none")
    readable = [*SYSTEM, *(NETWORK if config.network else ()), *map(str, [*sorted(python), *named[: len(config.read)]])]
    flags = ["--proc", "/proc", "--dev", "/dev", "--size", str(TMP_BYTES), "--tmpfs", "/tmp"]  # noqa: S108 (inside)
    flags += [flag for path in readable if Path(path).exists() for flag in ("--ro-bind", path, path)]
    flags += [flag for path in named[len(config.read) :] for flag in ("--bind", str(path), str(path))]
    if any(path in own.parents for path in (*python, *named)):
        flags += ["--tmpfs", str(own)]  # it lies in a folder that is shown
    flags += ["--unshare-all", *(["--share-net"] if config.network else []), "--die-with-parent", "--new-session"]
    # Without this a node of root gives its servers what it takes to mount everything again, writable.
    flags += ["--cap-drop", "ALL"]
    return (bwrap, *flags, "--chdir", str(cwd.resolve()) if cwd is not None else "/", "--")
