"""What an HTTP request may look like before anybody looks at what it says: path and header rules.

aiohttp's C parser refuses smuggling, but lets pass what two programs can read differently: dot segments,
encoded slashes, backslashes, absolute form, underscored headers. Such a request is refused, never repaired.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Final

from trust.reasons import Reason, Unverifiable, visible

MAX_BODY_BYTES: Final = 4 << 20
"""The largest request that is judged; a larger one is refused, never judged on a prefix."""

_PATH: Final = re.compile(r"(?:/[A-Za-z0-9._~:@!$&'()*+,;=-]*)+")
_QUERY: Final = re.compile(r"[A-Za-z0-9._~:@!$&'()*+,;=/?%-]*")
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^`|~-]+")
_ONCE: Final = frozenset(
    [
        "host",
        "content-length",
        "content-type",
        "content-encoding",
        "transfer-encoding",
        "authorization",
        "origin",
        "mcp-session-id",
        "mcp-protocol-version",
        "mcp-method",
        "mcp-name",
        "last-event-id",
        "idempotency-key",
        "prefer",
        "workload-identity-token",
        "licet-ticket",
        "licet-delegation",
        "traceparent",
        "content-digest",
        "signature",
        "signature-input",
    ]
)
_PLAIN_NAMES: Final = frozenset({"host", "content-length", "content-type", "authorization"})
"""Those that every request has: known to be well formed, once each."""
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f]")
FORWARDING: Final = ("x-forwarded-", "forwarded", "x-real-ip")


@lru_cache(maxsize=256)
def split_target(target: str) -> tuple[str, str]:
    """Path and query of a request target, or :class:`Unverifiable` (``ambiguous_path``)."""
    path, _, query = target.partition("?")
    if not path.startswith("/"):
        raise _path(
            target, "expected a path: this is no forward proxy, agents reach tools by /mcp/{server} and /v1/actions"
        )
    if "%" in path:
        raise _path(target, "percent-encoding is not accepted in a path")
    if not _PATH.fullmatch(path):
        raise _path(target, "a character that is not accepted in a path")
    if "//" in path or any(part in (".", "..") for part in path.split("/")):
        raise _path(target, "empty and dot segments are not accepted")
    if not _QUERY.fullmatch(query):
        raise _path(target, "a character that is not accepted in a query")
    return path, query


def _path(target: str, what: str) -> Unverifiable:
    return Unverifiable(Reason.AMBIGUOUS_PATH, f"{what}: {visible(target, 120)}")


def check_headers(headers: Sequence[tuple[str, str]], allowed_internal: Collection[str] = ()) -> None:
    """Refuse what proxies and servers are known to read differently.

    *headers* have lowercase names. ``licet-*`` headers are ours between our own processes; from outside they
    are refused, except those in *allowed_internal*.
    """
    seen: set[str] = set()
    for name, value in headers:
        if name in _PLAIN_NAMES:
            if name in seen:
                raise _header(f'"{name}" stands more than once')
            seen.add(name)
        else:
            _check_other(name, value, allowed_internal, seen)
        if not value.isprintable() and _CONTROL.search(value):
            raise _header(f'a control character in "{visible(name)}"')
    if "content-length" in seen and "transfer-encoding" in seen:
        raise _header("both Content-Length and Transfer-Encoding")


def _check_other(name: str, value: str, allowed_internal: Collection[str], seen: set[str]) -> None:
    """Names that need more than a look into a table."""
    if not _HEADER_NAME.fullmatch(name):
        raise _header(f'the header name "{visible(name)}"; underscores and others are not accepted')
    if name.startswith("licet-") and name not in allowed_internal:
        raise _header(f'"{name}" is internal and not accepted from outside')
    if name.startswith(FORWARDING):
        raise _header(f'"{visible(name)}" is what a proxy adds, which only a gateway with a public_url passes over')
    if name in _ONCE:
        if name in seen:
            raise _header(f'"{name}" stands more than once')
        seen.add(name)
    if name == "connection" and set(_tokens(value)) - {"keep-alive", "close"}:
        raise _header(f'Connection names "{visible(value)}"; only keep-alive and close are accepted')
    if name == "upgrade":
        raise _header("upgrades are not accepted")
    if name == "content-encoding" and value.strip().lower() not in ("", "identity"):
        raise Unverifiable(Reason.UNSUPPORTED_ENCODING, f'Content-Encoding "{visible(value)}"')


def _tokens(value: str) -> list[str]:
    return [token.strip().lower() for token in value.split(",") if token.strip()]


def _header(what: str) -> Unverifiable:
    return Unverifiable(Reason.AMBIGUOUS_HEADERS, what)


def check_host(host: str | None, accepted: Collection[str]) -> str:
    """*host* if it is one of ours; anything else is a request that was meant for, or lured to, another name."""
    if host is None or host.lower() not in accepted:
        raise Unverifiable(
            Reason.AMBIGUOUS_HEADERS,
            f'Host "{visible(host or "")}" is not one of {", ".join(sorted(accepted))}',
        )
    return host.lower()


def check_origin(origin: str, accepted: Collection[str]) -> None:
    """A browser's page may call us only if it is ours (DNS rebinding)."""
    if origin.lower() not in accepted:
        raise Unverifiable(Reason.AMBIGUOUS_HEADERS, f'Origin "{visible(origin)}" is not accepted')
