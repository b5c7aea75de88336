"""``licet run -- CMD``: a program with the mesh in its environment."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path

import typer

from licet.cli.agents import read_chain
from licet.cli.output import USAGE, fail, reporting, warn
from licet.settings import Settings, load, read_token


def agent_environment(settings: Settings, server: str = "workbench", token: str = "") -> dict[str, str]:
    """What a program needs to reach its sidecar, and the proxy variables that send everything else there too.
    *token*: another than the agent's own, such as one that stands for a delegation chain."""
    token = token or read_token(settings.sidecar.home / "agent.token", "the agent")
    host = f"{settings.sidecar.host}:{settings.sidecar.port}"
    proxy = f"http://agent:{token}@{host}"
    return {
        "LICET_URL": f"http://{host}",
        "LICET_TOKEN": token,
        "LICET_MCP_URL": f"http://agent:{token}@{host}/mcp/{server}",
        "LICET_CONSOLE_URL": f"{settings.gateway.url}/console",
        **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"), proxy),
        "NO_PROXY": host,
        "no_proxy": host,
    }


def child_environment(settings: Settings, server: str, environ: Mapping[str, str], token: str = "") -> dict[str, str]:
    """*environ* without what belongs to operators, with what the agent needs."""
    kept = {name: value for name, value in environ.items() if not name.startswith("LICET_")}
    return {**kept, **agent_environment(settings, server, token)}


def _token_for(settings: Settings, delegation: Path) -> str:
    """The sidecar's token for a program that acts under the chain in *delegation*."""
    own = read_token(settings.sidecar.home / "agent.token", "the agent")
    api = settings.api("sidecar", own)
    told = api.call("POST", "/v1/mandates", {"chain": read_chain(delegation)}).body
    return str(told["token"])


@reporting
def run(
    context: typer.Context,
    server: str = typer.Option("workbench", help="The MCP server that LICET_MCP_URL names."),
    delegation: Path | None = typer.Option(
        None, "--delegation", help="A file with a delegation chain: the program gets that authority, and no more."
    ),
) -> None:
    """Run a program as the agent of this sidecar: it finds LICET_URL, LICET_TOKEN, LICET_MCP_URL and proxies."""
    command = context.args[1:] if context.args[:1] == ["--"] else context.args
    if not command:
        raise fail("give a command: licet run -- python my_agent.py", USAGE)
    settings = load()
    token = _token_for(settings, delegation) if delegation is not None else ""
    environment = child_environment(settings, server, os.environ, token)
    try:
        socket.create_connection((settings.sidecar.host, settings.sidecar.port), timeout=1.0).close()
    except OSError:
        warn(f"no sidecar answers at {environment['LICET_URL']}; the program runs, but can do nothing (`licet check`)")
    try:
        os.execvpe(command[0], command, environment)  # noqa: S606
    except FileNotFoundError:
        raise fail(f"{command[0]}: no such program", 127) from None
