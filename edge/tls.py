"""TLS contexts, made once: TLS 1.3, our own authority or the operator's files, and who a peer's certificate names.

Contexts are made nowhere else. Nothing falls back to the system's authorities: what a process trusts it is told.
"""

from __future__ import annotations

import logging
import re
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

if TYPE_CHECKING:  # servers take a third of a second to import, and clients need none
    from edge.http import Incoming

_log = logging.getLogger("licet.tls")
Role = Literal["gateway", "node"]
"""What a certificate that is connected to may be of; it stands in its URI, ``wimse://<trust domain>/<role>/<name>``."""


def server(certificate: Path, key: Path, clients: Path, *, required: bool) -> ssl.SSLContext:
    """For a listener; peers may (or, *required*, must) show a certificate of the authority in *clients*."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(clients)
    context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
    return context


def public_server(certificate: Path, key: Path) -> ssl.SSLContext:
    """For a server that asks nobody for a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    return context


def client(authority: Path, role: Role) -> ssl.SSLContext:
    """For connections to whom *authority* vouches for as a *role*, and to nobody else: the authority has certificates
    for all workloads, and a node that sits at the gateway's address is no gateway. :func:`show` adds a certificate of
    one's own later."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(authority)
    context.sslobject_class, context.sslsocket_class = _EXPECTING[role]
    return context


def _expecting(role: Role) -> tuple[type[ssl.SSLObject], type[ssl.SSLSocket]]:
    """What a context makes of connections; both look at the peer's name as soon as its certificate is believed."""

    class Expecting(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            _require_role(self.getpeercert(), role)

    class ExpectingSocket(ssl.SSLSocket):
        def do_handshake(self, block: bool = False) -> None:
            super().do_handshake(block)
            _require_role(self.getpeercert(), role)

    return Expecting, ExpectingSocket


def _require_role(certificate: Any, role: Role) -> None:
    named = _uri(certificate)
    if _WORKLOAD.fullmatch(named) is None or named.split("/")[3] != role:
        shown = named or "nobody"
        raise ssl.SSLCertVerificationError(f"expected a certificate of a {role}, found one of {shown}")


_WORKLOAD: Final = re.compile(r"wimse://[^/]+/[a-z]+/[^/]+")
_EXPECTING: Final = {role: _expecting(role) for role in get_args(Role)}


def has_certificate(certificate: Path, key: Path, since_s: float) -> bool:
    """Whether both files are there and were written after *since_s* (Unix seconds)."""
    return all(path.exists() and path.stat().st_mtime > since_s for path in (certificate, key))


def show(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """From the next connection on, show *certificate*."""
    context.load_cert_chain(certificate, key)


class Files:
    """A *certificate* and its *key* in files that somebody else renews."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._paths = certificate, key
        self._seen: object = self._found()

    def _found(self) -> object:
        return [(found.st_mtime_ns, found.st_ino) for found in (path.stat() for path in self._paths)]

    def show_renewed(self, *contexts: ssl.SSLContext) -> bool:
        """Whether there was another one, which is shown from the next connection on. One that cannot be read, such as
        while only half of it is there, is looked at again the next time, and the one before goes on."""
        try:
            found = self._found()
            if found == self._seen:
                return False
            # A context that is given half a pair has lost the other half: only a whole one reaches those in use.
            show(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), *self._paths)
            for context in contexts:
                show(context, *self._paths)
        except OSError as bad:  # which SSLError is
            _log.error("the certificate in %s cannot be read, the one before goes on: %s", self._paths[0], bad)
            return False
        self._seen = found
        return True


def peer(incoming: Incoming) -> tuple[bool, str]:
    """Whether a request came over TLS, and the URI that its peer's certificate names, or an empty string."""
    transport: Any = incoming.raw.transport
    if transport is None or transport.get_extra_info("ssl_object") is None:
        return False, ""
    return True, _uri(transport.get_extra_info("peercert"))


def _uri(certificate: Any) -> str:
    """The URI that a certificate names."""
    names = (certificate or {}).get("subjectAltName", ())
    return next((name for kind, name in names if kind == "URI"), "")
