"""The mesh of ``licet up --mesh``: three nodes of three kinds on one machine, and what runs on each."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from licet.workbench import MANIFEST

MANIFESTS = Path(__file__).parent
SCRIPT = Path(__file__).with_name("script.json")
"""What the scripted model says, as long as no other is named."""
LOCALITY = "office"

LOGS = {
    "2026-11-payments.log": (
        "2026-11-03T09:12:44Z user=ada action=transfer amount=1200 currency=EUR to=DE02120300000000202051\n"
        "2026-11-03T09:14:02Z user=ada action=transfer amount=9900 currency=EUR to=DE02500105170137075030\n"
        "2026-11-03T23:51:19Z user=svc-batch action=login role=admin source=10.0.7.4\n"
        "2026-11-04T10:05:31Z user=eve action=export table=customers rows=48211\n"
        "2026-11-04T10:06:12Z user=eve action=mail to=eve@example.net subject=customers\n"
    ),
    "2026-11-access.log": (
        "2026-11-05T08:00:01Z user=ada action=login role=clerk source=10.0.7.9\n"
        "2026-11-05T08:02:17Z user=ada action=read table=ledger rows=12\n"
    ),
}
SEALED = {"2026-11-hearing.log": "2026-11-09T14:00:00Z hearing=17 witness=7 statement=sealed\n"}


@dataclass(frozen=True)
class NodeSpec:
    """One node as its operator registers it, and the servers that it starts."""

    name: str
    kind: str
    capabilities: dict[str, Any]
    slots: int
    servers: list[dict[str, Any]]


def folders(home: Path) -> dict[str, Path]:
    return {name: home / "lab" / name for name in ("records", "sealed", "desk")}


def fill(home: Path) -> None:
    """The office's logs, where there are none yet."""
    places = folders(home)
    for place in places.values():
        place.mkdir(parents=True, exist_ok=True)
    for folder, texts in (("records", LOGS), ("sealed", SEALED)):
        for name, text in texts.items():
            if not (places[folder] / name).exists():
                (places[folder] / name).write_text(text)


def nodes(home: Path, sandbox: Path, model_url: str) -> list[NodeSpec]:
    """An office that keeps its records, a GPU at the edge, and a desk in the cloud; workbench and models are on two."""
    at = folders(home)
    bench = {
        "name": "workbench",
        "command": [sys.executable, "-m", "licet.workbench", "--root", str(sandbox.resolve())],
        "manifest": str(MANIFEST),
    }
    return [
        NodeSpec(
            "office",
            "on_prem",
            {"data_locality": LOCALITY},
            16,
            [
                _server("records", requires=[f"data_locality={LOCALITY}"], root=at["records"], sealed=at["sealed"]),
                _models(model_url),
                bench,
            ],
        ),
        NodeSpec("gpu-1", "edge", {"gpu": True, "region": "eu-west"}, 8, [_server("analysis")]),
        NodeSpec(
            "cloud-1",
            "cloud_pc",
            {"region": "eu-west"},
            16,
            [_server("desk", root=at["desk"]), _models(model_url), bench],
        ),
    ]


def _server(name: str, requires: list[str] | None = None, **folders: Path) -> dict[str, Any]:
    options = [part for option, path in folders.items() for part in (f"--{option}", str(path.resolve()))]
    return {
        "name": name,
        "command": [sys.executable, "-m", "licet.lab", name, *options],
        "manifest": str(MANIFESTS / f"{name}.toml"),
        "requires": requires or [],
    }


def _models(url: str) -> dict[str, Any]:
    return {
        "name": "models",
        "command": [sys.executable, "-m", "licet.mesh.model_server", "--endpoint", url],
        "manifest": str(MANIFESTS.parent / "mesh" / "models.toml"),
    }
