"""The mesh as an agent reaches it: its own sidecar, which knows it by a local token."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from licet.client.api import Answer, Api, ApiError, Unavailable

TOKEN: Final = "LICET_TOKEN"  # noqa: S105 (the name of a variable, as the next three)
URL: Final = "LICET_URL"
MANAGEMENT_TOKEN: Final = "LICET_MANAGEMENT_TOKEN"  # noqa: S105
MANAGEMENT_TOKEN_FILE: Final = "LICET_MANAGEMENT_TOKEN_FILE"  # noqa: S105


class MeshError(Exception):
    """What was asked cannot be done; the text says what was found and what to do."""


@dataclass(frozen=True)
class AccessToken:
    """As ``azure.core.credentials`` has it; Unix seconds."""

    token: str
    expires_on: int


class MeshCredential:
    """A token: given, or found in the environment. In the place of ``DefaultAzureCredential``.

    For agents ``$LICET_TOKEN``, which ``licet run`` sets; for management ``$LICET_MANAGEMENT_TOKEN``, or the file that
    ``$LICET_MANAGEMENT_TOKEN_FILE`` names."""

    def __init__(self, token: str = "") -> None:
        self._token = token

    def get_token(self, *scopes: str, **_more: Any) -> AccessToken:
        """The token for ``mesh`` (the default) or ``management``; it is for nobody else: other scopes are refused."""
        asked = set(scopes) or {"mesh"}
        if asked not in ({"mesh"}, {"management"}):
            raise MeshError(
                f"a MeshCredential is for the mesh, not for {', '.join(sorted(asked))}; give that its own key"
            )
        names = (MANAGEMENT_TOKEN, MANAGEMENT_TOKEN_FILE) if asked == {"management"} else (TOKEN,)
        found = self._token or os.environ.get(names[0], "")
        if not found and len(names) > 1 and os.environ.get(names[1]):
            found = Path(os.environ[names[1]]).read_text("utf-8").strip()
        if not found:
            raise MeshError(f"no token: expected one in {' or '.join('$' + name for name in names)}")
        return AccessToken(found, 1 << 53)


def token_of(credential: Any, scope: str) -> str:
    """The token of anything that may be given as a credential: a text, something with ``get_token``, or nothing."""
    if credential is None:
        credential = MeshCredential()
    if isinstance(credential, str):
        return credential
    return str(credential.get_token(scope).token)


def same_place(one: str, other: str) -> bool:
    """Whether two addresses are one server; all names of this machine are one."""
    return _place(one) == _place(other)


def _place(url: str) -> tuple[str, str, int | None]:
    found = urlsplit(url)
    host = (found.hostname or "").rstrip(".")
    ports = {"http": 80, "https": 443}
    home = host in ("localhost", "127.0.0.1", "::1") or host.endswith(".localhost")
    return found.scheme, "localhost" if home else host, found.port or ports.get(found.scheme)


class Mesh:
    """One agent's sidecar. *url* and *token* default to ``$LICET_URL`` and ``$LICET_TOKEN``."""

    def __init__(self, url: str = "", token: str = "") -> None:
        found = (url or os.environ.get(URL, "")).rstrip("/")
        if not found:
            raise MeshError(f"no sidecar: expected its address in ${URL} (start the program with `licet run -- …`)")
        self.url = found
        self._api = Api(found, token or MeshCredential().get_token().token)

    def tools(self) -> dict[str, dict[str, Any]]:
        """The tools that this agent may call, by name (``server/tool``)."""
        return {tool["name"]: tool for tool in self._call("GET", "/v1/tools").body["tools"]}

    def act(self, tool: str, arguments: dict[str, Any], run: str, place: dict[str, Any], wait_s: int) -> Answer:
        """One action; :class:`ApiError` if it is refused. Status 202 while a person decides, after up to *wait_s*."""
        told = {"tool": tool, "args": arguments, "run": run, **({"place": place} if place else {})}
        return self._call("POST", "/v1/actions", told, wait_s)

    def _call(self, method: str, path: str, body: Any = None, wait_s: int = 0) -> Answer:
        api = self._api
        if wait_s:
            api = Api(api.url, api.token, api.timeout_s + wait_s, {"Prefer": f"wait={wait_s}"})
        try:
            return api.call(method, path, body)
        except Unavailable as bad:
            raise MeshError(f"no sidecar answers at {self.url}: {bad} (`licet check` says what is wrong)") from None
        except ApiError as bad:
            if bad.status == 401:
                raise MeshError(f"the sidecar at {self.url} does not know this token: {bad}") from None
            raise
