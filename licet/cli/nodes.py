"""``licet nodes``: register, list."""

from __future__ import annotations

import typer

from licet.cli.gateway_api import enrolling, gateway
from licet.cli.output import Json, reporting, say, show, table

app = typer.Typer(name="nodes", help="Nodes: where tools run.", no_args_is_help=True)


@app.command("register")
@reporting
def register(
    name: str,
    server: list[str] = typer.Option(..., help="A server that it may offer; may be given more than once."),
    url: str = typer.Option("", help="Where it is reached; without it, on loopback."),
    kind: str = typer.Option("on_prem", help="on_prem, cloud_pc, edge or cloud."),
    zone: str = typer.Option("default"),
    slots: int = typer.Option(16, help="How many actions it runs at once."),
    as_json: bool = Json,
) -> None:
    """Register a node; prints the one-time token with which it enrols."""
    body = {"name": name, "servers": server, "url": url, "kind": kind, "zone": zone, "slots": slots}
    told = gateway().call("POST", "/v1/nodes", body).body

    def people() -> None:
        say(f"{name} is registered. It enrols once with")
        say(f"  {enrolling('node', name, told['enrolment_token'])}")
        say("(each node has a home and a port of its own, and its servers in [node])", "dim")

    show(told, as_json, people)


@app.command("list")
@reporting
def list_nodes(as_json: bool = Json) -> None:
    """All nodes with state, lease and what they offer."""
    found = gateway().call("GET", "/v1/nodes").body["nodes"]
    rows = [
        (
            n["name"],
            n["kind"],
            n["zone"],
            n["state"],
            n["lease"],
            n["outstanding"],
            ", ".join(n["servers"]) or "nothing",
        )
        for n in found
    ]
    columns = ("NODE", "KIND", "ZONE", "STATE", "LEASE", "BUSY", "OFFERS")
    show(found, as_json, lambda: table(columns, rows, "no nodes"))
