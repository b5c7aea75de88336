"""How a node is reached: at its address, or on connections that it made itself."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from edge import reverse
from edge.client import Client, Reply
from edge.reverse import Accepted
from gateway.state import NodeRecord


class Reaching:
    """Of one gateway."""

    def __init__(self, client: Client, accepted: Accepted) -> None:
        self._client = client
        self._accepted = accepted

    def send(
        self, node: NodeRecord, path: str, headers: dict[str, str], body: bytes
    ) -> AbstractAsyncContextManager[Reply]:
        """One POST to a node; the caller reads the reply inside."""
        if node.outbound:
            return self._accepted.client.send("POST", f"http://{node.name}{reverse.HOST}{path}", headers, body)
        return self._client.send("POST", f"{node.url}{path}", headers, body)
