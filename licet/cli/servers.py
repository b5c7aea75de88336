"""``licet servers``: list, accept."""

from __future__ import annotations

import typer

from licet.cli.gateway_api import gateway
from licet.cli.output import Json, reporting, say, show, table

app = typer.Typer(name="servers", help="Tool servers and their pinned tools.", no_args_is_help=True)


@app.command("list")
@reporting
def list_servers(as_json: bool = Json) -> None:
    """Every tool with what it does, and what waits in quarantine."""
    found = gateway().call("GET", "/v1/servers").body["servers"]
    rows = [
        (
            f"{server['name']}/{tool['name']}",
            tool["manifest"]["category"],
            tool["manifest"]["effect"],
            "yes" if tool["manifest"]["privileged"] else "",
            "quarantined" if tool["quarantined"] else "",
            tool["digest"][:12],
        )
        for server in found
        for tool in server["tools"].values()
        if not tool["name"].startswith("mcp:")
    ]
    columns = ("TOOL", "CATEGORY", "EFFECT", "PRIVILEGED", "STATE", "PINNED")
    show(found, as_json, lambda: table(columns, rows, "no servers"))


@app.command("accept")
@reporting
def accept(name: str, as_json: bool = Json) -> None:
    """Accept the tools of a server as it offers them now; they were quarantined because they changed."""
    told = gateway().call("POST", f"/v1/servers/{name}/accept", {}).body
    show(told, as_json, lambda: say(f"accepted: {', '.join(told['accepted']) or 'nothing was waiting'}"))
