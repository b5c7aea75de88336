"""``python -m licet.workbench --root FOLDER``: the workbench on stdio."""

from __future__ import annotations

import argparse
from pathlib import Path

from licet.workbench.server import build


def main() -> None:
    parser = argparse.ArgumentParser(prog="licet-workbench")
    parser.add_argument("--root", type=Path, required=True, help="the folder that the tools may use")
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="HOST",
        help="a host that tools may ask: example.org, *.example.org",
    )
    asked = parser.parse_args()
    try:
        asked.root.mkdir(parents=True, exist_ok=True)
        server = build(asked.root, tuple(asked.allow))
    except ValueError as bad:
        parser.error(f"--allow {bad}")
    server.run()


if __name__ == "__main__":
    main()
