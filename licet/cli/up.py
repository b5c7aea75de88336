"""``licet up``: everything in one terminal."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from pathlib import Path
from types import FrameType

import typer

from licet import ledgers
from licet.cli.output import FAILED, fail, reporting, say
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
) -> None:
    """Start gateway, node and sidecar on this machine; says what to try; Ctrl-C stops everything."""
    launcher = Launcher(load())
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
            _watch(launcher)
    except NotStarted as bad:
        raise fail(str(bad), FAILED) from None
    except _Stop:
        say("\nstopping")
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        launcher.stop()


def _watch(launcher: Launcher) -> None:
    while True:
        time.sleep(0.5)
        fallen = launcher.fallen()
        if fallen is not None:
            raise NotStarted(fallen)


def _tell(launcher: Launcher) -> None:
    settings = launcher.settings
    found = agent_environment(settings)
    dev = launcher.dev.resolve()
    approver = dev / f"{APPROVERS[0]}.token"
    installed = Path(sys.executable).with_name("licet")
    licet = str(installed) if installed.exists() else "licet"
    lines = [
        "",
        f"  gateway   {settings.gateway.url}",
        f"  sidecar   {found['LICET_URL']}",
        f"  node      {settings.api('node').url}   workbench over {launcher.sandbox}"
        + ("" if sandboxed() else " (no bubblewrap: programs run without a sandbox)"),
        "",
        "The console, signed in as the operator (once, within 15 minutes; then `licet console`):",
        f"  {_console(launcher)}",
        "",
        "Connect an MCP client (no change in it):",
        f"  {found['LICET_MCP_URL']}",
        "",
        "Or try from another terminal:",
        f"  set -a; . {dev}/agent.env; set +a",
        '  act() { curl -s $LICET_URL/v1/actions -H "Authorization: Bearer $LICET_TOKEN" '
        "-H 'Content-Type: application/json' -d \"$1\"; echo; }",
        """  act '{"tool": "workbench/read_file", "args": {"path": "notes.txt"}}'          # allowed""",
        """  act '{"tool": "workbench/read_file", "args": {"path": "server.pem"}}'         # refused""",
        """  act '{"tool": "workbench/delete_file", "args": {"path": "old-draft.txt"}}'    # held""",
        "",
        "Approve what is held, then make the same call again:",
        f"  export LICET_HOME={settings.home.resolve()}",
        *(f"  export {name}={value}" for name, value in sorted(os.environ.items()) if _SETTING.match(name)),
        f"  {licet} approvals list",
        f"  {licet} approvals approve ID --as {approver}",
        "",
        "See what happened, and check it:",
        f"  {licet} audit tail",
        f"  {licet} audit verify",
        "",
        "Ctrl-C stops everything.",
    ]
    for line in lines:
        say(line)


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
