"""``licet agents``: register, list, kill, unkill."""

from __future__ import annotations

import typer

from licet.cli.gateway_api import gateway
from licet.cli.output import Json, reporting, say, show, table

app = typer.Typer(name="agents", help="Agents: who may act, for whom.", no_args_is_help=True)


@app.command("register")
@reporting
def register(
    name: str,
    owner: str = typer.Option(..., help="The person for whom it acts."),
    purpose: str = typer.Option("", help="What it is for, in a few words."),
    environment: str = typer.Option("development"),
    team: list[str] = typer.Option([], help="A team it belongs to; may be given more than once."),
    as_json: bool = Json,
) -> None:
    """Register an agent; prints the one-time token with which its sidecar enrols."""
    body = {"name": name, "owner": owner, "purpose": purpose, "environment": environment, "teams": team}
    told = gateway().call("POST", "/v1/agents", body).body

    def people() -> None:
        say(f"{name} is registered. Its sidecar enrols once with")
        token = told["enrolment_token"]
        settings = f"LICET_SIDECAR__HOME=.licet/{name} LICET_SIDECAR__PORT=7411"
        say(f"  {settings} LICET_SIDECAR__ENROLMENT_TOKEN={token} licet sidecar")
        say("(each sidecar has a home and a port of its own)", "dim")

    show(told, as_json, people)


@app.command("list")
@reporting
def list_agents(as_json: bool = Json) -> None:
    """All agents with owner, state and score."""
    found = gateway().call("GET", "/v1/agents").body["agents"]
    rows = [(a["name"], a["owner"], a["state"], a["score"], a["purpose"]) for a in found]
    show(found, as_json, lambda: table(("AGENT", "OWNER", "STATE", "SCORE", "PURPOSE"), rows, "no agents"))


@app.command("kill")
@reporting
def kill(
    target: str, reason: str = typer.Option(..., help="Why; it is recorded and told."), as_json: bool = Json
) -> None:
    """Stop an agent (or `all`) at once; it stays stopped until `unkill`."""
    told = gateway().call("POST", "/v1/kills", {"target": target, "reason": reason}).body
    show(told, as_json, lambda: say(f"{target} is stopped: {reason}"))


@app.command("unkill")
@reporting
def unkill(target: str, reason: str = typer.Option(...), as_json: bool = Json) -> None:
    """Let a stopped agent go on."""
    told = gateway().call("POST", "/v1/kills/lift", {"target": target, "reason": reason}).body
    show(told, as_json, lambda: say(f"{target} may go on: {reason}"))
