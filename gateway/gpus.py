"""GPUs of nodes: whether one is there, by a product that only one makes in time, and whether it is as fast as others.

The node makes ready, gets a seed, and must commit to all rows of the product before a deadline; which of them are
looked at is drawn after that. It proves that so much arithmetic was done in so much time by whoever holds the node's
key, not what did it: size and deadline have to be such that what is no GPU is too slow.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable
from typing import Final, Literal

import msgspec

from gateway import checking
from gateway.challenger import NO_ANSWER, Challenger, Found
from gateway.config import GpuConfig
from gateway.router.capabilities import GPU, words
from gateway.router.measured import Measured
from gateway.state import NodeRecord
from trust.identity.challenge import ROWS, Challenge
from trust.policy.inventory import Inventory
from trust.reasons import Unverifiable

READY_S: Final = 45.0
"""Loading a driver takes a while, and is not what is measured."""
TIMES: Final = 5.0
"""A GPU whose work takes so many times as long as its class's does not count as one until it proves itself again."""
ANSWERS: Final = 20
PEERS: Final = 2
"""A class is known by so many answers, and by so many other nodes; before, nobody is slower than it."""


def asked_of(node: NodeRecord) -> bool:
    """Whether somebody else says that a node has one: its operator or an issuer. Its own claim asks for nothing."""
    return GPU in {*words(node.capabilities), *(one.capability for one in node.evidence if one.level == "bound")}


class Gpus:
    """How one gateway looks at them."""

    def __init__(self, challenger: Challenger, config: GpuConfig) -> None:
        self._challenger = challenger
        self._config = config
        self._one_at_a_time = asyncio.Lock()

    async def look(self, node: NodeRecord) -> Found:
        """Ask for a product, now."""
        try:
            return await self._look(node)
        except NO_ANSWER as bad:
            return Found.silent(bad)

    async def _look(self, node: NodeRecord) -> Found:
        size, within_ms = self._config.size, self._config.within_ms
        await self._challenger.ask(node, self._asked(node, "ready", secrets.token_hex(16)), READY_S)
        seed = secrets.token_hex(16)
        try:
            made = await self._challenger.ask(node, self._asked(node, "product", seed), within_ms / 1000)
        except TimeoutError:
            return Found(False, f"it made no product of size {size} within {within_ms:g} ms")
        rows = tuple(sorted(secrets.SystemRandom().sample(range(size), min(ROWS, size))))
        wanted = msgspec.structs.replace(self._asked(node, "rows", seed), rows=rows)
        opened = await self._challenger.ask(node, wanted)
        try:
            async with self._one_at_a_time:  # it takes this machine's processor; whoever hangs does not hold it
                await checking.require_rows(checking.Asked(seed, size, made.what.hex(), rows), opened.what)
        except Unverifiable as bad:
            return Found(False, bad.detail, lied=True)
        return Found(True, f"a product of size {size} in {made.took_us / 1000:.0f} ms, of {within_ms:g} ms")

    def _asked(self, node: NodeRecord, kind: Literal["ready", "product", "rows"], nonce: str) -> Challenge:
        asked = self._challenger.challenge(node, nonce)
        return msgspec.structs.replace(asked, kind=kind, size=self._config.size)


def too_slow(measured: Measured, node: str, inventory: Inventory, now_us: int) -> str:
    """Why the GPU of *node* is no GPU for the moment, or empty: work that needs one takes :data:`TIMES` as long as on
    others of its class, and does not merely fail."""
    if measured.load(node).failures:
        return ""
    for work in _needs_gpu(inventory):
        if not measured.known_by(node, work, PEERS, ANSWERS):
            continue
        times = measured.slowdown(node, work, now_us)
        if times >= TIMES:
            return f"{work} takes {times:.1f} times as long there as on nodes of its class"
    return ""


def _needs_gpu(inventory: Inventory) -> Iterable[str]:
    for server in inventory.servers.values():
        for name, tool in server.tools.items():
            needs = {word.partition("@")[0] for word in (*server.requires, *tool.manifest.requires)}
            if GPU in needs:
                yield f"{server.name}/{name}"
