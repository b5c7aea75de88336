"""``licet usage``: what was used, by whom, where and when; as events; and how that agrees with the ledger."""

from __future__ import annotations

import json
import time
from typing import Any
from urllib.parse import urlencode

import typer

from licet.cli.gateway_api import As, gateway
from licet.cli.output import FAILED, USAGE, Json, fail, reporting, say, show, table
from trust.ledger import moments

app = typer.Typer(name="usage", help="What actions used: sums, events, reconciliation.")
_BY = "agent, principal, team, node, node_kind, tool, day, run"


@app.callback(invoke_without_command=True)
@reporting
def usage(
    context: typer.Context,
    by: str = typer.Option("agent,node", help=f"Groups, separated by commas: {_BY}."),
    since: str = typer.Option("1d", help="How long ago, or a time (UTC)."),
    until: str = typer.Option("", help="The same."),
    token_file: Any = As,
    as_json: bool = Json,
) -> None:
    """Sums of the last day, or of another time. What nobody measured is shown as a dash, never as 0."""
    if context.invoked_subcommand is not None:
        return
    told = gateway(token_file).call("GET", f"/v1/usage?{_query(since, until, by=by)}").body
    names = told["by"]
    columns = (*(name.upper() for name in names), "ATTEMPTS", "DONE", "LOST", "REFUSED", "CHECKS", "WALL s", "NODE s")
    columns += ("CPU s", "IN", "OUT", "TOKENS")
    rows = [
        (
            *(one["group"][name] or "-" for name in names),
            one["attempts"],
            one["done"],
            one["lost"],
            one["refused"],
            _plain(one["evaluations"]),
            *(_seconds(one[name]) for name in ("took_us", "node_us", "cpu_us")),
            *(_bytes(one[name]) for name in ("bytes_in", "bytes_out")),
            _tokens(one),
        )
        for one in told["sums"]
    ]
    show(told, as_json, lambda: table(columns, rows, "nothing ran in this time"))


@app.command("events")
@reporting
def events(
    since: str = typer.Option("1d", help="How long ago, or a time (UTC)."),
    until: str = typer.Option("", help="The same."),
    token_file: Any = As,
) -> None:
    """One CloudEvent for each finished attempt, a line for each; corrections take back and tell again."""
    api, after = gateway(token_file), ""
    while True:
        told = api.call("GET", f"/v1/usage/events?{_query(since, until, after=after)}").body
        for event in told["events"]:
            print(json.dumps(event))
        after = told["next"]
        if not after:
            return


@app.command("reconcile")
@reporting
def reconcile(
    since: str = typer.Option("1d", help="How long ago, or a time (UTC)."),
    until: str = typer.Option("", help="The same."),
    token_file: Any = As,
    as_json: bool = Json,
) -> None:
    """Whether metering and ledger agree; exit code 1 if they do not."""
    told = gateway(token_file).call("GET", f"/v1/usage/reconciliation?{_query(since, until)}").body

    def people() -> None:
        say(f"{told['dispatched']} attempts were sent, {told['finished']} ended, {told['events']} events tell of them")
        say(f"{told['running']} have not ended; {told['corrected']} were lost and are known from their nodes")
        for action in told["unmetered"]:
            say(f"executed by a node, and the gateway does not know of it: {action}", "red")
        say("they agree" if told["agrees"] else "THEY DO NOT AGREE", "green" if told["agrees"] else "red")

    show(told, as_json, people)
    if not told["agrees"]:
        raise typer.Exit(FAILED)


def _query(since: str, until: str, **more: str) -> str:
    now = int(time.time() * 1e6)
    try:
        asked: dict[str, Any] = {"since_us": moments.parse(since, now)}
        if until:
            asked["until_us"] = moments.parse(until, now)
    except ValueError as bad:
        raise fail(str(bad), USAGE) from None
    return urlencode({**asked, **{name: value for name, value in more.items() if value}})


def _plain(value: int | None) -> str:
    return "-" if value is None else str(value)


def _seconds(us: int | None) -> str:
    return "-" if us is None else f"{us / 1e6:.3f}"


def _bytes(count: int | None) -> str:
    if count is None:
        return "-"
    return f"{count} B" if count < 10_000 else f"{count / 1024:.0f} KiB"


def _tokens(one: Any) -> str:
    read, written = one["tokens_in"], one["tokens_out"]
    return "-" if read is None and written is None else f"{read or 0}+{written or 0}"
