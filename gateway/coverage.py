"""Which policies no case would miss, found in a process of its own: it takes seconds, and nobody may wait for it.

``python -m gateway.coverage BUNDLE-FILE`` prints it as JSON. The file is the gateway's own; its seal is not looked at.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Final

import msgspec

from trust.canonical import read_object
from trust.policy import cases
from trust.policy.bundle import Content, compile_bundle

TIMEOUT_S: Final = 300.0
_NICE: Final = 10


class Coverage(msgspec.Struct, frozen=True):
    """Of one bundle: policies that no case would miss, and policies that no tool of today reaches; or that this could
    not be found out."""

    unguarded: frozenset[str] = frozenset()
    idle: frozenset[str] = frozenset()
    known: bool = True


class Coverages:
    """Of the bundle that is active: begun when somebody asks, and known some seconds later."""

    def __init__(self, bundles: Path) -> None:
        self._bundles = bundles
        self._digest = ""
        self._finding: asyncio.Task[Coverage] | None = None

    def of(self, digest: str) -> Coverage | None:
        """What is known of the bundle with this *digest*; None until it is."""
        if self._digest != digest:
            self.close()
            self._digest = digest
            self._finding = asyncio.create_task(_found(self._bundles / f"{digest}.bundle"))
        done = self._finding is not None and self._finding.done() and not self._finding.cancelled()
        return self._finding.result() if self._finding is not None and done else None

    def close(self) -> None:
        if self._finding is not None:
            self._finding.cancel()


async def _found(path: Path) -> Coverage:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway.coverage", str(path), stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(TIMEOUT_S):
            told, _ = await process.communicate()
        return msgspec.json.decode(told, type=Coverage) if process.returncode == 0 else Coverage(known=False)
    except (TimeoutError, msgspec.DecodeError):
        return Coverage(known=False)
    finally:
        if process.returncode is None:
            process.kill()


def main(path: Path) -> None:
    os.nice(_NICE)
    content = msgspec.convert(read_object(path.read_bytes().partition(b"\n")[2]), Content)
    compiled = compile_bundle(content)
    written = cases.read_cases(content.sources.cases)
    found = Coverage(frozenset(cases.unguarded(compiled, written)), frozenset(cases.idle(compiled)))
    sys.stdout.buffer.write(msgspec.json.encode(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
