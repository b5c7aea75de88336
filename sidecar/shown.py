"""What an agent is shown: the tools of which some call of its is not refused."""

from __future__ import annotations

from sidecar.chains import Chains
from sidecar.world import View
from trust import mcp
from trust.policy import schema
from trust.policy.cedar import Uid
from trust.policy.inventory import Tool, pin_of
from trust.reasons import Reason, Unverifiable


class Shown:
    """Of one agent, by the bundle and the facts of the moment."""

    def __init__(self, view: View, chains: Chains) -> None:
        self._world = view
        self._chains = chains
        self._last: tuple[object, list[tuple[str, Tool]]] = (None, [])

    def tool(self, server: str, tool: str) -> Tool | None:
        """What is pinned under this name, for whoever must know before an action can be made of a message."""
        bundle = self._world.bundle
        known = bundle.inventory.servers.get(server) if bundle else None
        return known.tools.get(tool) if known else None

    async def left(self, chain: str) -> frozenset[str] | None:
        """The tools that who brings *chain* was left with; None: nothing was taken from it."""
        return frozenset((await self._chains.open(chain)).authority.tools) if chain else None

    def may_see(self, server: str, listed: object, among: frozenset[str] | None) -> bool:
        """Whether a tool that a server lists may be shown: pinned as it is, *among* what was delegated, and some call
        of it not refused."""
        if not isinstance(listed, dict):
            return False
        tool = self.tool(server, str(listed.get("name")))
        try:
            if tool is None or tool.digest != pin_of(listed):
                return False
        except Unverifiable:
            return False
        return self._may_ever_call(server, tool.name, among)

    async def tools(self, chain: str) -> list[tuple[str, Tool]]:
        """Every tool of which some call under *chain* is not refused, with its server; asked of Cedar once for as long
        as bundle, facts and chain stay what they are."""
        self._world.identified()
        among = await self.left(chain)
        told, bundle = self._world.identified(), self._world.bundle
        if bundle is None:
            raise Unverifiable(Reason.NO_BUNDLE, "no policies are there yet, so nothing may be called")
        key = (bundle.digest, told.agent, among)
        if self._last[0] != key:
            found = [
                (server, tool)
                for server, known in sorted(bundle.inventory.servers.items())
                for _, tool in sorted(known.tools.items())
                if tool.name not in mcp.PROTOCOL_TOOLS and self._may_ever_call(server, tool.name, among)
            ]
            self._last = (key, found)
        return self._last[1]

    def _may_ever_call(self, server: str, tool: str, among: frozenset[str] | None) -> bool:
        bundle, told = self._world.bundle, self._world.facts
        if bundle is None or told is None:
            return False
        name = schema.action_name(server, tool)
        if among is not None and name not in among:
            return False
        world = bundle.engine.world(told.agent.entities())
        return bundle.engine.visible(told.agent.uid, name, Uid("Server", server), world)
