"""One ledger entry as one line for people: who did what, and what came of it."""

from __future__ import annotations

import datetime
import json
from typing import Final, assert_never

from trust.ledger import entries
from trust.ledger.entries import AnyEntry, Deed, Judgement, Line
from trust.reasons import visible

MAX_SHOWN: Final = 80
LAST_US: Final = 253_402_300_799_000_000
EXECUTE: Final = 9
"""The step of a node's own entries."""


def kind_of(entry: AnyEntry) -> str:
    """The entry's ``kind``, as it stands in the ledger."""
    return str(entry.__struct_config__.tag)


def moment(wall_us: int, form: str = "%Y-%m-%d %H:%M:%S UTC") -> str:
    """Unix microseconds as people write it."""
    if not 0 <= wall_us <= LAST_US:
        return f"{wall_us} µs since 1970"
    return datetime.datetime.fromtimestamp(wall_us / 1e6, datetime.UTC).strftime(form)


def line(index: int, found: Line) -> str:
    """Place, time, kind and what happened."""
    clock = moment(found.stamp.wall_us, "%H:%M:%S.%f")[:-3]
    return f"{index:>7} {clock} {kind_of(found.entry):<10} {words(found.entry)}"


def words(entry: AnyEntry) -> str:
    """What happened. Text from outside is made harmless."""
    match entry:
        case entries.Intent():
            spent = f"  approval {entry.approval}" if entry.approval else ""
            return f"{deed(entry.deed)}  allowed{_by(entry.judgement)}{spent}  {entry.deed.decision_id}"
        case entries.Hold():
            return f"{deed(entry.deed)}  waits for a person{_by(entry.judgement)}  {entry.deed.decision_id}"
        case entries.Refusal():
            who = deed(entry.deed) if entry.deed is not None else visible(entry.caller, MAX_SHOWN)
            why = f"{entry.reason} at step {entry.step}: {visible(entry.detail, MAX_SHOWN)}"
            return f"{who}  refused{_by(entry.judgement)}, {why}  {entry.decision_id}"
        case entries.Dispatch():
            what = f"{entry.server}/{entry.tool} of {_for(entry.agent, entry.principal, entry.authority)}"
            executes = entry.step == EXECUTE
            did = f"{entry.node} executes {what}" if executes else f"{what} goes to {entry.node}"
            return f"{did}  {entry.decision_id}"
        case entries.Outcome():
            took = f" after {entry.duration_us / 1000:.0f} ms" if entry.duration_us else ""
            at = f" on {entry.node}" if entry.node else ""
            detail = f": {visible(entry.detail, MAX_SHOWN)}" if entry.detail else ""
            return f"{entry.status}{at}{took}{detail}  {entry.decision_id}"
        case entries.Approval():
            return _approval(entry)
        case entries.Deputy():
            until = f" until {moment(entry.until_us)}" if entry.until_us else ""
            what = "may vote for" if entry.event == "named" else "votes no more for"
            return f"{entry.deputy} {what} {entry.person}{until}{_who(entry.by)}"
        case entries.Bundle():
            return f"version {entry.version} {entry.event}{_who(entry.by)}{_why(entry.reason)}  {entry.digest[:12]}"
        case entries.Agent():
            via = f", through the sidecar of {entry.via}" if entry.via else ""
            owner = f" for {visible(entry.owner)}" if entry.owner else ""
            return f"{entry.agent}: {_AGENT_EVENTS[entry.event]}{owner}{via}{_who(entry.by)}"
        case entries.Node():
            epoch = f", epoch {entry.epoch}" if entry.epoch else ""
            offers = f" offering {', '.join(entry.servers)}" if entry.servers else ""
            return f"{entry.node}: {entry.event} {entry.state}{epoch}{offers}{_who(entry.by)}".replace("  ", " ")
        case entries.Session():
            return f"{entry.session} opened by {visible(entry.subject)}"
        case entries.Server():
            tools = f": {', '.join(entry.tools[:5])}" if entry.tools else ""
            return f"{entry.server} {entry.event}{tools}{_who(entry.by)}  {entry.offer[:12]}"
        case entries.Person():
            roles = f" as {', '.join(entry.roles)}" if entry.roles else ""
            return f"{entry.person} {entry.event}{roles}{_who(entry.by)}"
        case entries.Passkey():
            return f"passkey “{visible(entry.name)}” of {entry.person} {entry.event}{_who(entry.by)}"
        case entries.SignIn():
            how = f" by {entry.how}" if entry.how else ""
            return f"{entry.person} {entry.event.replace('_', ' ')}{how}"
        case entries.SavedQuery():
            return f"query {visible(entry.name)} {entry.event}{_who(entry.by)}: {visible(entry.asked, MAX_SHOWN)}"
        case entries.Kill():
            what = "stopped" if entry.event == "killed" else "may go on"
            return f"{entry.target} {what}{_who(entry.by)}{_why(entry.reason)}"
        case entries.Revocation():
            return f"{entry.what} {visible(entry.id)} revoked{_who(entry.by)}{_why(entry.reason)}"
        case entries.Delegation():
            tools = ", ".join(entry.tools[:5])
            until = moment(entry.expires_at * 1_000_000)
            return f"{entry.agent} may hand on {tools} for {visible(entry.principal)} until {until}  {entry.root}"
        case entries.Reported():
            told = "; ".join(f"{one.count} × {one.reason} on {visible(one.resource)}" for one in entry.refusals[:3])
            return f"{entry.agent} was refused: {told}  in {entry.origin}"
        case entries.Standing():
            return (
                f"{entry.agent} {entry.before} → {entry.after}, {why_moved(entry)}{_who(entry.by)}{_why(entry.reason)}"
            )
        case entries.Breaker():
            return f"{entry.target} stopped until {moment(entry.until_us)}: {entry.rule}, {entry.count} times"
        case entries.Log():
            detail = f": {visible(entry.detail, MAX_SHOWN)}" if entry.detail else ""
            return f"{entry.origin} {entry.event}{_who(entry.by)}{_why(entry.reason)}{detail}"
        case entries.Witness():
            return f"{entry.origin} cosigned at {entry.size} entries, sealed {moment(entry.time_ms * 1000)}"
        case entries.Pruned():
            old = moment(entry.before_us)
            return f"{entry.origin}: entries below {entry.first} pruned, all from before {old}{_who(entry.by)}"
        case entries.Subject():
            what = "made" if entry.event == "made" else "destroyed, with all that it had sealed"
            return f"subject key {entry.key} {what}{_who(entry.by)}{_why(entry.reason)}"
        case entries.Query():
            return f"{visible(entry.by)} read {entry.rows} rows ({entry.what}): {visible(entry.asked, MAX_SHOWN)}"
        case entries.Admin():
            return f"{entry.by} as {entry.role}: {visible(entry.event)}"
        case entries.Replica():
            at = f" at {visible(entry.url)}" if entry.url else ""
            return f"{entry.name} shares the state from here on{at}, its log is {visible(entry.origin)}"
        case entries.Void():
            return f"entry {entry.seq} changed nothing (turn {entry.turn}): {visible(entry.detail, MAX_SHOWN)}"
        case entries.End():
            return "closed in good order"
        case entries.Start():
            return f"version {entry.version}, {entry.found} entries found"
        case entries.Gap():
            return f"{entry.what}: {visible(entry.detail)}"
        case _:
            assert_never(entry)


