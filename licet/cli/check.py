"""``licet check``: a doctor. Groups of checks, a hint for each that fails, an exit code."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import typer

from edge import shared
from gateway import postgres
from licet import ledgers
from licet.cli.output import FAILED, USAGE, Json, fail, reporting, say, show
from licet.client import Api, ApiError, Unavailable
from licet.settings import Settings, load, read_token
from trust.ledger.verify import verify


@dataclass(frozen=True, slots=True)
class Checked:
    """One line; ``hint`` says what to do when it is not fine."""

    group: str
    what: str
    fine: bool
    found: str
    hint: str = ""


def _address(group: str, host: str, port: int, command: str) -> Checked:
    try:
        with socket.create_connection((host, port), timeout=1.0):
            return Checked(group, "listens", True, f"{host}:{port}")
    except OSError as bad:
        return Checked(group, "listens", False, f"{host}:{port}: {bad}", f"start it with `{command}` or `licet up`")


def _ready(group: str, settings: Settings) -> Iterator[Checked]:
    hints = {
        "bundle": "no verified bundle is active: `licet policy activate`, and see `licet policy status`",
        "ledger": "the ledger cannot be written: look at the disk, then restart this part",
        "facts": "the gateway has not been heard for 5 s: is it running, and do the clocks agree?",
        "lease": "the node could not renew its lease: is the gateway running?",
    }
    try:
        told = settings.api(group, timeout_s=2.0).call("GET", "/readyz").body
    except ApiError as bad:
        told = bad.problem
    except Unavailable:
        return
    for name, fine in told.get("checks", {}).items():
        yield Checked(group, name, bool(fine), "fine" if fine else "not fine", "" if fine else hints.get(name, ""))


def _gateway(settings: Settings) -> Iterator[Checked]:
    found = settings.gateway
    address = _address("gateway", found.host, found.port, "licet gateway")
    yield address
    if not address.fine:
        return
    yield from _ready("gateway", settings)
    try:
        api = settings.api("gateway", read_token(found.home / "operator.token", "the operator"))
        status = api.call("GET", "/v1/bundles").body
        yield Checked(
            "gateway", "policies", not status["degraded"], status["degraded"] or f"version {status['version']}"
        )
        yield from _registered(api)
    except Exception as bad:
        yield Checked("gateway", "operator", False, str(bad), "is LICET_HOME the one that the gateway runs with?")


def _registered(api: Api) -> Iterator[Checked]:
    """Nodes that cannot take work, agents that were stopped, tools that wait for an operator."""
    nodes = api.call("GET", "/v1/nodes").body["nodes"]
    live = {n["name"] for n in nodes if n["state"] == "ready"}
    others = [
        f"{n['name']} is {n['state']}, lease {n['lease_ms'] / 1000:.0f} s" for n in nodes if n["name"] not in live
    ]
    hint = "" if live else "start one with `licet node`; without a node every action gets no_eligible_node"
    yield Checked("gateway", "nodes", bool(live), "; ".join([f"{len(live)} of {len(nodes)} are ready", *others]), hint)
    agents = api.call("GET", "/v1/agents").body["agents"]
    killed = [a["name"] for a in agents if a["state"] == "killed"]
    found = f"{len(agents)} registered" + (f"; stopped: {', '.join(killed)}" if killed else "")
    targets = sorted({a["killed_by"] for a in agents if a["state"] == "killed"})
    hint = "let them go on with " + ", ".join(f"`licet agents unkill {t} --reason …`" for t in targets)
    yield Checked("gateway", "agents", not killed, found, hint if killed else "")
    for locked in (a["name"] for a in agents if a["state"] == "key_revoked"):
        hint = f"let it enrol with another key: `licet agents rotate {locked} --lost`"
        yield Checked("gateway", "agents", False, f"the key of {locked} is revoked", hint)
    servers = api.call("GET", "/v1/servers").body["servers"]
    changed = [s["name"] for s in servers if s["offers"]]
    hint = f"look at them with `licet servers diff {changed[0]}`" if changed else ""
    found = f"{len(servers)} admitted" + (f"; changed tools wait in {', '.join(changed)}" if changed else "")
    yield Checked("gateway", "servers", not changed, found, hint)


def _sidecar(settings: Settings) -> Iterator[Checked]:
    found = settings.sidecar
    address = _address("sidecar", found.host, found.port, "licet sidecar")
    yield address
    if address.fine:
        yield from _ready("sidecar", settings)
        try:
            token = read_token(found.home / "agent.token", "the agent")
            known = bool(settings.api("sidecar", token, 5.0).call("GET", "/readyz").body["known"])
            hint = "" if known else "the sidecar runs with another LICET_HOME"
            yield Checked("sidecar", "token", known, "accepted" if known else "not accepted", hint)
        except ApiError:
            return  # not ready, which was said above
        except Exception as bad:
            yield Checked("sidecar", "token", False, str(bad), "is LICET_HOME the one that the sidecar runs with?")


def _node(settings: Settings) -> Iterator[Checked]:
    found = settings.node
    address = _address("node", found.host, found.port, "licet node")
    yield address
    if address.fine:
        yield from _ready("node", settings)


def _machine(settings: Settings) -> Iterator[Checked]:
    bwrap = shutil.which("bwrap")
    hint = "install bubblewrap, so that the workbench's programs run in a sandbox"
    yield Checked("machine", "sandbox", bwrap is not None, bwrap or "bubblewrap is missing", "" if bwrap else hint)
    free = shutil.disk_usage(settings.home if settings.home.exists() else ".").free
    enough = free > 1 << 30
    yield Checked(
        "machine", "disk", enough, f"{free >> 20} MiB free", "" if enough else "a full disk refuses everything"
    )


def _stores(settings: Settings) -> Iterator[Checked]:
    """What several gateways share."""
    for group, url, examine in (
        ("postgresql", settings.gateway.database, postgres.examine),
        ("redis", settings.gateway.redis, shared.examine),
    ):
        if url:
            for one in asyncio.run(examine(url)):
                yield Checked(group, one.what, one.fine, one.found, "" if one.fine else one.hint)


def _ledgers(settings: Settings) -> Iterator[Checked]:
    for root in ledgers.roots(settings.home):
        report = verify(root)
        hint = "" if report.holds else f"look closer with `licet audit verify {root}`"
        yield Checked("ledgers", root.parent.name, report.holds, report.words()[0], hint)


GROUPS: tuple[Callable[[Settings], Iterator[Checked]], ...] = (_gateway, _stores, _sidecar, _node, _machine, _ledgers)


@reporting
def ready(part: str = typer.Argument(help="gateway, sidecar or node"), as_json: bool = Json) -> None:
    """Whether one part here is ready; for health checks. Exit code 1 if it is not, 4 if it cannot be reached."""
    if part not in ("gateway", "sidecar", "node"):
        raise fail(f'"{part}": expected gateway, sidecar or node', USAGE)
    try:
        told = load().api(part, timeout_s=3.0).call("GET", "/readyz").body
    except ApiError as bad:
        told = bad.problem
    show(told, as_json, lambda: say(f"{part} is {'ready' if told.get('ready') else 'not ready'}"))
    if not told.get("ready"):
        raise typer.Exit(FAILED)


OUTSIDE: Final = ("1.1.1.1:443", "8.8.8.8:53", "169.254.169.254:80")
"""Where whoever gets out of a machine or a cluster gets: two addresses that everybody knows, and a cloud's metadata."""


