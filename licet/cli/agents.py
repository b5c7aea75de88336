"""``licet agents``: who may act, for whom, how far, and how trusted; everything an operator does to an agent."""

from __future__ import annotations

import datetime
import json
import secrets
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import typer

from edge.config import BadConfig
from licet import ledgers
from licet.cli.gateway_api import As, enrolling, gateway
from licet.cli.output import FAILED, USAGE, Json, fail, reporting, say, show, table
from licet.client import Credentials, delegate, describe, enroll, narrow
from licet.client.delegating import tools_in, tools_of
from licet.settings import load
from trust.identity import constraints
from trust.identity.delegation import MAX_DEPTH, MAX_LIFE_S
from trust.identity.keys import PublicKey, unb64url
from trust.ledger import entries, words
from trust.ledger.tiles import write_atomically
from trust.reasons import Reason as Wrong
from trust.reasons import Unverifiable, visible
from trust.standing.fold import Replayed
from trust.standing.score import Book

app = typer.Typer(name="agents", help="Agents: who may act, for whom, how far, and how trusted.", no_args_is_help=True)
Reason = typer.Option(..., "--reason", help='Why, as in --reason "a drill"; it is recorded and told.')


@app.command("register")
@reporting
def register(
    name: str,
    owner: str = typer.Option(..., help="The person for whom it acts."),
    purpose: str = typer.Option("", help="What it is for, in a few words."),
    environment: str = typer.Option("development"),
    team: list[str] = typer.Option([], help="A team it belongs to; may be given more than once."),
    attested: bool = typer.Option(False, help="Its build or host was attested; needed for the tier verified."),
    via: str = typer.Option("", help="It holds its key itself and shares the sidecar of this agent."),
    namespace: str = typer.Option("", help="To which it belongs; without one: to the mesh, or to your own."),
    token_file: Path | None = As,
    as_json: bool = Json,
) -> None:
    """Register an agent; prints the one-time token with which its sidecar enrols."""
    body = {
        "name": name,
        "owner": owner,
        "purpose": purpose,
        "environment": environment,
        "teams": team,
        "attested": attested,
        "via": via,
        "namespace": namespace,
    }
    told = gateway(token_file).call("POST", "/v1/agents", body).body

    def people() -> None:
        if not via:
            _enrols(name, told["enrolment_token"], f"{name} is registered.")
            return
        say(f"{name} is registered. It enrols once, from its own program, with")
        say(f'  licet.client.enroll("{gateway().url}", "{told["enrolment_token"]}", Path("{name}-home"))')
        say(f'(and the sidecar of {via} needs guests = ["{name}"] in [sidecar])', "dim")

    show(told, as_json, people)


@app.command("secret")
@reporting
def secret(
    name: str,
    owner: str = typer.Option("", help="The person for whom it acts."),
    namespace: str = typer.Option(..., help="The Kubernetes namespace of its pods."),
    purpose: str = typer.Option("", help="What it is for, in a few words."),
    team: list[str] = typer.Option([], help="A team it belongs to; may be given more than once."),
    renew: bool = typer.Option(False, "--renew", help="It is registered: its key is replaced, the former ends now."),
    token_file: Path | None = As,
) -> None:
    """Register an agent, enrol it, and print the Secret with which its pods get a sidecar: for `kubectl apply -f -`."""
    if renew == bool(owner):
        raise fail("--owner for a new agent, or --renew for one that is registered", USAGE)
    api = gateway(token_file)
    told = (
        api.call("POST", f"/v1/agents/{name}/rotate", {"lost": True})
        if renew
        else api.call("POST", "/v1/agents", {"name": name, "owner": owner, "purpose": purpose, "teams": team})
    )
    token = told.body["enrolment_token"]
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        enroll(api.url, token, home, Path(api.authority) if api.authority else None)
        files = {path.name: path.read_text("utf-8") for path in sorted(home.iterdir())}
    files["agent.token"] = secrets.token_urlsafe(32)
    manifest = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": f"licet-agent-{name}", "namespace": namespace},
        "type": "Opaque",
        "stringData": files,
    }
    print(json.dumps(manifest, indent=2))


