"""``licet people``: register, list."""

from __future__ import annotations

import typer

from licet.cli.gateway_api import gateway
from licet.cli.output import Json, reporting, say, show, table

app = typer.Typer(name="people", help="People: who administers and who approves.", no_args_is_help=True)


@app.command("register")
@reporting
def register(
    name: str,
    role: list[str] = typer.Option(..., help="operator, author, or a role that policies name."),
    as_json: bool = Json,
) -> None:
    """Register a person; prints the token that signs them in, once."""
    told = gateway().call("POST", "/v1/people", {"name": name, "roles": role}).body
    show(told, as_json, lambda: say(f"{name} signs in with the token {told['token']}"))


@app.command("list")
@reporting
def list_people(as_json: bool = Json) -> None:
    """All people with their roles."""
    found = gateway().call("GET", "/v1/people").body["people"]
    rows = [(p["name"], ", ".join(p["roles"])) for p in found]
    show(found, as_json, lambda: table(("PERSON", "ROLES"), rows, "no people"))
