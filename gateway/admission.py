"""The door at which a Kubernetes API server asks for sidecars (:mod:`gateway.injection`).

What it answers follows from the question alone, so it is open before the gateway knows its policies, or reaches its
database: pods of agents are made meanwhile. What is no such question concerns no agent: it is logged, not recorded.
"""

from __future__ import annotations

import logging
from typing import Final

from edge import tls
from edge.clock import new_id
from edge.http import Border, Incoming, Listener, Server, StreamResponse, caller_of, json_response, problem
from gateway.config import InjectConfig
from gateway.injection import Injected, reviewed, validated
from trust.reasons import Reason, Unverifiable
from trust.verdict import Refusal

INJECT, VALIDATE = "/v1/kubernetes/inject", "/v1/kubernetes/validate"
MAX_REVIEW_BYTES: Final = 3 << 20
_log = logging.getLogger("licet.gateway")


class Admission:
    """Of one gateway; ``port`` is known once it is open."""

    def __init__(self, config: InjectConfig) -> None:
        self.port = 0
        self._config = config
        self._injected = Injected(
            config.image, config.gateway_url, config.pull_secrets, config.data_size, config.keep_days
        )
        names = config.hostnames
        hosts = {f"{name}:{port}" for name in names for port in (config.port, 443)} | set(names)
        border = Border(hosts, max_body=MAX_REVIEW_BYTES, scheme="https")
        self._listener = Listener(Server(self._answer, self._refuse, border))
        self._context = tls.public_server(config.tls_certificate, config.tls_key)
        self._files = tls.Files(config.tls_certificate, config.tls_key)

    async def open(self, host: str, *, shared: bool) -> None:
        """Listen at *host*; *shared* with other workers."""
        self.port = await self._listener.open(host, self._config.port, self._context, shared=shared)

    def show_renewed(self) -> None:
        """Show a certificate that was replaced in its file."""
        self._files.show_renewed(self._context)

    async def close(self) -> None:
        await self._listener.close()

    async def _answer(self, incoming: Incoming) -> StreamResponse:
        try:
            if incoming.method != "POST" or incoming.path not in (INJECT, VALIDATE):
                raise Unverifiable(Reason.NOT_FOUND, f"expected a POST of {INJECT} or {VALIDATE}")
            review = reviewed if incoming.path == INJECT else validated
            return json_response(review(incoming.body, self._injected))
        except Unverifiable as bad:
            return await self._refuse(Refusal.of(1, bad), caller_of(incoming.raw))

    async def _refuse(self, no: Refusal, caller: str) -> StreamResponse:
        _log.warning("the webhook refused %s: %s: %s", caller, no.reason, no.detail)
        return problem(no, new_id("dec"))
