"""The action part of the Cedar schema, generated from the inventory: one typed action per tool."""

from __future__ import annotations

import re
from typing import Final

from trust.policy.arguments import cedar_type, quote, shape_of
from trust.policy.inventory import Inventory, Tool

_DECLARED_ACTION: Final = re.compile(r'^\s*action\s+((?:"[^"]*"\s*,?\s*)+)', re.MULTILINE)


def action_name(server: str, tool: str) -> str:
    """The id of the Cedar action of one tool."""
    return f"{server}/{tool}"


def groups_of(server: str, tool: Tool) -> list[str]:
    """The action groups that a tool belongs to."""
    manifest = tool.manifest
    groups = [f"server/{server}", manifest.category, manifest.effect, *manifest.groups]
    return [*groups, "privileged"] if manifest.privileged else groups


def complete(base: str, inventory: Inventory) -> str:
    """*base* with everything that the inventory adds; the text that a bundle carries."""
    return f"{base.rstrip()}\n\n{fragment(base, inventory)}"


def fragment(base: str, inventory: Inventory) -> str:
    """The generated part, sorted, so that a change of a server reads as a diff."""
    declared = {name for names in _DECLARED_ACTION.findall(base) for name in re.findall(r'"([^"]*)"', names)}
    groups: set[str] = set()
    actions: list[str] = []
    for server in sorted(inventory.servers.values(), key=lambda s: s.name):
        for tool in sorted(server.tools.values(), key=lambda t: t.name):
            member_of = groups_of(server.name, tool)
            groups.update(member_of)
            actions.append(_action(server.name, tool, member_of))
    lines = ["// Generated from the inventory of servers."]
    lines += [f"action {quote(group)};" for group in sorted(groups - declared)]
    return "\n".join([*lines, *actions]) + "\n"


def _action(server: str, tool: Tool, groups: list[str]) -> str:
    return (
        f"action {quote(action_name(server, tool.name))} in [{', '.join(map(quote, groups))}] appliesTo {{\n"
        "  principal: Agent,\n"
        "  resource: Server,\n"
        "  context: {\n"
        f"    args: {cedar_type(shape_of(tool.input_schema))},\n"
        "    trust: Trust, run: Run, rate: Rate, authority: Authority,\n"
        "    approved: Bool, now: datetime, risk: Long,\n"
        "  },\n"
        "};"
    )
