"""``licet approvals``: list, show, watch, approve, grant, deny, edit, revoke; deputies."""

from __future__ import annotations

import datetime
import json
import sys
import time
from pathlib import Path
from typing import Any, Final

import typer

from licet.cli.gateway_api import As, gateway
from licet.cli.output import FAILED, USAGE, Json, fail, reporting, say, show, table
from licet.client import ApiError
from trust.canonical import read_object
from trust.ledger import moments
from trust.reasons import Unverifiable, visible

STATES = ("pending", "approved", "denied", "expired", "consumed", "cancelled", "all")
POLL_S: Final = 1.0
app = typer.Typer(name="approvals", help="Actions that wait for a person.", no_args_is_help=True)
Yes = typer.Option(False, "--yes", "-y", help="Do not ask; it is decided on what it is in this moment.")
Reason = typer.Option("", "--reason", help="The agent is told, unless --hush.")
Hush = typer.Option(False, "--hush", help="Keep the reason from the agent.")
Seat = typer.Option("", "--for", help="Vote in the seat of this person, whose deputy you are.")


@app.command("list")
@reporting
def list_approvals(
    state: str = typer.Option("pending", help="pending, approved, denied, expired, consumed or all."),
    token_file: Path | None = As,
    as_json: bool = Json,
) -> None:
    """The queue."""
    if state not in STATES:
        raise fail(f"--state {state}: expected one of {', '.join(STATES)}", USAGE)
    path = "/v1/approvals" + ("" if state == "all" else f"?state={state}")
    found = gateway(token_file).call("GET", path).body["approvals"]
    rows = [
        (
            a["id"],
            a["state"],
            a["agent"],
            f"{a['server']}/{a['tool']}",
            _when(a["expires_at"]),
            visible(json.dumps(_arguments(a)), 100),
        )
        for a in found
    ]
    columns = ("APPROVAL", "STATE", "AGENT", "ACTION", "UNTIL", "ARGUMENTS")
    show(found, as_json, lambda: table(columns, rows, "nothing waits"))


@app.command("show")
@reporting
def show_approval(approval: str, token_file: Path | None = As, as_json: bool = Json) -> None:
    """Exactly what would run, and for whom."""
    told = gateway(token_file).call("GET", f"/v1/approvals/{approval}").body
    show(told, as_json, lambda: _say(told))


def _say(told: dict[str, Any]) -> None:
    """One request in words, everything that decides on it first."""
    say(f"{told['agent']} (for {told['principal']}) asks to call {told['server']}/{told['tool']}", "bold")
    for name, value in _arguments(told).items():
        say(f"  {visible(name)} = {visible(json.dumps(value, ensure_ascii=False), 2000)}")
    for sentence, policy in zip(told["because"] or told["policies"], told["policies"], strict=False):
        say(f"because {visible(sentence)} ({policy})")
    place = f", on {told['place']['pin']} only" if told["place"]["pin"] else ""
    say(f"for the run {visible(told['run'])}{place}; asked {told['count']} time{'s' if told['count'] > 1 else ''}")
    quorum = ", ".join(f"{count} of {group}" for group, count in told["terms"]["quorum"].items())
    instead = f" (or {', '.join(told['groups'])} in their place)" if told["groups"] else ""
    say(f"needs {quorum}{instead}; {told['state']}, until {_when(told['expires_at'])}")
    if told["state"] == "cancelled":
        say(f"  cancelled: {visible(told['reason'])}")
    if told["editors"]:
        say(f"  edited by {', '.join(told['editors'])}: this is not what the agent asked for", "yellow")
    for vote in told["votes"]:
        seat = f" for {vote['seat']}" if vote["seat"] != vote["by"] else ""
        say(f"  {vote['by']}{seat}: {vote['decision']} {visible(vote['reason'])}")
    if told["under"]:
        say(f"  approved under {told['under']}")
    if told["left"]:
        left = told["left"]
        uses = f"{left['uses']} more times" if left["uses"] else "with any arguments"
        say(f"  goes on {uses}, until {_when(left['until_us'] // 1_000_000)}; licet approvals revoke takes it back")
    say(f"digest {told['action_digest']}", "dim")


def _arguments(told: dict[str, Any]) -> dict[str, Any]:
    if told["sealed"]:
        return {"personal": f"licet approvals show {told['id']}"}
    try:
        found = json.loads(told["payload"])["params"].get("arguments")
    except (ValueError, KeyError, TypeError, AttributeError):
        return {"payload": told["payload"]}
    return found if isinstance(found, dict) else {}


@app.command("watch")
@reporting
def watch(
    seconds: float = typer.Option(0.0, "--seconds", help="End after so long; 0: never."),
    token_file: Path | None = As,
) -> None:
    """Show requests as they come."""
    api, seen, began = gateway(token_file), set[str](), time.monotonic()
    while not seconds or time.monotonic() - began < seconds:
        for told in api.call("GET", "/v1/approvals?state=pending").body["approvals"]:
            if told["id"] not in seen:
                seen.add(told["id"])
                say(f"{told['id']}  until {_when(told['expires_at'])}", "bold")
                _say(told)
        time.sleep(POLL_S)


@app.command("approve")
@reporting
def approve(
    approval: str,
    reason: str = Reason,
    seat: str = Seat,
    yes: bool = Yes,
    token_file: Path | None = As,
    as_json: bool = Json,
) -> None:
    """Approve this one action."""
    _vote(approval, {"decision": "approve", "reason": reason, "seat": seat}, yes, token_file, as_json)


