"""What a node shows when the gateway challenges it: that it holds its key, and that it multiplies as fast as a GPU."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import re
import sys
from typing import Final

from edge.clock import SystemClock
from edge.http import Incoming, Response
from sidecar.identity import Identity
from sidecar.node.membership import Membership
from trust.identity import challenge
from trust.identity.challenge import Challenge
from trust.identity.replay import Nonces
from trust.reasons import Reason, Unverifiable

KEEP_S: Final = 30.0
"""How long after its last challenge the process and its product (1 GiB at size 16,384) stay."""
MAX_LINE: Final = 16 << 20
ANSWER_S: Final = 50.0
_PASSED_ON: Final = re.compile(r"(PATH|HOME|LANG|LC_ALL|TMPDIR|LD_LIBRARY_PATH|(CUDA|NVIDIA|ROCM|HIP|OMP)_\w+)$")
"""Of the environment: nothing that is a secret of this node goes to who loads a driver."""


class Showing:
    """Of one node. *backend*: what multiplies; ``off``: it makes no products."""

    def __init__(self, identity: Identity, membership: Membership, backend: str, clock: SystemClock) -> None:
        self._identity = identity
        self._membership = membership
        self._backend = backend
        self._clock = clock
        self._answered = Nonces()
        self._idle_after = 0.0
        self._process: asyncio.subprocess.Process | None = None
        self._busy = asyncio.Lock()
        self._forget: asyncio.TimerHandle | None = None
        self._made_for = ""

    async def prove(self, incoming: Incoming) -> Response:
        """The answer to one challenge of this node's own gateway, once."""
        await self._membership.settled()  # the gateway asks as soon as it knows of the new epoch
        now = self._clock.now()
        asked = challenge.open_challenge(
            incoming.body.decode("ascii", "replace"),
            gateway=self._identity.gateway,
            node=self._identity.name,
            epoch=self._membership.epoch,
            now=now,
        )
        self._answered.spend(f"{asked.kind} {asked.nonce}", asked.deadline, now)
        shown = b"" if asked.kind == "echo" else await self._show(asked)
        return Response(body=challenge.answer(asked, shown, self._identity.key))

    async def _show(self, asked: Challenge) -> bytes:
        if self._backend == "off":
            raise Unverifiable(Reason.NOT_FOUND, 'this node makes no products: [node] gpu = "off"')
        async with self._busy:
            try:
                return await self._made(asked)
            finally:
                self._keep()

    async def _made(self, asked: Challenge) -> bytes:
        match asked.kind:
            case "ready":
                await self._ask("ready")
                return b""
            case "product":
                self._made_for = ""
                commitment = await self._ask(f"product {asked.nonce} {asked.size}")
                self._made_for = asked.nonce
                return base64.b64decode(commitment)
            case _:
                if asked.nonce != self._made_for or not asked.rows:
                    raise Unverifiable(Reason.TICKET_INVALID, "rows of a product that was not made last")
                self._made_for = ""  # once: another set of rows would need another product
                return base64.b64decode(await self._ask(f"rows {','.join(map(str, asked.rows))}"))

    async def _ask(self, line: str) -> str:
        """One line to the process that multiplies, and its answer."""
        process = self._process
        if process is None or process.returncode is not None:
            process = self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "sidecar.node.multiplying",
                self._backend,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env={name: value for name, value in os.environ.items() if _PASSED_ON.match(name)},
                limit=MAX_LINE,
            )
        if process.stdin is None or process.stdout is None:
            raise Unverifiable(Reason.INTERNAL_ERROR, "the process that multiplies cannot be heard")
        try:
            async with asyncio.timeout(ANSWER_S):
                process.stdin.write(line.encode() + b"\n")
                await process.stdin.drain()
                said = (await process.stdout.readline()).decode("utf-8", "replace").strip()
        except BaseException:
            await self.close()  # whatever it says later is no answer to anybody
            raise
        if not said or said.startswith("error"):
            await self.close()
            raise Unverifiable(
                Reason.UPSTREAM_FAILED, f"multiplying failed: {said.removeprefix('error ') or 'it ended'}"
            )
        return said

    def _keep(self) -> None:
        """For a while from now on."""
        if self._forget is not None:
            self._forget.cancel()
        loop = asyncio.get_running_loop()
        self._idle_after = loop.time() + KEEP_S
        self._forget = loop.call_later(KEEP_S, lambda: loop.create_task(self._end_when_idle()))

    async def _end_when_idle(self) -> None:
        async with self._busy:
            if asyncio.get_running_loop().time() >= self._idle_after:
                await self.close()

    async def close(self) -> None:
        if self._forget is not None:
            self._forget.cancel()
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
