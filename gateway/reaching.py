"""How a node is reached: at its address, on connections that it made here, or on those that it made elsewhere."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from edge import reverse
from edge.client import Client, Reply
from edge.reverse import Accepted
from gateway.peers import Peers
from gateway.state import NodeRecord


class Reaching:
    """Of one gateway."""

    def __init__(self, client: Client, accepted: Accepted, peers: Peers) -> None:
        self._client = client
        self._accepted = accepted
        self._peers = peers

    def send(
        self, node: NodeRecord, path: str, headers: dict[str, str], body: bytes
    ) -> AbstractAsyncContextManager[Reply]:
        """One POST to a node; the caller reads the reply inside."""
        if node.outbound and not self._accepted.has(node.name) and self._peers.others():
            return self._peers.through(node.name, path, headers, body)
        if node.outbound:
            return self._accepted.client.send("POST", f"http://{node.name}{reverse.HOST}{path}", headers, body)
        return self._client.send("POST", f"{node.url}{path}", headers, body)