def _enrols(name: str, token: str, first: str) -> None:
    say(f"{first} Its sidecar enrols once with")
    say(f"  {enrolling('sidecar', name, token)}")
    say("(each sidecar has a home and a port of its own; elsewhere, GATEWAY_URL is how the gateway is reached)", "dim")


@app.command("list")
@reporting
def list_agents(as_json: bool = Json) -> None:
    """All agents with owner, state, score and tier."""
    found = gateway().call("GET", "/v1/agents").body["agents"]
    columns = ("AGENT", "OWNER", "TEAMS", "STATE", "SCORE", "TIER", "PURPOSE")
    rows = [
        (a["name"], a["owner"], ", ".join(a["teams"]), a["state"], a["score"], a["tier"], a["purpose"]) for a in found
    ]
    show(found, as_json, lambda: table(columns, rows, "no agents"))


@app.command("show")
@reporting
def show_agent(name: str, as_json: bool = Json) -> None:
    """One agent: its names, keys, roots of delegation, standing, and why it is stopped if it is."""
    found = gateway().call("GET", f"/v1/agents/{name}").body

    def people() -> None:
        because = f": {found['because']}" if found["because"] else ""
        say(f"{found['name']}  {found['state']}{because}", "bold")
        say(f"  {found['did']}")
        teams = f", in {', '.join(found['teams'])}" if found["teams"] else ""
        say(f"  acts for {found['owner']}{teams}; {found['environment']}; {found['purpose'] or 'no purpose given'}")
        say(f"  score {found['score']}, {found['tier']} (ring {found['ring']}); epoch {found['epoch']}")
        for key in found["keys"]:
            state = (
                "revoked" if key["revoked"] else f"drains until {_moment(key['until'])}" if key["until"] else "current"
            )
            say(f"  key {key['thumbprint']}  {state}")
            say(f"      {key['did']}")
        if found["rotating"]:
            say("  its sidecar was asked to replace the key")
        for root in found["roots"]:
            say(f"  root {root['root']} until {_moment(root['expires_at'])}")

    show(found, as_json, people)


