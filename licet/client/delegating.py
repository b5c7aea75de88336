"""Delegation offline: narrowing a chain for another agent with nothing but one's own key."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from edge.clock import new_id
from licet.client.signing import Credentials
from trust.identity import delegation
from trust.identity.delegation import Authority, ToolGrants
from trust.identity.keys import PublicKey, b64url
from trust.reasons import Reason, Unverifiable

DEFAULT_LIFE_S = 3600


def delegate(
    credentials: Credentials,
    gateway_url: str,
    tools: Mapping[str, Mapping[str, Any]],
    *,
    max_depth: int = delegation.MAX_DEPTH,
    lives_s: int = DEFAULT_LIFE_S,
) -> str:
    """A root from the gateway for the agent of *credentials*: the one step that is not offline. What it gives is the
    authority of the agent's principal over *tools* (``server/tool`` → argument → constraint)."""
    asked = {"tools": {name: dict(args) for name, args in tools.items()}, "max_depth": max_depth, "lives_s": lives_s}
    return str(credentials.call(gateway_url, "POST", "/v1/delegations", asked)["chain"])


def narrow(
    credentials: Credentials,
    chain: str,
    to: PublicKey,
    tools: Mapping[str, Mapping[str, Any]],
    *,
    lives_s: int = DEFAULT_LIFE_S,
    max_depth: int | None = None,
) -> str:
    """*chain* with one more token, for the holder of the key *to*. No network; whoever opens it checks everything."""
    now = int(time.time())
    _require_held(credentials, chain)
    return delegation.derive(
        chain,
        holder=to,
        tools=delegation.grants(tools),
        expires_at=now + lives_s,
        now=now,
        token_id=new_id("aat"),
        key=credentials.key,
        max_depth=max_depth,
    )


def _require_held(credentials: Credentials, chain: str) -> None:
    """The chain ends at the key with which the next token is signed."""
    holder, own = delegation.ends(chain)[0], credentials.key.public
    if holder == own:
        return
    told = f"this chain ends at the key {holder.thumbprint}, and {credentials.name} has {own.thumbprint}"
    if any(former.key == b64url(holder.raw) for former in credentials.enrolment.former):
        todo = (
            "that was its key before it was replaced: it may still use the chain, but to hand it on ask for a new one"
        )
    else:
        todo = "it was made for another agent; --home (Credentials.load) names the home of the one that hands it on"
    raise Unverifiable(Reason.NOT_YOURS, f"{told}; {todo}")


def tools_in(chain: str) -> ToolGrants:
    """What *chain* gives, as it says itself."""
    return delegation.ends(chain)[1]


def describe(credentials: Credentials, chain: str) -> dict[str, Any]:
    """What *chain* gives now, once every link of it holds, as plain values."""
    domain = credentials.enrolment.trust_domain
    opened: Authority = delegation.open_chain(
        chain,
        issuer=credentials.gateway,
        trust_domain=domain,
        audience=delegation.audience(domain),
        now=time.time(),
    )
    return {
        "principal": opened.principal,
        "root": opened.root,
        "tokens": list(opened.tokens),
        "keys": list(opened.keys),
        "depth": len(opened.tokens) - 1,
        "max_depth": opened.max_depth,
        "expires_at": opened.expires_at,
        "tools": msgspec.to_builtins(opened.tools),
    }


def constraint(text: str) -> tuple[str, str, dict[str, Any]]:
    """``server/tool:argument=value`` (exact), ``…^=prefix``, ``…=a|b|c`` (one of), ``…=1..5`` (range), or
    ``…:={JSON}``, as (tool, argument, constraint)."""
    tool, colon, rest = text.partition(":")
    for mark in ("^=", ":=", "="):
        name, found, value = rest.partition(mark)
        if colon and found and name:
            try:
                return tool, name, _constraint(mark, value)
            except ValueError as bad:
                raise ValueError(f'"{text}": {bad}') from None
    raise ValueError(f'"{text}": expected server/tool:argument=value, ^=prefix, =a|b, =1..5 or :={{JSON}}')


def _constraint(mark: str, value: str) -> dict[str, Any]:
    if mark == "^=":
        return {"constraint_type": "prefix", "prefix": value}
    if mark == ":=":
        try:
            made = msgspec.json.decode(value)
        except msgspec.DecodeError as bad:
            raise ValueError(f"what follows := is no JSON: {bad}") from None
        return made if isinstance(made, dict) else {"constraint_type": "exact", "value": made}
    low, dots, high = value.partition("..")
    if dots and _is_number(low) and _is_number(high):
        return {"constraint_type": "range", "min": msgspec.json.decode(low), "max": msgspec.json.decode(high)}
    if "|" in value:
        return {"constraint_type": "one_of", "values": value.split("|")}
    return {"constraint_type": "exact", "value": value}


def _is_number(text: str) -> bool:
    try:
        return isinstance(msgspec.json.decode(text), int | float)
    except msgspec.DecodeError:
        return False


def tools_of(names: Sequence[str], constraints: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Tools with their constraints, from what a command line says."""
    tools: dict[str, dict[str, Any]] = {name: {} for name in names}
    for text in constraints:
        tool, argument, made = constraint(text)
        tools.setdefault(tool, {})[argument] = made
    return tools
