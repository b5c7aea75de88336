"""``licet up``: everything in one terminal."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import Collection
from pathlib import Path
from types import FrameType

import typer

from licet import ledgers
from licet.cli.output import FAILED, USAGE, fail, reporting, say
from licet.cli.run import agent_environment
from licet.launcher import APPROVERS, Launcher, NotStarted, sandboxed
from licet.settings import load, read_token
from trust.ledger import words

_SETTING = re.compile(r"LICET_(GATEWAY|SIDECAR|NODE)__")


class _Stop(Exception):
    """Ctrl-C or SIGTERM."""


def _stop(_number: int, _frame: FrameType | None) -> None:
    """Once: everything stops already when somebody presses it again."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise _Stop


@reporting
def up(
    demo: bool = typer.Option(False, "--demo", help="Play an allowed, a refused and a held call, then stop."),
    mesh: bool = typer.Option(False, "--mesh", help="Three nodes of three kinds, with tools and a model to try them."),
    model: str = typer.Option("", help="With --mesh: an OpenAI-compatible endpoint, instead of a scripted model."),
) -> None:
    """Start gateway, node and sidecar on this machine; says what to try; Ctrl-C stops everything."""
    if demo and mesh:
        raise fail("either --demo or --mesh", USAGE)
    launcher = Launcher(load(), mesh, model)
    started = time.monotonic()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        launcher.start()
        say(f"Licet is up ({time.monotonic() - started:.1f} s)", "bold green")
        if demo:
            _play(launcher)
        else:
            _tell(launcher)
            others = ["gateway"] if launcher.settings.sidecar.gateway_fallbacks else []
            _watch(launcher, spare=[*(launcher.nodes if mesh else ()), *others])
    except NotStarted as bad:
        raise fail(str(bad), FAILED) from None
    except _Stop:
        say("\nstopping")
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        launcher.stop()


def _watch(launcher: Launcher, spare: Collection[str]) -> None:
    """Until a part ends by itself; of several nodes or gateways one may, because then the others go on."""
    while True:
        time.sleep(0.5)
        for name, said in launcher.fallen():
            if name not in spare:
                raise NotStarted(said)
            say(f"{said}\n(the others go on)", "yellow")


def _tell(launcher: Launcher) -> None:
    settings = launcher.settings
    found = agent_environment(settings)
    dev = launcher.dev.resolve()
    lines = [
        "",
        f"  gateway   {settings.gateway.url}",
        f"  sidecar   {found['LICET_URL']}",
        *_nodes(launcher),
        "",
        "The console, signed in as the operator (once, within 15 minutes; then `licet console`):",
        f"  {_console(launcher)}",
        "",
        "Connect an MCP client (no change in it):",
        f"  {found['LICET_MCP_URL']}",
        "",
        *(_try_programs(dev) if launcher.mesh else _try_calls(dev)),
        "",
        "Before commands in another terminal:",
        f"  export LICET_HOME={settings.home.resolve()}",
        *(f"  export {name}={value}" for name, value in sorted(os.environ.items()) if _SETTING.match(name)),
        "",
        *(_try_routing() if launcher.mesh else _try_approving(dev)),
        "",
        "See what happened, and check it:",
        f"  {_licet()} audit tail",
        f"  {_licet()} audit verify",
        "",
        "Ctrl-C stops everything.",
    ]
    for line in lines:
        say(line)


def _licet() -> str:
    installed = Path(sys.executable).with_name("licet")
    return str(installed) if installed.exists() else "licet"


def _nodes(launcher: Launcher) -> list[str]:
    without = "" if sandboxed() else " (no bubblewrap: programs run without a sandbox)"
    if not launcher.mesh:
        [api] = launcher.nodes.values()
        return [f"  node      {api.url}   workbench over {launcher.sandbox}{without}"]
    about = {
        "office": "on_prem, data_locality=office: records, models, workbench",
        "gpu-1": "edge, gpu: analysis",
        "cloud-1": "cloud_pc: desk, models, workbench",
    }
    return [f"  {name:<9} {api.url}   {about[name]}" for name, api in launcher.nodes.items()] + (
        ["  model     plays back a script (a real one: licet up --mesh --model https://…/v1)"]
        if "model" in launcher.parts
        else [f"  model     {launcher.model_url}"]
    )


def _try_calls(dev: Path) -> list[str]:
    return [
        "Or try from another terminal:",
        f"  set -a; . {dev}/agent.env; set +a",
        '  act() { curl -s $LICET_URL/v1/actions -H "Authorization: Bearer $LICET_TOKEN" '
        "-H 'Content-Type: application/json' -d \"$1\"; echo; }",
        """  act '{"tool": "workbench/read_file", "args": {"path": "notes.txt"}}'          # allowed""",
        """  act '{"tool": "workbench/read_file", "args": {"path": "server.pem"}}'         # refused""",
        """  act '{"tool": "workbench/delete_file", "args": {"path": "old-draft.txt"}}'    # held""",
    ]


def _try_approving(dev: Path) -> list[str]:
    return [
        "Approve what is held, then make the same call again:",
        f"  {_licet()} approvals list",
        f"  {_licet()} approvals approve ID --as {dev / f'{APPROVERS[0]}.token'}",
    ]


def _try_programs(dev: Path) -> list[str]:
    python = sys.executable
    return [
        "Run an agent whose code names no node, from another terminal in this folder:",
        f"  set -a; . {dev}/agent.env; . {dev}/operator.env; set +a",
        f"  {python} docs/mesh/first_agent.py         # one tool, where its data is",
        f"  {python} docs/mesh/register_nodes.py      # nodes, as whoever runs them sees them",
        f"  {python} docs/mesh/routing_test.py        # which node won, and why",
        f"  {python} docs/mesh/compliance_run.py      # three nodes, one identity, one trail",
    ]


def _try_routing() -> list[str]:
    return [
        "Take a node away, and run the programs again:",
        f"  {_licet()} nodes list",
        f"  {_licet()} nodes drain gpu-1 --reason 'new driver'     # then: licet nodes resume gpu-1",
        f"  {_licet()} nodes explain DECISION-ID                   # why a call ran where it ran",
        f"  {_licet()} audit trail RUN                             # its hops, one identity",
        f"  {_licet()} usage                                       # what was used today",
    ]


def _console(launcher: Launcher) -> str:
    """A link that signs the operator in."""
    return str(launcher.gateway.call("POST", "/v1/console/links").body["url"])


def _play(launcher: Launcher) -> None:
    """The three calls with the official client, and what the ledger has of them."""
    from licet import demo as demonstration  # the MCP SDK takes a second to import, and only this needs it

    settings = launcher.settings
    home = settings.sidecar.home / "ledger"
    before = max((index for index, _ in ledgers.lines(home)), default=-1)
    token = read_token(launcher.dev / f"{APPROVERS[0]}.token", APPROVERS[0])
    approver = settings.api("gateway", token)
    draft = f"draft-{int(time.time())}.txt"  # a new one each time: a denial of an earlier one would still hold
    (launcher.sandbox / draft).write_text("This draft may go.\n")
    for played in asyncio.run(demonstration.play(agent_environment(settings)["LICET_MCP_URL"], approver, draft)):
        say(f"\n{played.title}: {played.call}", "bold")
        say(f"  {'the client was told' if played.is_error else 'result'}: {played.text}")
    say("\nthe sidecar's ledger:", "bold")
    for index, line in ledgers.lines(home, before + 1):
        say(words.line(index, line))
