"""Requests to hosts on a list, and to nowhere else: not by redirect, not by a name that resolves to somewhere inside.

A name is resolved once, its addresses are checked, and the connection goes to the address that was checked, so that a
name server cannot answer the check and the connection differently. Who lists a host by its address, or ``localhost``,
means a private one; a listed name never leads to one.
"""

from __future__ import annotations

import http.client
import ipaddress
import re
import socket
import ssl
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

MAX_RECEIVED: Final = 1 << 20
MAX_SENT: Final = 1 << 20
TIMEOUT_S: Final = 20.0
NOTHING: Final[Mapping[str, str]] = MappingProxyType({})
_HOST: Final = re.compile(r"(\*\.)?[a-z0-9]([a-z0-9.\-]*[a-z0-9])?|\[[0-9a-f:]+\]")
_PORTS: Final = {"http": 80, "https": 443}


class NotAllowed(PermissionError):
    """The address is not on the list, or leads somewhere else than its name says."""


@dataclass(frozen=True, slots=True)
class Received:
    """``text`` is cut at :data:`MAX_RECEIVED` bytes if ``truncated``; ``location``: where a redirect points, which is
    not followed."""

    status: int
    content_type: str
    text: str
    truncated: bool
    location: str


class AllowList:
    """Hosts as an operator lists them: ``example.org``, ``*.example.org``, ``127.0.0.1:8080``. Without a port the
    scheme's own."""

    def __init__(self, entries: tuple[str, ...], *, inside: bool = False) -> None:
        """*inside*: whoever lists them knows that names lead to private addresses."""
        self._entries = [_entry(text) for text in entries]
        self._inside = inside

    def require(self, url: str) -> tuple[urllib.parse.SplitResult, str, int]:
        """The parts of *url*, its host and port, or :class:`NotAllowed`; :class:`ValueError` for what is no URL."""
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in _PORTS or not parts.hostname or "@" in parts.netloc:
            raise ValueError(f"{url!r}: expected http://host/… or https://host/…, without a user")
        if not url.isascii() or any(c in url for c in "\\\t\r\n "):
            raise ValueError(f"{url!r}: expected printable ASCII without blanks or backslashes")
        host, port = parts.hostname.rstrip("."), parts.port or _PORTS[parts.scheme]
        if not any(_matches(entry, host, port, parts.scheme) for entry in self._entries):
            listed = ", ".join(host for host, _ in self._entries) or "none; the node's operator lists them with --allow"
            raise NotAllowed(f"{host}:{port} is not on the list of hosts ({listed})")
        return parts, host, port

    def address(self, host: str, port: int) -> str:
        """The address to connect to; :class:`NotAllowed` if a name leads to a private one."""
        try:
            found = {info[4][0] for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
        except OSError as bad:
            raise NotAllowed(f"{host} cannot be resolved: {bad}") from None
        addresses = sorted(str(one) for one in found)
        if self._inside or _is_inside(host):
            return addresses[0]
        inside = [one for one in addresses if not ipaddress.ip_address(one.partition("%")[0]).is_global]
        if inside or not addresses:
            raise NotAllowed(
                f"{host} leads to {', '.join(inside)}, which is not public; list the address itself if meant"
            )
        return addresses[0]


def _entry(text: str) -> tuple[str, int | None]:
    host, port = text.lower(), ""
    if not (host.startswith("[") and host.endswith("]")) and ":" in host:
        host, _, port = host.rpartition(":")
    if _HOST.fullmatch(host) is None or (port and not port.isdecimal()):
        raise ValueError(f"{text!r}: expected a host such as example.org, *.example.org or 127.0.0.1:8080")
    return host.strip("[]"), int(port) if port else None


def _matches(entry: tuple[str, int | None], host: str, port: int, scheme: str) -> bool:
    listed, listed_port = entry
    if port != (listed_port or _PORTS[scheme]):
        return False
    return host.endswith(listed[1:]) and len(host) > len(listed) - 1 if listed.startswith("*.") else host == listed


def _is_inside(host: str) -> bool:
    """Whether an operator who lists this means a machine inside."""
    if host == "localhost":
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class Network:
    """Requests within one list."""

    def __init__(self, allowed: AllowList) -> None:
        self._allowed = allowed
        self._tls = ssl.create_default_context()

    def request(
        self, method: str, url: str, body: bytes = b"", content_type: str = "", own: Mapping[str, str] = NOTHING
    ) -> Received:
        """One request without cookies or redirects, and without credentials but for headers of one's *own*. Raises
        :class:`NotAllowed`, :class:`ValueError`, or :class:`OSError` for what the network says."""
        if len(body) > MAX_SENT:
            raise ValueError(f"the body has {len(body)} bytes; the limit is {MAX_SENT}")
        parts, host, port = self._allowed.require(url)
        address = self._allowed.address(host, port)
        connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
        connection.sock = socket.create_connection((address, port), TIMEOUT_S)
        try:
            if parts.scheme == "https":
                connection.sock = self._tls.wrap_socket(connection.sock, server_hostname=host)
            headers = {"User-Agent": "licet-workbench", "Accept": "*/*", "Connection": "close", **own}
            if content_type:
                headers["Content-Type"] = content_type
            target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
            connection.request(method, target, body or None, headers)
            return _received(connection.getresponse())
        except http.client.HTTPException as bad:
            raise OSError(f"{host} answered what is no HTTP: {type(bad).__name__}") from None
        finally:
            connection.close()


def _received(response: http.client.HTTPResponse) -> Received:
    data = response.read(MAX_RECEIVED + 1)
    return Received(
        status=response.status,
        content_type=response.headers.get("Content-Type", ""),
        text=data[:MAX_RECEIVED].decode("utf-8", "replace"),
        truncated=len(data) > MAX_RECEIVED,
        location=response.headers.get("Location", ""),
    )