def _moment(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


# Keys and stops


@app.command("rotate")
@reporting
def rotate(
    name: str,
    lost: bool = typer.Option(
        False, "--lost", help="The key is lost or known to others: enrol again with a new token."
    ),
    token_file: Path | None = As,
    as_json: bool = Json,
) -> None:
    """Replace an agent's key: its sidecar does it within a second, and the old key drains."""
    told = gateway(token_file).call("POST", f"/v1/agents/{name}/rotate", {"lost": lost}).body

    def people() -> None:
        if lost:
            say(f"{name} gets a new key. Stop its sidecar, remove identity.key and enrolment.json in its home, and")
            say("start it as before (the same home and port) with this token; then nothing of before counts:")
            say(f"  LICET_SIDECAR__ENROLMENT_TOKEN={told['enrolment_token']} licet sidecar")
        else:
            say(f"the sidecar of {name} replaces the key as soon as it hears of it; see `licet agents show {name}`")

    show(told, as_json, people)


@app.command("revoke")
@reporting
def revoke(
    agent: str = typer.Argument("", help="The agent, if that is what is revoked."),
    reason: str = Reason,
    key: str = typer.Option("", help="A key, by its thumbprint."),
    token: str = typer.Option("", help="A token of a delegation chain, by its hash; everything below it goes too."),
    root: str = typer.Option("", help="A root of delegation, by its id; everything below it goes too."),
    session: str = typer.Option("", help="A session, by its id."),
    principal: str = typer.Option("", help="A person: every agent that acts for them."),
    token_file: Path | None = As,
    as_json: bool = Json,
) -> None:
    """Stop believing an agent, key, token, root, session or principal, for good (what `kill` stops can go on again)."""
    given = {"agent": agent, "key": key, "token": token, "root": root, "session": session, "principal": principal}
    named = {what: name for what, name in given.items() if name}
    if len(named) != 1:
        raise fail("name exactly one thing: an agent, --key, --token, --root, --session or --principal", USAGE)
    what, name = next(iter(named.items()))
    body = {"what": what, "id": name, "reason": reason}
    told = gateway(token_file).call("POST", "/v1/revocations", body).body
    show(told, as_json, lambda: _did(f"{what} {name} is revoked", reason, told["note"]))


@app.command("kill")
@reporting
def kill(target: str, reason: str = Reason, token_file: Path | None = As, as_json: bool = Json) -> None:
    """Stop an agent, a team or `all` at once; it stays stopped until `unkill`."""
    told = gateway(token_file).call("POST", "/v1/kills", {"target": target, "reason": reason}).body
    show(told, as_json, lambda: _did(f"{told['killed']} is stopped", reason, told["note"]))


def _did(what: str, reason: str, note: str) -> None:
    """What was done and why; if it was done before, only that."""
    if note.startswith("it was"):
        say(f"{what}; {note}", "yellow")
        return
    say(f"{what}: {reason}")
    if note:
        say(note, "yellow")


@app.command("unkill")
@reporting
def unkill(target: str, reason: str = Reason, token_file: Path | None = As, as_json: bool = Json) -> None:
    """Let what was stopped go on. What waited for approval when it was stopped stays cancelled."""
    told = gateway(token_file).call("POST", "/v1/kills/lift", {"target": target, "reason": reason}).body
    show(told, as_json, lambda: _did(f"{told['lifted']} is not stopped any more", reason, told["note"]))


# Delegation


@app.command("delegate")
@reporting
def delegate_to(
    to: str = typer.Argument(..., help="The agent that gets it, by name; or its did:key, which needs no gateway."),
    tool: list[str] = typer.Option([], "--tool", help="server/tool; may be given more than once."),
    only: list[str] = typer.Option(
        [], "--only", help="A constraint: server/tool:argument=value, ^=prefix, =a|b, =1..5, or :={JSON}."
    ),
    expires: int = typer.Option(3600, "--expires", min=1, max=MAX_LIFE_S, help="Seconds that it lives."),
    max_depth: int | None = typer.Option(None, min=0, max=MAX_DEPTH, help="How often it may be handed on in all."),
    chain: Path | None = typer.Option(
        None, "--chain", help="Narrow this chain, offline (all of it, without --tool and --only); else a new root."
    ),
    home: Path | None = typer.Option(None, "--home", help="The delegating agent's home; by default the sidecar's."),
    out: Path | None = typer.Option(None, "--out", "-o", help="Write the chain there instead of printing it."),
    as_json: bool = Json,
) -> None:
    """Hand part of an agent's authority to another: signed with the agent's key, and only ever less."""
    try:
        tools: Mapping[str, Any] = tools_of(tool, only)
    except ValueError as bad:
        raise fail(str(bad), USAGE) from None
    parent = read_chain(chain) if chain is not None else ""
    if not tools and parent:
        tools = msgspec.to_builtins(tools_in(parent))
    if not tools:
        raise fail("name what is delegated: --tool server/tool, or --only server/tool:argument=value", USAGE)
    settings = load()
    credentials = Credentials.load(home or settings.sidecar.home)
    holder = _key_in(to) if to.startswith("did:") else _key_of(to)
    if not parent:
        api = gateway()
        credentials.authority = api.authority
        given = settings.sidecar
        if home is None and given.tls_certificate is not None and given.tls_key is not None:
            credentials.certificate = given.tls_certificate, given.tls_key
        parent = delegate(credentials, api.url, tools, lives_s=expires)
    until = int(time.time()) + expires
    made = narrow(credentials, parent, holder, tools, lives_s=expires, max_depth=max_depth)
    told = {"chain": made, **describe(credentials, made)}
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, made.encode("ascii") + b"\n")

    def people() -> None:
        say(f"{credentials.name} lets {to} do this for {told['principal']} until {_moment(told['expires_at'])}:")
        for name, arguments in sorted(tools_in(made).items()):
            limits = "; ".join(f"{visible(a)} {constraints.told(c)}" for a, c in sorted(arguments.items()))
            say(f"  {name}{f'  ({limits})' if limits else ''}")
        if told["expires_at"] < until - 1:
            say("(the token before ends then, so this one does)", "dim")
        say(f"revoke it with: licet agents revoke --token {told['tokens'][-1]} --reason …", "dim")
        if out is not None:
            say(f"use it where the sidecar of {to} runs (its home and port, if they are not the default ones):", "dim")
            beside = "LICET_SIDECAR__HOME=… LICET_SIDECAR__PORT=…"
            say(f"  {beside} licet run --delegation {out} -- COMMAND", "dim")
        else:
            print(made)

    show(told, as_json, people)


