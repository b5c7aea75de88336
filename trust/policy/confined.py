"""Policies of one namespace among those of the mesh: what they permit is permitted on its own servers only.

What they forbid is forbidden to its agents everywhere. Each ``permit`` gets one more condition, in plain Cedar, so that
what is signed is what is evaluated, by whatever tool.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Final

from trust.policy import cedar
from trust.policy.arguments import quote
from trust.policy.lint import Read
from trust.policy.positions import statements

NOBODYS: Final = "(none)"
"""A server that there is not, for a namespace without any."""
_NO_CODE: Final = re.compile(r'"(?:[^"\\\n]|\\.)*"|//[^\n]*')
_EFFECT: Final = re.compile(r"\b(permit|forbid)\s*\(")
_MADE: Final = re.compile(r'\n  when \{ resource in \[(?:Server::"(?:[^"\\\n]|\\.)*"(?:, )?)+\] \};(?=\s*//confined\n)')
_SERVER: Final = re.compile(r'Server::"((?:[^"\\\n]|\\.)*)"')
_MARK: Final = " //confined\n"
MARK: Final = "//confined"
"""Stands in no policy that anybody writes."""


def confine(text: str, servers: Iterable[str]) -> str:
    """*text*, whose permits permit nothing but on *servers*."""
    own = ", ".join(f"Server::{quote(name)}" for name in sorted(servers)) or f'Server::"{NOBODYS}"'
    made, end = [], 0
    for one in statements(text):
        code = _NO_CODE.sub(lambda found: " " * len(found[0]), one.text)
        effect = _EFFECT.search(code)
        last = code.rstrip().rfind(";")
        if effect is not None and effect[1] == "permit" and last >= 0:
            at = one.offset + last
            made += [text[end:at], f"\n  when {{ resource in [{own}] }};{_MARK}"]
            end = at + 1
    return "".join([*made, text[end:]])


def released(text: str) -> str:
    """What :func:`confine` was given."""
    return _MADE.sub(";", text).replace(";" + _MARK, ";")


def confined_to(text: str) -> set[str]:
    """The servers on which *text*, which :func:`confine` made, permits."""
    found = {name for made in _MADE.findall(text) for name in _SERVER.findall(made)}
    return {json.loads(f'"{name}"') for name in found} - {NOBODYS}


def unconfined(read: Read, prefix: str, servers: Iterable[str]) -> list[str]:
    """Policies in the files below *prefix* that permit something else: looked for in Cedar's own reading of them."""
    probe = cedar.parse_policies(confine("permit (principal, action, resource);", servers)).static_policies
    (expected,) = (node.clauses for node in probe.values())
    nodes = {**read.nodes.static_policies, **read.nodes.templates}
    return [
        key
        for key, node in nodes.items()
        if read.sources[key].file.startswith(prefix) and node.effect == "permit" and node.clauses[-1:] != expected
    ]
