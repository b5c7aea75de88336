"""A small blocking client for the gateway's people API and a sidecar's native API."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge import tls


class ApiError(Exception):
    """The server said no; ``status`` and ``problem`` are its words."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        self.status = status
        self.problem = problem
        detail = problem.get("detail") or problem.get("rejected") or problem.get("title") or problem
        reason = problem.get("reason", "")
        super().__init__(f"{status} {reason}: {detail}" if reason else f"{status}: {detail}")


class Unavailable(Exception):
    """Nobody answers at this address."""


@dataclass(frozen=True, slots=True)
class Answer:
    """``headers`` have lowercase names."""

    status: int
    headers: dict[str, str]
    body: Any


@dataclass(frozen=True, slots=True)
class Api:
    """One server and the token that it knows the caller by. ``authority``: whose certificates are believed
    (https), for a server in this ``role``; ``certificate`` (with its key) is what is shown to it."""

    url: str
    token: str = ""
    timeout_s: float = 130.0
    headers: Mapping[str, str] = field(default_factory=dict)
    authority: Path | None = None
    role: tls.Role = "gateway"
    certificate: tuple[Path, Path] | None = None

    def call(self, method: str, path: str, body: Any = None) -> Answer:
        """The answer, or :class:`ApiError` for 4xx and 5xx, or :class:`Unavailable`."""
        return self.call_bytes(method, path, b"" if body is None else json.dumps(body).encode())

    def call_bytes(self, method: str, path: str, data: bytes) -> Answer:
        """The same with a body that is JSON already, exactly as it is; empty: no body."""
        with self._open(method, path, data) as response:
            return Answer(response.status, _headers(response.headers), _decoded(response.read()))

    def download(self, path: str) -> Iterator[bytes]:
        """What a GET answers, piece by piece, to its end; :class:`Unavailable` if it breaks off before."""
        with self._open("GET", path, b"") as response:
            while piece := response.read(1 << 16):
                yield piece

    @contextmanager
    def _open(self, method: str, path: str, data: bytes) -> Iterator[Any]:
        headers = {**({"Content-Type": "application/json"} if data else {}), **self.headers}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        request = urllib.request.Request(self.url + path, data or None, headers, method=method)  # noqa: S310 (our own)
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
        if self.authority is not None:
            context = tls.client(self.authority, self.role)
            if self.certificate is not None:
                tls.show(context, *self.certificate)
            handlers.append(urllib.request.HTTPSHandler(context=context))
        opener = urllib.request.build_opener(*handlers)
        try:
            with opener.open(request, timeout=self.timeout_s) as response:
                yield response
        except urllib.error.HTTPError as bad:
            told = _decoded(bad.read())
            raise ApiError(bad.code, told if isinstance(told, dict) else {"detail": told}) from None
        except (urllib.error.URLError, ConnectionError, TimeoutError, http.client.HTTPException) as bad:
            raise Unavailable(f"{self.url}: {getattr(bad, 'reason', bad)}{self._hint(bad)}") from None

    def _hint(self, bad: Exception) -> str:
        """What a broken conversation may mean, when one side speaks TLS and the other does not."""
        reason = getattr(bad, "reason", bad)
        broken = isinstance(reason, ConnectionError | http.client.HTTPException)
        if self.authority is None and broken and not isinstance(reason, ConnectionRefusedError):
            return " (does it speak TLS? then name its ca.pem in LICET_GATEWAY_CA, or set LICET_GATEWAY__TLS)"
        if self.authority is not None and "WRONG_VERSION_NUMBER" in str(reason):
            return " (it speaks plain http)"
        return ""

    def act(self, tool: str, args: dict[str, Any], **more: Any) -> Answer:
        """One native action; the answer may be 200 (done) or 202 (held). A refusal is :class:`ApiError`."""
        return self.call("POST", "/v1/actions", {"tool": tool, "args": args, **more})


def _headers(found: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in found.items()}


def _decoded(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return data.decode("utf-8", "replace")