def _approval(step: entries.Approval) -> str:
    seat = f" for {step.seat}" if step.seat not in ("", step.by) else ""
    scope = f", {reach(step.scope)}" if step.scope != entries.ONCE else ""
    under = f" under {step.under}" if step.under else ""
    to = f" to {', '.join(step.groups)}" if step.groups else ""
    block = f"; {', '.join(step.block)} asks nobody again in this run" if step.block else ""
    did = step.event.replace("_", " ")
    who = f"{_who(step.by)}{seat}"
    return f"{step.approval} {did}{under}{to}{who}{_choice(step.decision)}{scope}{_why(step.reason)}{block}"


def reach(scope: entries.Scope) -> str:
    """How far a yes goes."""
    match scope.kind:
        case "once":
            return "this once"
        case "uses":
            return f"these arguments {scope.uses} times within {scope.minutes} minutes"
        case "tool":
            return f"this tool for {scope.minutes} minutes in this run"


def deed(asked: Deed) -> str:
    """Who asks for what; for whom, if that is not simply its owner."""
    arguments = "" if asked.arguments is None else " " + visible(json.dumps(asked.arguments), MAX_SHOWN)
    who = _for(asked.agent, asked.principal, asked.authority)
    personal = "" if asked.sealed is None else f" and what is personal of {asked.sealed.key or 'nobody'}"
    return f"{who} {visible(asked.server)}/{visible(asked.tool)}{arguments}{personal}"


def _for(agent: str, principal: str, authority: list[str]) -> str:
    """Handed on: for whom, and how many hands it went through."""
    if not authority:
        return agent
    return f"{agent} (for {visible(principal)} by {len(authority)} tokens, the last {authority[-1][:8]}…)"


def _by(judgement: Judgement | None) -> str:
    return f" by {', '.join(judgement.policies)}" if judgement is not None and judgement.policies else ""


def _who(by: str) -> str:
    return f" by {visible(by)}" if by else ""


def _choice(decision: str) -> str:
    return f" ({decision})" if decision else ""


def _why(reason: str) -> str:
    return f": {visible(reason, MAX_SHOWN)}" if reason else ""


_AGENT_EVENTS: Final = {
    "registered": "registered",
    "enrolled": "enrolled with a key",
    "rotate": "is to replace its key",
    "rotated": "replaced its key",
    "token": "may enrol again",
    "key_ended": "a former key came to its end",
}

_RULES: Final = {
    "registered": "registered, beside what counts against the other agents of {other}",
    "inherited": "its key was the key of {other}, and what counts against that one counts against it",
    "outcome": "a confirmed outcome of risk class {risk}",
    "refusal": "{count} refused, {severity}: {policy} on {resource}",
    "vouched": "{other} vouches for it",
    "staked": "it vouches for {other}",
    "burned": "what it staked for {other} is lost",
    "unvouched": "nobody vouches for it any more",
    "cleared": "cleared",
    "granted": "may be verified",
    "ungranted": "may not be verified any more",
}


def why_moved(moved: entries.Standing) -> str:
    """Why a score moved."""
    named = {name: visible(str(getattr(moved, name))) for name in moved.__struct_fields__}
    return _RULES[moved.rule].format(**named)
