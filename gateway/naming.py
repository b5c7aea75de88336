"""Under which name a gateway's log stands: the configured one, unless a gateway of that name lost its disk.

Two logs cannot have one name, and orchestrators give the one that takes another's place the name of that. So a gateway
whose home is empty, while the order knows changes of a log with its name, is another one: ``a.2`` after ``a``.
"""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Final

from gateway.order import Order
from trust.ledger.tiles import write_atomically

FILE: Final = "name"
_log = logging.getLogger("licet.gateway")


def log_of_gateway(trust_domain: str, name: str) -> str:
    """The origin of a gateway's log."""
    return f"{trust_domain}/gateway/{name}"


async def settled_name(home: Path, name: str, trust_domain: str, order: Order) -> str:
    """The name of the gateway with this *home*, configured as *name*; kept there."""
    path = home / FILE
    if path.exists():
        kept = path.read_text("utf-8").strip()
        if kept == name or kept.startswith(f"{name}."):
            return kept
    if (home / "ledger").exists():
        return name
    for candidate in itertools.chain([name], (f"{name}.{number}" for number in itertools.count(2))):
        if await order.published(log_of_gateway(trust_domain, candidate)) < 0:
            break
    if candidate != name:
        _log.warning("a gateway %s was here before and its ledger is not in %s: this one is %s", name, home, candidate)
    write_atomically(path, candidate.encode())
    return candidate
