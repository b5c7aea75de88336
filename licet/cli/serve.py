"""``licet gateway``, ``licet sidecar``, ``licet node``: one process of the mesh in the foreground."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import typer

from edge import run, workers
from edge.client import Broken, Unreachable
from edge.http import require_free
from edge.keyservice import KeyServiceFailed
from gateway.app import Gateway
from licet.cli.output import FAILED, UNREACHABLE, fail, reporting
from licet.settings import load
from sidecar.app import Sidecar
from sidecar.identity import NotEnrolled
from sidecar.node.admission import BadManifest
from sidecar.node.app import Node
from sidecar.node.upstream import UpstreamFailed
from trust.ledger.log import LedgerDamaged
from trust.ledger.writer import LedgerUnavailable


def _serve(part: run.Part, name: str, host: str, scheme: str = "http") -> None:
    def started() -> None:
        print(f"{name} listens on {scheme}://{host}:{part.port}", flush=True)

    try:
        run.run(part, started)
    except (LedgerDamaged, LedgerUnavailable, NotEnrolled, UpstreamFailed, BadManifest, KeyServiceFailed) as bad:
        raise fail(str(bad), FAILED) from None
    except Unreachable as bad:
        raise fail(f"the gateway cannot be reached: {bad}", UNREACHABLE) from None
    except Broken as bad:
        hint = "if it speaks TLS: gateway_url with https, and gateway_ca (LICET_SIDECAR__GATEWAY_CA) its ca.pem"
        raise fail(f"the gateway was reached and did not answer: {bad}; {hint}", UNREACHABLE) from None
    except OSError as bad:
        raise fail(f"{name} could not start: {bad}", FAILED) from None
    sys.stdout.flush()


@reporting
def gateway(
    count: int = typer.Option(1, "--workers", min=1, max=64, help="So many processes share the port."),
    worker: int = typer.Option(0, "--worker", hidden=True),
) -> None:
    """Run the gateway: registry, bundles, approvals, router."""
    config = load().gateway
    scheme = "http" if config.tls == "off" else "https"
    if count == 1:
        _serve(Gateway(config.worker(worker) if worker else config), "gateway", config.host, scheme)
        return
    if not config.database:
        raise fail("several workers share their state: set database, redis and key_file in [gateway]", FAILED)
    _supervise("gateway", count, f"{scheme}://{config.host}:{config.port}", config.drain_s)


def _supervise(name: str, count: int, url: str, drain_s: float, *more: str) -> None:
    commands = [[sys.executable, "-m", "licet", name, "--worker", str(number), *more] for number in range(1, count + 1)]
    try:
        workers.run(commands, lambda: print(f"{name} listens on {url} ({count} workers)", flush=True), drain_s)
    except workers.NeverReady as bad:
        raise fail(f"{name} could not start: {bad}", FAILED) from None


@reporting
def sidecar(
    inbound: bool = typer.Option(False, "--inbound", help="Stand in front of tools (the same as `licet node`)."),
    count: int = typer.Option(1, "--workers", min=1, max=64, help="So many processes share the port."),
    worker: int = typer.Option(0, "--worker", hidden=True),
    family: Path = typer.Option(Path(), "--family", hidden=True),
) -> None:
    """Run a sidecar beside one agent."""
    if inbound:
        node()
        return
    config = load().sidecar
    if worker:
        _serve(Sidecar(config.as_worker(worker, count, family)), "sidecar", config.host)
    elif count == 1:
        _serve(Sidecar(config), "sidecar", config.host)
    else:
        require_free(config.host, config.port)
        with tempfile.TemporaryDirectory(prefix="licet-") as meeting:
            url = f"http://{config.host}:{config.port}"
            _supervise("sidecar", count, url, config.drain_s, "--workers", str(count), "--family", meeting)


@reporting
def node() -> None:
    """Run a node: the inbound sidecar in front of tools."""
    config = load().node
    _serve(Node(config), "node", config.host, "http" if config.gateway_ca is None else "https")
