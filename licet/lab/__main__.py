"""``python -m licet.lab SERVER``: one of the lab's tool servers; ``--inventory``: what policies are written against."""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

from mcp.server import MCPServer

from licet.lab import MANIFESTS, servers
from licet.mesh import model_server
from licet.workbench import BROWSER, BROWSER_MANIFEST, MANIFEST
from licet.workbench.server import build as workbench
from sidecar.config import ToolServer
from sidecar.node.admission import inventory_of
from sidecar.node.stdio_upstream import StdioUpstream
from trust.policy.inventory import Inventory, Server, to_json


def main() -> None:
    parser = argparse.ArgumentParser(prog="licet-lab")
    parser.add_argument("server", nargs="?", choices=("records", "analysis", "desk"))
    parser.add_argument("--root", type=Path, help="the folder of records, or of the desk")
    parser.add_argument("--sealed", type=Path, help="the folder of sealed records")
    parser.add_argument("--inventory", action="store_true", help="print what the lab and the workbench offer")
    asked = parser.parse_args()
    match asked.server:
        case None if asked.inventory:
            print(json.dumps(inventory(), indent=1, sort_keys=True))
        case "records" if asked.root and asked.sealed:
            servers.records(asked.root, asked.sealed).run()
        case "analysis":
            servers.analysis().run()
        case "desk" if asked.root:
            servers.desk(asked.root).run()
        case _:
            parser.error("expected --inventory, or a server with its folders")


def inventory() -> dict[str, Any]:
    """Every server as a gateway would admit it."""
    with tempfile.TemporaryDirectory() as empty:
        root = Path(empty)
        made = {
            "workbench": (workbench(root), MANIFEST),
            "records": (servers.records(root, root), MANIFESTS / "records.toml"),
            "analysis": (servers.analysis(), MANIFESTS / "analysis.toml"),
            "desk": (servers.desk(root), MANIFESTS / "desk.toml"),
            "models": (model_server.build("http://127.0.0.1/v1", "none", frozenset()), model_server.MANIFEST),
        }
        admitted = {name: _admitted(name, *one) for name, one in made.items()}
        return dict(to_json(Inventory({**admitted, "browser": asyncio.run(_browser())})))


def _admitted(name: str, server: MCPServer, manifest: Path) -> Server:
    listed = asyncio.run(server.list_tools())
    tools = [tool.model_dump(mode="json", by_alias=True, exclude_none=True) for tool in listed]
    return inventory_of(ToolServer(name=name, command=(name,), manifest=manifest), tools)


async def _browser() -> Server:
    """What the browser's server lists; no browser is started for that."""
    upstream = StdioUpstream((str(BROWSER),), {}, None)
    await upstream.start()
    try:
        listed = await upstream.list_tools()
    finally:
        await upstream.close()
    return inventory_of(ToolServer(name="browser", command=(str(BROWSER),), manifest=BROWSER_MANIFEST), listed)


if __name__ == "__main__":
    main()
