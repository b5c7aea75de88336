"""``python -m licet.workbench --root FOLDER``: the workbench on stdio; with ``--inventory``, what it offers."""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from pathlib import Path

from licet.workbench import MANIFEST
from licet.workbench.server import build
from sidecar.config import ToolServer
from sidecar.node.admission import inventory_of
from trust.policy.inventory import Inventory, to_json


def main() -> None:
    parser = argparse.ArgumentParser(prog="licet-workbench")
    parser.add_argument("--root", type=Path, help="the folder that the tools may use")
    parser.add_argument(
        "--inventory", action="store_true", help="print the inventory that policies are written against"
    )
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="HOST",
        help="a host that tools may ask: example.org, *.example.org",
    )
    asked = parser.parse_args()
    if asked.inventory:
        print(json.dumps(inventory(), indent=1, sort_keys=True))
    elif asked.root is None:
        parser.error("--root is required")
    else:
        try:
            server = build(asked.root, tuple(asked.allow))
        except ValueError as bad:
            parser.error(f"--allow {bad}")
        server.run()


def inventory() -> dict[str, object]:
    """The workbench as a gateway would admit it."""
    with tempfile.TemporaryDirectory() as empty:
        listed = asyncio.run(build(Path(empty)).list_tools())
    tools = [tool.model_dump(mode="json", by_alias=True, exclude_none=True) for tool in listed]
    config = ToolServer(name="workbench", command=("workbench",), manifest=MANIFEST)
    return dict(to_json(Inventory({"workbench": inventory_of(config, tools)})))


if __name__ == "__main__":
    main()
