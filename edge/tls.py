"""TLS contexts, made once: TLS 1.3, our own authority or the operator's files, and who a peer's certificate names.

Contexts are made nowhere else. Nothing falls back to the system's authorities: what a process trusts it is told.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from edge.http import Incoming


def server(certificate: Path, key: Path, clients: Path, *, required: bool) -> ssl.SSLContext:
    """For a listener; peers may (or, *required*, must) show a certificate of the authority in *clients*."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(clients)
    context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
    return context


def client(authority: Path) -> ssl.SSLContext:
    """For connections to whom *authority* vouches for, and to nobody else. :func:`show` adds a certificate later."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(authority)
    return context


def show(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """From the next connection on, show *certificate*."""
    context.load_cert_chain(certificate, key)


def peer(incoming: Incoming) -> tuple[bool, str]:
    """Whether a request came over TLS, and the URI that its peer's certificate names, or an empty string."""
    transport: Any = incoming.raw.transport
    if transport is None or transport.get_extra_info("ssl_object") is None:
        return False, ""
    names = (transport.get_extra_info("peercert") or {}).get("subjectAltName", ())
    return True, next((name for kind, name in names if kind == "URI"), "")
