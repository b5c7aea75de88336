"""``licet approvals``: list, show, approve, deny."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import typer

from licet.cli.gateway_api import As, gateway
from licet.cli.output import USAGE, Json, fail, reporting, say, show, table
from licet.client import ApiError
from trust.reasons import visible

STATES = ("pending", "approved", "denied", "expired", "consumed", "all")
app = typer.Typer(name="approvals", help="Actions that wait for a person.", no_args_is_help=True)


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

    def people() -> None:
        say(f"{told['agent']} (for {told['principal']}) asks to call {told['server']}/{told['tool']}", "bold")
        for name, value in _arguments(told).items():
            say(f"  {visible(name)} = {visible(json.dumps(value), 2000)}")
        quorum = ", ".join(f"{count} of {role}" for role, count in told["terms"]["quorum"].items())
        say(
            f"for the run {visible(told['run'])}"
            + (f", on {told['place']['pin']} only" if told["place"]["pin"] else "")
        )
        say(f"needs {quorum}; {told['state']}, until {_when(told['expires_at'])}")
        if told["state"] == "cancelled":
            say(f"  cancelled: {visible(told['reason'])}")
        for vote in told["votes"]:
            say(f"  {vote['by']}: {vote['decision']} {visible(vote['reason'])}")
        say(f"digest {told['action_digest']}", "dim")

    show(told, as_json, people)


def _arguments(told: dict[str, Any]) -> dict[str, Any]:
    try:
        found = json.loads(told["payload"])["params"].get("arguments")
    except (ValueError, KeyError, TypeError, AttributeError):
        return {"payload": told["payload"]}
    return found if isinstance(found, dict) else {}


@app.command("approve")
@reporting
def approve(approval: str, reason: str = "", token_file: Path | None = As, as_json: bool = Json) -> None:
    """Approve this one action."""
    _vote(approval, "approve", reason, token_file, as_json)


@app.command("deny")
@reporting
def deny(
    approval: str,
    reason: str = typer.Option("", help="The agent is told."),
    token_file: Path | None = As,
    as_json: bool = Json,
) -> None:
    """Deny it."""
    _vote(approval, "deny", reason, token_file, as_json)


def _vote(approval: str, decision: str, reason: str, token_file: Path | None, as_json: bool) -> None:
    body = {"decision": decision, "reason": reason}
    try:
        told = gateway(token_file).call("POST", f"/v1/approvals/{approval}/votes", body).body
    except ApiError as bad:
        if bad.problem.get("reason") == "not_yours" and token_file is None:
            raise fail(
                f"{bad}\nvote as somebody who may: --as TOKEN-FILE, such as .licet/dev/approver-1.token"
            ) from None
        raise
    show(told, as_json, lambda: say(f"{approval} is {told['state']}"))


def _when(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%H:%M:%SZ")
