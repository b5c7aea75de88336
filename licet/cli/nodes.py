"""``licet nodes``: register, list, show, drain, quarantine, resume, restore, vouch, verify, explain."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer

from licet.cli.gateway_api import As, enrolling, gateway
from licet.cli.output import FAILED, USAGE, Json, fail, reporting, say, show, table
from licet.client import ApiError
from trust.identity import voucher
from trust.identity.keys import SecretKey
from trust.ledger.tiles import write_atomically
from trust.ledger.words import moment

app = typer.Typer(name="nodes", help="Nodes: where tools run, and why there.", no_args_is_help=True)
SEALED_WITHIN_S = 5.0
"""What was decided just now can be asked for once it is sealed, about a second later."""


@app.command("register")
@reporting
def register(
    name: str,
    server: list[str] = typer.Option(..., help="A server that it may offer; may be given more than once."),
    url: str = typer.Option("", help="Where it is reached; without it, on loopback."),
    outbound: bool = typer.Option(False, help="It cannot be reached: it connects to the gateway and gets work there."),
    kind: str = typer.Option("on_prem", help="on_prem, cloud_pc, edge or cloud."),
    zone: str = typer.Option("default"),
    capability: list[str] = typer.Option(
        [], help="What you vouch for: gpu, region=eu-west, data_locality=berlin; may be given more than once."
    ),
    weight: float = typer.Option(1.0, help="How much of the work it should get beside others of equal speed."),
    slots: int = typer.Option(16, help="How many actions it runs at once."),
    reference: str = typer.Option("", help="What it is called where it is managed, such as an Azure Arc resource id."),
    namespace: str = typer.Option("", help="To which it belongs; without one: to the mesh, or to your own."),
    signed_in: Path | None = As,
    as_json: bool = Json,
) -> None:
    """Register a node; prints the one-time token with which it enrols."""
    body = {
        "name": name,
        "servers": server,
        "url": url,
        "outbound": outbound,
        "kind": kind,
        "zone": zone,
        "capabilities": capabilities(capability),
        "weight": weight,
        "slots": slots,
        "reference": reference,
        "namespace": namespace,
    }
    told = gateway(signed_in).call("POST", "/v1/nodes", body).body

    def people() -> None:
        say(f"{name} is registered. It enrols once with")
        say(f"  {enrolling('node', name, told['enrolment_token'])}")
        say("(each node has a home and a port of its own, and its servers in [node])", "dim")

    show(told, as_json, people)


def capabilities(given: Iterable[str]) -> dict[str, str | bool]:
    """``gpu`` and ``region=eu`` as the interface has them."""
    found: dict[str, str | bool] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if name in found:
            raise fail(f"--capability {name} is given twice", USAGE)
        found[name] = value if equals else True
    return found


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
            f"{n['lease_ms'] / 1000:.0f} s" if n["lease_ms"] else "none",
            f"{n['outstanding']}/{n['slots']}",
            ", ".join(f"{c['word']} ({c['level']})" for c in n["capabilities"]) or "-",
            ", ".join(n["servers"]) or "nothing",
        )
        for n in found
    ]
    columns = ("NODE", "KIND", "ZONE", "STATE", "LEASE", "BUSY", "CAPABILITIES", "OFFERS")
    show(found, as_json, lambda: table(columns, rows, "no nodes"))


@app.command("show")
@reporting
def show_node(name: str, as_json: bool = Json) -> None:
    """One node: where it is, what it holds and how that is known, what runs there and how fast."""
    n = gateway().call("GET", f"/v1/nodes/{name}").body

    def people() -> None:
        why = f" ({n['reason']})" if n["reason"] else ""
        say(f"{n['name']}, {n['kind']} in zone {n['zone']}: {n['state']}{why}", "bold")
        say(f"  address    {'it connects itself' if n['url'] == 'outbound:' else n['url'] or 'never joined'}")
        if n["reference"]:
            say(f"  known as   {n['reference']}")
        say(f"  lease      epoch {n['epoch']}, {n['lease_ms'] / 1000:.1f} s left")
        say(f"  offers     {', '.join(n['servers']) or 'nothing'}")
        resting = f", rests for {n['ejected_ms'] / 1000:.0f} s after failures" if n["ejected_ms"] else ""
        say(f"  running    {n['outstanding']} of {n['slots']} slots, weight {n['weight']:g}{resting}")
        for held in n["capabilities"]:
            until = f" until {moment(held['until_us'])}" if held["until_us"] else ""
            suspended = ", suspended" if held["word"] in n["suspended"] else ""
            counts = "counts for nothing" if held["level"] == "claimed" else f"{held['level']}{until}{suspended}"
            say(f"  capability {held['word']}: {counts}")
        for work in n["work"]:
            say(f"  expected   {work['work']}: {work['ms']:.1f} ms")

    show(n, as_json, people)


@app.command("drain")
@reporting
def drain(name: str, reason: str = typer.Option("", help="For the ledger."), as_json: bool = Json) -> None:
    """What runs there is finished; it gets nothing more until `licet nodes resume`."""
    _put(name, "draining", reason, as_json)


@app.command("quarantine")
@reporting
def quarantine(name: str, reason: str = typer.Option(..., help="For the ledger."), as_json: bool = Json) -> None:
    """It gets nothing more, and what runs there is ended now."""
    _put(name, "quarantined", reason, as_json)


@app.command("resume")
@reporting
def resume(name: str, reason: str = typer.Option("", help="For the ledger."), as_json: bool = Json) -> None:
    """It gets work again."""
    _put(name, "ready", reason, as_json)


def _put(name: str, state: str, reason: str, as_json: bool) -> None:
    told = gateway().call("POST", f"/v1/nodes/{name}/state", {"state": state, "reason": reason}).body
    show(told, as_json, lambda: say(f"{told['name']} is {told['state']}"))


@app.command("restore")
@reporting
def restore(
    name: str,
    capability: str = typer.Option(..., help="What was suspended, such as gpu."),
    reason: str = typer.Option(..., help="For the ledger."),
    as_json: bool = Json,
) -> None:
    """A capability that was suspended counts again; for those that the gateway cannot find out itself."""
    body = {"capability": capability, "reason": reason}
    told = gateway().call("POST", f"/v1/nodes/{name}/restore", body).body
    show(told, as_json, lambda: say(f"{told['restored']} of {told['name']} counts again"))


@app.command("verify")
@reporting
def verify(name: str, as_json: bool = Json) -> None:
    """Ask the node now for everything that can be asked of it. Exit code 1 if something does not hold."""
    told = gateway().call("POST", f"/v1/nodes/{name}/verify").body

    def people() -> None:
        for one in told["proved"]:
            holds = "holds" if one["holds"] else "DOES NOT HOLD"
            say(f"{one['capability']}: {holds}, {one['how']}", "green" if one["holds"] else "red")
        if not told["proved"]:
            why = "no issuer with within_ms has bound anything to its key, and no [gateway.gpu] asks for its GPU"
            say(f"nothing can be asked of it: {why}", "dim")

    show(told, as_json, people)
    if not all(one["holds"] for one in told["proved"]):
        raise typer.Exit(FAILED)


@app.command("vouch")
@reporting
def vouch(
    name: str,
    capability: str = typer.Option(..., help="Such as data_locality=berlin."),
    key: Path = typer.Option(..., help="The issuer's key; made if it is not there, with its public part in KEY.pub."),
    days: int = typer.Option(30, min=1, max=366, help="For how long."),
    output: Path = typer.Option(..., "--output", "-o", help="The file for the node's [node] vouchers."),
) -> None:
    """Vouch for a capability of a node, as its issuer: bound to the key that the node holds now."""
    node = gateway().call("GET", f"/v1/nodes/{name}").body
    if not node["key"]:
        raise fail(f"{name} has not enrolled yet, so it holds no key that could be vouched for", FAILED)
    issuer = SecretKey.load_or_create(key)
    public = key.with_name(key.name + ".pub")
    write_atomically(public, json.dumps(dict(issuer.public.jwk)).encode() + b"\n")
    now = int(time.time())
    made = voucher.Voucher(capability, node["did"], node["key"], now, now + days * 86_400)
    write_atomically(output, voucher.seal(made, issuer).encode() + b"\n")
    say(f"{output}: {capability} of {name}, for {days} days")
    say(f'the gateway believes it with [[gateway.issuers]] capability = "{capability}", key_file = "{public}"', "dim")


@app.command("explain")
@reporting
def explain(decision: str, token_file: Any = As, as_json: bool = Json) -> None:
    """Why an action ran where it ran, computed again from the trace in the ledger. Exit code 1 if it does not agree."""
    told = _explained(token_file, decision)

    def people() -> None:
        for attempt in told["attempts"]:
            _tell(attempt)

    show(told, as_json, people)
    if any(attempt["wrong"] for attempt in told["attempts"]):
        raise typer.Exit(FAILED)


def _explained(token_file: Any, decision: str) -> Any:
    api, deadline = gateway(token_file), time.monotonic() + SEALED_WITHIN_S
    while True:
        try:
            return api.call("GET", f"/v1/decisions/{decision}/routing").body
        except ApiError as bad:
            if bad.status != 404 or time.monotonic() > deadline:
                raise
        time.sleep(0.25)


def _tell(attempt: Any) -> None:
    told = attempt["trace"]
    number = f", attempt {told['attempt']}" if told.get("attempt", 1) > 1 else ""
    say(f"{told['tool_name']} went to {told['node_id']}{number}: {told['why']}", "bold")
    limits = ", ".join(f"{name} {_words(value)}" for name, value in told["constraints"].items())
    say(f"  constraints  {limits}")
    for reason, count in told["eliminated"].items():
        say(f"  fell out     {count} {reason.replace('_', ' ')}")
    spared = f", {told['spared']} more rest after failures" if told.get("spared") else ""
    say(f"  eligible     {told['eligible']}{spared}; {len(told['looked'])} looked at")
    rows = [
        (
            one["node"],
            f"{one['cost'] / 1000:.2f}",
            f"{one['peak_us'] / 1000:.1f}",
            f"{one['age_us'] / 1e6:.0f}",
            f"{one['prior_us'] / 1000:.1f}",
            f"{one['outstanding']}/{one['slots']}",
            f"{one['weight_milli'] / 1000:g}",
        )
        for one in sorted(told["looked"], key=lambda one: one["cost"])
    ]
    table(("NODE", "COST", "PEAK ms", "SEEN s AGO", "CLASS ms", "BUSY", "WEIGHT"), rows, "nobody")
    margin = f"; the runner-up {told['runner_up']} is {100 * told['margin']:.0f} % dearer" if told["runner_up"] else ""
    say(f"  score        {told['score']:.2f}{margin}")
    audit = attempt["audit"]
    say(f"  recorded     {audit['origin']}#{audit['index']}")
    if attempt["wrong"]:
        for wrong in attempt["wrong"]:
            say(f"  DOES NOT FOLLOW: {wrong}", "red")
    else:
        say(f"  computed again from seed {told['seed']} and this snapshot: the same node", "green")


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value).lower()