def read_chain(path: Path) -> str:
    """The delegation chain in a file; says which file when there is none in it."""
    try:
        chain = path.read_text("ascii").strip()
        tools_in(chain)
    except (UnicodeDecodeError, Unverifiable):
        told = "expected one line, root~…~leaf, as `licet agents delegate -o FILE` writes it"
        raise Unverifiable(Wrong.DELEGATION_INVALID, f"{path} holds no delegation chain; {told}") from None
    return chain


def _key_in(text: str) -> PublicKey:
    try:
        return PublicKey.from_did(text)
    except Unverifiable as bad:
        detail = f"{visible(text)}: {bad.detail}; expected the did:key of an Ed25519 key, or the name of an agent"
        raise Unverifiable(Wrong.MALFORMED_REQUEST, detail) from None


def _key_of(agent: str) -> PublicKey:
    try:
        found = gateway().call("GET", f"/v1/agents/{agent}").body
    except BadConfig as bad:
        told = f"who {agent} is, the gateway knows, and this is not an operator's machine ({bad})"
        raise fail(f"{told}; name its did:key instead, as `licet agents show {agent}` there prints it", USAGE) from None
    if not found["key"]:
        raise fail(f"{agent} is registered but not enrolled: it has no key to delegate to", FAILED)
    if found["state"] != "active":
        raise fail(f"{agent} is {found['state']} ({found['because']}): nothing is delegated to it", FAILED)
    return PublicKey(unb64url(found["key"]))


# Standing


@app.command("vouch")
@reporting
def vouch(
    voucher: str = typer.Argument(..., help="The agent that stakes evidence it earned; its score must be 700 or more."),
    target: str = typer.Argument(..., help="The agent that it vouches for, of another principal."),
    stake: float = typer.Option(..., help="How much evidence; the target gets half of it for 30 days."),
    reason: str = Reason,
    token_file: Path | None = As,
    as_json: bool = Json,
) -> None:
    """Let one agent vouch for another. If the other does something severe, the stake is lost."""
    body = {"voucher": voucher, "milli": round(stake * 1000), "reason": reason}
    told = gateway(token_file).call("POST", f"/v1/agents/{target}/vouch", body).body
    show(told, as_json, lambda: say(f"{voucher} vouches for {target}, which has {told['score']} now"))


@app.command("clear")
@reporting
def clear(name: str, reason: str = Reason, token_file: Path | None = As, as_json: bool = Json) -> None:
    """Lift the cap of 299 that a critical event left, after somebody looked at it. The evidence stays."""
    told = gateway(token_file).call("POST", f"/v1/agents/{name}/clear", {"reason": reason}).body
    show(told, as_json, lambda: say(f"{name} is cleared; it has {told['score']} now"))


