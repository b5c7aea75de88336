"""OAuth for MCP clients that speak it: what this resource is, whose tokens it takes, and nothing passed on.

RFC 9728: a client without a token is told where the metadata is; the metadata says which authorization server to ask.
The token must be made for exactly this resource and for the person whom the agent acts for; it ends here.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from edge.client import Broken, Client, Unreachable
from edge.clock import SystemClock
from sidecar.config import OAuthConfig
from trust.identity import oauth
from trust.identity.oauth import Bearer, Issuer
from trust.reasons import Reason, Unverifiable

METADATA: Final = "/.well-known/oauth-protected-resource"
REFRESH_S: Final = 30.0
"""How often an unknown key may make us ask the issuer again."""
_log = logging.getLogger("licet.sidecar")


class OAuth:
    """Of one sidecar. ``base``: the address under which clients know it."""

    def __init__(self, config: OAuthConfig, client: Client, clock: SystemClock) -> None:
        self._config = config
        self._client = client
        self._clock = clock
        self._asked = float("-inf")
        self._asking = asyncio.Lock()
        self.base = ""
        self._issuer = Issuer(config.issuer, config.algorithm, {})
        if config.jwks_file is not None:
            self._take(config.jwks_file.read_bytes())

    def _take(self, jwks: bytes) -> None:
        keys = oauth.keys_of(jwks, self._config.algorithm)
        self._issuer = Issuer(self._config.issuer, self._config.algorithm, keys)

    def resource(self, server: str) -> str:
        """What a token for *server* must have as its audience."""
        return f"{self._config.public_url or self.base}/mcp/{server}"

    def metadata(self, server: str) -> dict[str, Any]:
        """RFC 9728, section 2."""
        told: dict[str, Any] = {
            "resource": self.resource(server),
            "authorization_servers": [self._config.issuer],
            "bearer_methods_supported": ["header"],
            "resource_name": f"Licet: {server}",
        }
        return told | ({"scopes_supported": [self._config.scope]} if self._config.scope else {})

    def challenge(self, server: str) -> str:
        """``WWW-Authenticate`` of a 401 (RFC 9728, section 5.1)."""
        where = f"{self._config.public_url or self.base}{METADATA}/mcp/{server}"
        scope = f', scope="{self._config.scope}"' if self._config.scope else ""
        return f'Bearer resource_metadata="{where}"{scope}'

    async def identify(self, token: str, server: str, owner: str) -> Bearer:
        """Who *token* speaks for, who must be *owner*; or :class:`Unverifiable`."""
        if oauth.key_id(token) not in self._issuer.keys:
            await self._refresh()
        bearer = oauth.verify(token, issuer=self._issuer, audience=self.resource(server), now=self._clock.now())
        if self._config.scope and self._config.scope not in bearer.scopes:
            raise Unverifiable(Reason.UNAUTHENTICATED, f"access token: it lacks the scope {self._config.scope}")
        person = self._config.people.get(bearer.subject, bearer.subject)
        if person != owner:
            raise Unverifiable(Reason.NOT_YOURS, "this token is not of the person for whom this agent acts")
        return bearer

    async def _refresh(self) -> None:
        """The issuer's keys of now, if it may have others."""
        url = self._config.jwks_url
        async with self._asking:
            if url is None or self._clock.mono() - self._asked < REFRESH_S:
                return
            self._asked = self._clock.mono()
            try:
                async with self._client.send("GET", url, {"Accept": "application/json"}, timeout_s=5.0) as reply:
                    body = await reply.read(1 << 20)
                if reply.status == 200:
                    self._take(body)
            except (Unreachable, Broken, Unverifiable) as bad:
                _log.warning("the keys of %s could not be read: %s", self._config.issuer, bad)
