"""``python -m licet.workbench.service service.toml``: any HTTP service as an MCP server, for nodes.

An operator writes down which requests of the service are tools. Agents fill in parameters and nothing else: not the
host, not the path around them, not a header. In a path a parameter is one segment, whatever is in it::

    base = "http://127.0.0.1:9000/api"
    header_file = "authorization"            # lines of "Name: value" that every request gets, never told to anybody

    [tools.get_invoice]
    description = "One invoice"
    method = "GET"
    path = "/invoices/{id}"
    query = ["currency"]                     # what is neither there nor in the path is the JSON body
    parameters = { id = "string", currency = "string?" }     # string, integer, number, boolean; "?": may be missing
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import json
import re
import tomllib
import urllib.parse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

from licet.workbench.network import AllowList, Network, Received

KINDS: Final[dict[str, type]] = {"string": str, "integer": int, "number": float, "boolean": bool}
_FIELD: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_HEADER: Final = re.compile(r"([A-Za-z0-9-]+): ([!-~ ]*)")


class BadService(ValueError):
    """What was written down cannot be a service; the text says where."""


class Described(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One request as a tool."""

    path: str
    description: str = ""
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    query: tuple[str, ...] = ()
    parameters: dict[str, str] = {}


class Service(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``base``: where it is, and the beginning of every path."""

    base: str
    tools: dict[str, Described]
    header_file: str = ""


def read(path: Path) -> Service:
    """The service in the file *path*, or :class:`BadService`."""
    try:
        service = msgspec.convert(tomllib.loads(path.read_text("utf-8")), Service)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, UnicodeDecodeError) as bad:
        raise BadService(f"{path}: {bad}") from None
    base = urllib.parse.urlsplit(service.base)
    if base.scheme not in ("http", "https") or not base.hostname or base.query or base.fragment or "@" in base.netloc:
        raise BadService(f"{path}: base {service.base!r}: expected http://host/path or https://host/path, no more")
    for name, tool in service.tools.items():
        _require_sound(f"{path}: [tools.{name}]", tool)
    return service


def _require_sound(where: str, tool: Described) -> None:
    fields = _FIELD.findall(tool.path)
    unknown = sorted({*fields, *tool.query} - tool.parameters.keys())
    if unknown:
        raise BadService(f"{where}: {', '.join(unknown)} in path or query, but not among parameters")
    if not tool.path.startswith("/") or not re.fullmatch(r"[A-Za-z0-9/_.~-]*", _FIELD.sub("", tool.path)):
        raise BadService(f"{where}: path {tool.path!r}: expected /plain/segments and {{parameters}}")
    for parameter, kind in tool.parameters.items():
        if kind.removesuffix("?") not in KINDS or not parameter.isidentifier():
            raise BadService(f"{where}: parameter {parameter} = {kind!r}: expected one of {', '.join(KINDS)}")
        if parameter in fields and kind.endswith("?"):
            raise BadService(f"{where}: {parameter} is in the path, so it cannot be missing")
    if tool.method in ("GET", "DELETE") and {*tool.parameters} - {*fields, *tool.query}:
        raise BadService(f"{where}: {tool.method} has no body; say which parameters are query")


def own_headers(path: Path | None) -> dict[str, str]:
    """What every request gets; nothing of it stands in an error."""
    lines = path.read_text("utf-8").splitlines() if path is not None else []
    found = [_HEADER.fullmatch(line) for line in lines if line.strip()]
    if None in found:
        raise BadService(f"{path}: expected lines of the form Name: value")
    return {match[1]: match[2] for match in found if match is not None}


def request_of(base: str, tool: Described, given: Mapping[str, Any]) -> tuple[str, bytes]:
    """The address and the body for these parameters; :class:`ToolError` for what is no segment of a path."""

    def segment(match: re.Match[str]) -> str:
        value = _text(given[match[1]])
        if value in ("", ".", ".."):
            raise ToolError(f"{match[1]}: expected something that can be a part of a path, not {value!r}")
        return urllib.parse.quote(value, safe="")

    path = _FIELD.sub(segment, tool.path)
    query = {name: _text(given[name]) for name in tool.query if given.get(name) is not None}
    elsewhere = {*_FIELD.findall(tool.path), *tool.query}
    body = {name: value for name, value in given.items() if name not in elsewhere and value is not None}
    url = base.rstrip("/") + path + (f"?{urllib.parse.urlencode(query)}" if query else "")
    sends = tool.method not in ("GET", "DELETE")
    return url, json.dumps(body).encode() if sends else b""


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool | int | float) else str(value)


def build(service: Service, headers: Mapping[str, str]) -> MCPServer:
    """An MCP server whose tools are the requests that were written down."""
    where = urllib.parse.urlsplit(service.base)
    port = where.port or {"http": 80, "https": 443}[where.scheme]
    network = Network(AllowList((f"{where.hostname}:{port}",), inside=True))
    server = MCPServer("licet-service", version="1", log_level="ERROR")
    for name, tool in service.tools.items():
        described = tool.description or f"{tool.method} {tool.path}"
        server.tool(name=name, description=described)(_calling(network, service.base, tool, headers))
    return server


def _calling(network: Network, base: str, tool: Described, headers: Mapping[str, str]) -> Callable[..., Any]:
    async def call(**given: Any) -> dict[str, Any]:
        url, body = request_of(base, tool, given)
        kind = "application/json" if body else ""
        try:
            received = await asyncio.to_thread(network.request, tool.method, url, body, kind, headers)
        except (OSError, ValueError) as bad:
            raise ToolError(f"the service was not reached: {type(bad).__name__}") from None
        return told(received)

    parameters = [_parameter(name, kind) for name, kind in tool.parameters.items()]
    parameters.sort(key=lambda one: one.default is not inspect.Parameter.empty)
    call.__annotations__ = {one.name: one.annotation for one in parameters} | {"return": dict[str, Any]}
    vars(call)["__signature__"] = inspect.Signature(parameters, return_annotation=dict[str, Any])
    return call


def _parameter(name: str, kind: str) -> inspect.Parameter:
    made = KINDS[kind.removesuffix("?")]
    keyword = inspect.Parameter.KEYWORD_ONLY
    if kind.endswith("?"):
        return inspect.Parameter(name, keyword, default=None, annotation=made | None)
    return inspect.Parameter(name, keyword, annotation=made)


def told(received: Received) -> dict[str, Any]:
    """What the agent hears; a status of 400 and above, and an answer that was cut, is an error of the tool."""
    if received.status >= 400 or received.truncated:
        cut = " (cut: it is too large)" if received.truncated else ""
        raise ToolError(f"the service answered {received.status}{cut}: {received.text[:2000]}")
    try:
        body = json.loads(received.text) if "json" in received.content_type else received.text
    except ValueError:
        body = received.text
    return {"status": received.status, "body": body}


def main() -> None:
    parser = argparse.ArgumentParser(prog="licet-service")
    parser.add_argument("service", type=Path)
    path = parser.parse_args().service
    try:
        service = read(path)
        build(service, own_headers(path.parent / service.header_file if service.header_file else None)).run()
    except (BadService, OSError) as bad:
        parser.error(str(bad))


if __name__ == "__main__":
    main()