def _ways_out(targets: list[str]) -> Iterator[Checked]:
    """From where an agent runs, nothing is reached but its sidecar."""
    for target in targets:
        host, _, port = target.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
            raise fail(f'--target "{target}": expected HOST:PORT', USAGE)
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=2.0):
                hint = "a NetworkPolicy or firewall has to leave the sidecar as the only way out: see docs/deploy.md"
                yield Checked("ways around the sidecar", target, False, "reached", hint)
        except OSError as bad:
            yield Checked("ways around the sidecar", target, True, f"not reached ({bad})")


@reporting
def check(
    bypass: bool = typer.Option(
        False, "--bypass", help="Where an agent runs: try to get out around the sidecar, and fail if that works."
    ),
    target: list[str] = typer.Option(
        [], help="With --bypass: HOST:PORT that must not be reached, such as a node's; by default, the internet's."
    ),
    as_json: bool = Json,
) -> None:
    """Look at everything here and say what is wrong and what to do. Exit code 1 if anything is."""
    if bypass:
        _tell(list(_ways_out(target or list(OUTSIDE))), as_json)
        return
    settings = load()
    found = [Checked("configuration", str(settings.config_path or "defaults"), True, f"home {settings.home}")]
    for group in GROUPS:
        found += group(settings)
    _tell(found, as_json)


def _tell(found: list[Checked], as_json: bool) -> None:
    failed = [c for c in found if not c.fine]

    def people() -> None:
        group = ""
        for one in found:
            if one.group != group:
                group = one.group
                say(group, "bold")
            say(f"  {'✓' if one.fine else '✗'} {one.what}: {one.found}", "" if one.fine else "red")
            if not one.fine and one.hint:
                say(f"      {one.hint}", "yellow")
        say("all is well" if not failed else f"{len(failed)} of {len(found)} checks failed", "bold")

    shown = [{"group": c.group, "what": c.what, "fine": c.fine, "found": c.found, "hint": c.hint} for c in found]
    show(shown, as_json, people)
    if failed:
        raise typer.Exit(FAILED)