@app.command("grant")
@reporting
def grant(
    approval: str,
    uses: int = typer.Option(0, "--uses", min=0, max=100, help="These exact arguments, so many times in this run."),
    minutes: int = typer.Option(0, "--minutes", min=0, max=480, help="Without --uses: the tool, with any arguments."),
    reason: str = Reason,
    seat: str = Seat,
    yes: bool = Yes,
    token_file: Path | None = As,
    as_json: bool = Json,
) -> None:
    """Approve more than this once: it never goes above a forbid, nor beyond this run."""
    if not uses and not minutes:
        raise fail("how far shall it go? --uses N for these arguments, or --minutes N for the tool", USAGE)
    scope = {"kind": "uses", "uses": uses, "minutes": minutes} if uses else {"kind": "tool", "minutes": minutes}
    _vote(approval, {"decision": "approve", "reason": reason, "seat": seat, "scope": scope}, yes, token_file, as_json)


@app.command("deny")
@reporting
def deny(
    approval: str,
    reason: str = Reason,
    hush: bool = Hush,
    seat: str = Seat,
    block: bool = typer.Option(False, "--block", help="And whatever the same policy asks for in the rest of this run."),
    yes: bool = Yes,
    token_file: Path | None = As,
    as_json: bool = Json,
) -> None:
    """Deny it; the same action is refused for a day."""
    ballot = {"decision": "deny", "reason": reason, "tell": not hush, "seat": seat, "block": block}
    _vote(approval, ballot, yes, token_file, as_json)


def _vote(approval: str, ballot: dict[str, Any], yes: bool, token_file: Path | None, as_json: bool) -> None:
    """What is decided on is what was shown."""
    api = gateway(token_file)
    told = api.call("GET", f"/v1/approvals/{approval}").body
    if not yes and not as_json and sys.stdin.isatty():
        _say(told)
        if not typer.confirm(f"{ballot['decision']}?"):
            raise fail("nothing was decided", FAILED)
    try:
        told = api.call("POST", f"/v1/approvals/{approval}/votes", {**ballot, "presented": told["presented"]}).body
    except ApiError as bad:
        raise _unless_may(bad, token_file) from None
    show(told, as_json, lambda: say(f"{approval} is {told['state']}"))


def _unless_may(bad: ApiError, token_file: Path | None) -> Exception:
    if bad.problem.get("reason") == "not_yours" and token_file is None:
        return fail(f"{bad}\nvote as somebody who may: --as TOKEN-FILE, such as .licet/dev/approver-1.token")
    return bad


@app.command("edit")
@reporting
def edit(
    approval: str,
    arguments: str = typer.Argument(help="All arguments, as JSON; or @FILE that holds them."),
    reason: str = Reason,
    token_file: Path | None = As,
    as_json: bool = Json,
) -> None:
    """Change what would run. Votes of before do not count, and whoever changed it cannot vote."""
    api = gateway(token_file)
    try:
        text = Path(arguments[1:]).read_bytes() if arguments.startswith("@") else arguments.encode()
        given = read_object(text)
    except (OSError, Unverifiable) as bad:
        raise fail(f"arguments: {bad}", USAGE) from None
    told = api.call("GET", f"/v1/approvals/{approval}").body
    body = {"arguments": given, "presented": told["presented"], "reason": reason}
    try:
        told = api.call("POST", f"/v1/approvals/{approval}/edits", body).body
    except ApiError as bad:
        raise _unless_may(bad, token_file) from None
    show(told, as_json, lambda: _say(told))


@app.command("revoke")
@reporting
def revoke(approval: str, reason: str = Reason, token_file: Path | None = As, as_json: bool = Json) -> None:
    """Take back an approval that was not used, or what is left of how far it goes."""
    try:
        told = gateway(token_file).call("POST", f"/v1/approvals/{approval}/revocation", {"reason": reason}).body
    except ApiError as bad:
        raise _unless_may(bad, token_file) from None
    show(told, as_json, lambda: say(f"{approval} goes no further; it is {told['state']}"))


@app.command("deputy")
@reporting
def deputy(
    name: str = typer.Argument("", help="Who shall vote in your seat; without a name, all deputies are listed."),
    since: str = typer.Option("", "--since", help="From then on (2026-12-24, UTC); without it, from now on."),
    until: str = typer.Option("", "--until", help="Until then, at most a year."),
    end: bool = typer.Option(False, "--end", help="Not any more."),
    token_file: Path | None = As,
    as_json: bool = Json,
) -> None:
    """Let somebody vote in your place while you are away."""
    api, now = gateway(token_file), time.time_ns() // 1000
    if not name:
        found = api.call("GET", "/v1/deputies").body["deputies"]
        rows = [(one["deputy"], one["person"], _day(one["since_us"]), _day(one["until_us"])) for one in found]
        return show(found, as_json, lambda: table(("DEPUTY", "OF", "SINCE", "UNTIL"), rows, "nobody has a deputy"))
    if end:
        told = api.call("POST", "/v1/deputies/end", {"deputy": name}).body
        return show(told, as_json, lambda: say(f"{name} votes for you no more"))
    if not until:
        raise fail("--until: say when it ends, such as 2026-12-31", USAGE)
    try:
        begin = moments.parse(since, now) if since else now
        body = {"deputy": name, "since_us": begin, "until_us": moments.parse(until, now)}
    except ValueError as bad:
        raise fail(str(bad), USAGE) from None
    told = api.call("POST", "/v1/deputies", body).body
    return show(told, as_json, lambda: say(f"{name} votes in your seat until {_day(told['until_us'])}"))


def _day(wall_us: int) -> str:
    return datetime.datetime.fromtimestamp(wall_us / 1e6, datetime.UTC).strftime("%Y-%m-%d %H:%MZ")


def _when(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%H:%M:%SZ")