@app.command("grant")
@reporting
def grant(
    name: str,
    reason: str = Reason,
    withdraw: bool = typer.Option(False, "--withdraw", help="Take the grant back."),
    token_file: Path | None = As,
    as_json: bool = Json,
) -> None:
    """Let an attested agent pass a score of 899."""
    body = {"allowed": not withdraw, "reason": reason}
    told = gateway(token_file).call("POST", f"/v1/agents/{name}/grant", body).body
    show(told, as_json, lambda: say(f"{name} {'may no longer' if withdraw else 'may'} be verified"))


@app.command("explain")
@reporting
def explain(
    name: str, count: int = typer.Option(20, "-n", help="How many of the last changes."), as_json: bool = Json
) -> None:
    """Why an agent has the score that it has: what counts now, and every change with what caused it."""
    told = gateway().call("GET", f"/v1/agents/{name}/standing").body
    show(told, as_json, lambda: _tell(told, count))


def _tell(told: dict[str, Any], count: int) -> None:
    found = told["evidence"]
    say(f"{told['agent']}  score {told['score']}, {told['tier']} (ring {told['ring']})", "bold")
    r, v, s = (found[name] / 1000 for name in ("earned", "vouched", "negative"))
    prior, weight = found["prior"] / 1000, found["prior_weight"] / 1000
    above, below = f"earned {r:g} + vouched {v:g}", f"negative {s:g}"
    say(f"  1000 · ({above} + {prior:g}) / ({above} + {below} + {weight:g})")
    if found["cap"] < 1000:
        say(f"  and never above {found['cap']}")
    today = ", ".join(
        f"class {risk}: {got / 1000:g} of {most / 1000:g}"
        for risk, (got, most) in enumerate(zip(told["earned_today"], told["caps_a_day"], strict=True))
    )
    say(f"  earned today  {today}", "dim")
    moved = told["moved"]
    if len(moved) > count:
        say(f"  … {len(moved) - count} earlier changes (-n {len(moved)})", "dim")
    for one in moved[-count:]:
        cause = f"#{one['cause']}" if one["cause"] >= 0 else f"by {one['by']}: {one['reason']}"
        say(f"  #{one['index']}  {_moment(one['at_s'])}  {one['before']} → {one['after']}  {_why(one)}  ({cause})")


def _why(one: dict[str, Any]) -> str:
    moved = {name: value for name, value in one.items() if name != "index"}
    return words.why_moved(msgspec.convert(moved, entries.Standing))


@app.command("replay")
@reporting
def replay(as_json: bool = Json) -> None:
    """Compute every score again from the gateway's ledger, and compare with what the gateway has."""
    root = load().gateway.home / "ledger"
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: there is no ledger of a gateway here; run this where the gateway runs")
    stored = gateway().call("GET", "/v1/standings").body
    replayed = Replayed()
    for index, line in ledgers.lines(root):
        if index < stored["entries"]:
            replayed.read(index, line)
    kept = {book.agent: book for book in msgspec.convert(stored["books"], list[Book])}
    made = {book.agent: book for book in replayed.books()}
    wrong = [
        *replayed.wrong,
        *(f"{due.agent}: {due.rule} because of #{due.cause} was never written" for due in replayed.missing),
        *(f"{name}: the stored book is another" for name in sorted({*kept, *made}) if kept.get(name) != made.get(name)),
    ]
    told = {
        "entries": stored["entries"],
        "observed": replayed.observed,
        "moved": replayed.moved,
        "agents": len(made),
        "wrong": wrong,
    }
    show(told, as_json, lambda: _compared(told))
    if wrong:
        raise typer.Exit(FAILED)


def _compared(told: dict[str, Any]) -> None:
    for line in told["wrong"][:50]:
        say(line, "red")
    if told["wrong"]:
        return
    say(
        f"{told['entries']} entries, {told['observed']} observations, {told['moved']} changes: "
        f"the books of {told['agents']} agents come out the same, bit for bit",
        "green",
    )
