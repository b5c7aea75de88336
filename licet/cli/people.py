"""``licet people``: register, remove, list, login, passkeys, sign-out."""

from __future__ import annotations

from pathlib import Path

import typer

from licet.cli.gateway_api import As, gateway
from licet.cli.output import USAGE, Json, fail, reporting, say, show, table
from trust.ledger.tiles import write_atomically
from trust.ledger.words import moment
from trust.reasons import visible

app = typer.Typer(name="people", help="People: who administers and who approves.", no_args_is_help=True)


@app.command("register")
@reporting
def register(
    name: str,
    role: list[str] = typer.Option(..., help="operator, author, auditor, viewer, or a role that policies name."),
    team: list[str] = typer.Option([], help="A team that policies name as team:NAME."),
    login: str = typer.Option("", help="How the issuer of single sign-on calls them, such as ada@example.com."),
    namespace: str = typer.Option("", help="To which it belongs; without one: to the mesh, or to your own."),
    token_file: Path | None = typer.Option(None, "--token-file", help="Write the token there, for `--as`."),
    signed_in: Path | None = As,
    as_json: bool = Json,
) -> None:
    """Register a person; the token that signs them in is shown once, or written to a file."""
    if token_file is not None and token_file.exists():
        raise fail(f"{token_file} is there already; name a file that is not", USAGE)
    body = {"name": name, "roles": role, "teams": team, "login": login, "namespace": namespace}
    told = gateway(signed_in).call("POST", "/v1/people", body).body

    def people() -> None:
        if token_file is not None:
            say(f"{name} is registered and signs in with --as {token_file}")
        else:
            say(f"{name} signs in with the token {told['token']}")
            say("Keep it in a file that only they can read, for --as FILE; it is not shown again.", "dim")

    if token_file is not None:
        write_atomically(token_file, told["token"].encode() + b"\n", flush=True)
        told = {**told, "token": str(token_file)}
    show(told, as_json, people)


@app.command("list")
@reporting
def list_people(as_json: bool = Json) -> None:
    """All people with their roles."""
    found = gateway().call("GET", "/v1/people").body["people"]
    rows = [(p["name"], ", ".join(p["roles"]), ", ".join(p["teams"]), p["login"], p["namespace"]) for p in found]
    show(found, as_json, lambda: table(("PERSON", "ROLES", "TEAMS", "LOGIN", "NAMESPACE"), rows, "no people"))


@app.command("login")
@reporting
def login(
    name: str,
    login: str = typer.Argument(help='How the issuer of single sign-on calls them; "" ends that.'),
    as_json: bool = Json,
) -> None:
    """Let a person sign in to the console at the issuer of single sign-on."""
    told = gateway().call("POST", f"/v1/people/{name}/login", {"login": login}).body
    show(told, as_json, lambda: say(f"{name} signs in as {login}" if login else f"{name} signs in there no more"))


@app.command("remove")
@reporting
def remove(name: str, as_json: bool = Json) -> None:
    """Somebody leaves: their token, visits, passkeys and unused votes count no more. In another namespace nobody is
    called so again."""
    told = gateway().call("POST", f"/v1/people/{name}/remove").body
    show(told, as_json, lambda: say(f"{name} was removed"))


@app.command("sign-out")
@reporting
def sign_out(name: str, as_json: bool = Json) -> None:
    """End everything that a person is signed in to the console with, everywhere."""
    told = gateway().call("POST", f"/v1/people/{name}/sign-out", {}).body
    show(told, as_json, lambda: say(f"{told['ended']} visits of {name} were ended"))


@app.command("passkeys")
@reporting
def passkeys(
    name: str,
    remove: str = typer.Option("", help="The credential of one that was lost: it signs nothing any more."),
    as_json: bool = Json,
) -> None:
    """The passkeys of a person, who adds them in the console under their name."""
    if remove:
        told = gateway().call("POST", f"/v1/people/{name}/passkeys/remove", {"credential": remove}).body
        show(told, as_json, lambda: say(f"removed; {name} can add another by a sign-in link once they have none"))
        return
    found = gateway().call("GET", f"/v1/people/{name}/passkeys").body["passkeys"]
    rows = [(visible(key["name"]), moment(key["added_us"]), key["party"], key["credential"]) for key in found]
    show(found, as_json, lambda: table(("NAME", "SINCE", "FOR", "CREDENTIAL"), rows, f"{name} has no passkeys"))
