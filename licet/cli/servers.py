"""``licet servers``: list, diff, accept, retire, export."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from licet.cli.gateway_api import gateway
from licet.cli.output import Json, fail, reporting, say, show, table
from trust.reasons import visible

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
            "changed" if any(c["tool"] in ("", tool["name"]) for o in server["offers"] for c in o["changes"]) else "",
            tool["digest"][:12],
        )
        for server in found
        for tool in server["tools"].values()
        if not tool["name"].startswith("mcp:")
    ]
    columns = ("TOOL", "CATEGORY", "EFFECT", "PRIVILEGED", "OFFERED", "PINNED")
    show(found, as_json, lambda: table(columns, rows, "no servers"))


@app.command("export")
@reporting
def export(
    output: Path = typer.Option(..., "-o", help="Where to write it: inventory.json in a directory of policies."),
) -> None:
    """Write the admitted inventory, so that `licet policy check` and `test` know the tools that are really there."""
    servers = gateway().call("GET", "/v1/servers").body["servers"]
    kept = {s["name"]: {k: v for k, v in s.items() if k not in ("admitted", "offers")} for s in servers}
    output.write_text(json.dumps({"servers": kept}, indent=1, sort_keys=True) + "\n", "utf-8")
    say(f"{output}: {', '.join(sorted(kept)) or 'no servers'}")


@app.command("diff")
@reporting
def diff(name: str, as_json: bool = Json) -> None:
    """What a server offers now against what was admitted: descriptions, schemas, manifests, word by word."""
    found = {server["name"]: server["offers"] for server in gateway().call("GET", "/v1/servers").body["servers"]}
    if name not in found:
        raise fail(f"no server {name}; known: {', '.join(sorted(found)) or 'none'}")

    def people() -> None:
        for offer in found[name]:
            say(f"{', '.join(offer['nodes'])} offers {offer['digest'][:12]}:", "bold")
            for change in offer["changes"]:
                say(f"{change['kind']} {name}{'/' + change['tool'] if change['tool'] else ' itself'}", "bold")
                for part in change["differences"]:
                    if part["before"]:
                        say(f"  - {part['part']}: {visible(part['before'], 20_000)}", "red")
                    if part["after"]:
                        say(f"  + {part['part']}: {visible(part['after'], 20_000)}", "green")
            say(f"To admit exactly this: licet servers accept {name} --offer {offer['digest']}")
        if not found[name]:
            say(f"every node offers {name} as it was admitted")

    show(found[name], as_json, people)


@app.command("accept")
@reporting
def accept(
    name: str,
    offer: str = typer.Option(..., help="The digest that `licet servers diff` printed: what you looked at."),
    as_json: bool = Json,
) -> None:
    """Accept the tools of a server as `licet servers diff` showed them; until then changed tools are not called."""
    told = gateway().call("POST", f"/v1/servers/{name}/accept", {"offer": offer}).body
    show(told, as_json, lambda: say(f"accepted: {', '.join(filter(None, told['accepted'])) or name}"))


@app.command("retire")
@reporting
def retire(name: str, as_json: bool = Json) -> None:
    """Nobody may call NAME any more, and its name is free; no node may offer it at that time."""
    told = gateway().call("POST", f"/v1/servers/{name}/retire").body
    show(told, as_json, lambda: say(f"{name} is retired; whichever node offers it next has its name"))
