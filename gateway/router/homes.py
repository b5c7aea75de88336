"""Homes: what belongs together runs on one node: a session of an MCP server, the calls of a run to what keeps state.

The first call goes where rendezvous hashing points (so a gateway that has forgotten everything, or another one, points
to the same node), unless that is twice as dear as the best; what follows stays where it is as long as the node is
eligible. Nothing is ever kept on a node that is not.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

import msgspec

MAX_HOMES: Final = 100_000
"""What was used longest ago is forgotten first; it finds its node again by hashing, mostly."""


class Belongs(msgspec.Struct, frozen=True):
    """To what a call belongs: a session of a server, or what a run keeps there."""

    server: str
    agent: str
    to: str


class Homes:
    """Of one gateway, in memory."""

    def __init__(self) -> None:
        self._at: OrderedDict[Belongs, str] = OrderedDict()

    def home(self, belongs: Belongs, open_to: Sequence[str]) -> tuple[str, bool]:
        """Where it belongs among *open_to*, and whether something of it is there already."""
        known = self._at.get(belongs)
        if known is not None and known in open_to:
            self._at.move_to_end(belongs)
            return known, True
        return rendezvous(belongs, open_to), False

    def settle(self, belongs: Belongs, node: str) -> None:
        """Something of it is on *node* now."""
        self._at[belongs] = node
        self._at.move_to_end(belongs)
        if len(self._at) > MAX_HOMES:
            self._at.popitem(last=False)

    def leave(self, belongs: Belongs) -> None:
        """It is over."""
        self._at.pop(belongs, None)


def rendezvous(belongs: Belongs, nodes: Sequence[str]) -> str:
    """The node with the highest hash: when others come or go, hardly anything moves (Thaler and Ravishankar, 1998)."""
    key = "\n".join((belongs.server, belongs.agent, belongs.to)).encode()
    return max(nodes, key=lambda node: blake2b(node.encode(), key=blake2b(key, digest_size=32).digest()).digest())
