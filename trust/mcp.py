"""MCP messages, read strictly: which action one is, and what its routing headers must say.

Both eras are read here: 2026-07-28 (stateless; the headers repeat method and name) and 2025-11-25 and before
(sessions). Authorisation is always by the body. Headers that go on to the server are made from the body;
those that came are only compared with it.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from trust.action import Payload
from trust.canonical import JsonObject, JsonValue, jcs, read_json, read_object
from trust.policy.inventory import Manifest, Tool, pin, require_tool_name
from trust.reasons import Reason, Unverifiable, visible

MODERN: Final = "2026-07-28"
VERSION_META: Final = "io.modelcontextprotocol/protocolVersion"
CLIENT_INFO_META: Final = "io.modelcontextprotocol/clientInfo"
CLIENT_CAPABILITIES_META: Final = "io.modelcontextprotocol/clientCapabilities"

VERSION_HEADER: Final = "mcp-protocol-version"
SESSION_HEADER: Final = "mcp-session-id"
METHOD_HEADER: Final = "mcp-method"
NAME_HEADER: Final = "mcp-name"
EVENT_HEADER: Final = "last-event-id"
PARAM_PREFIX: Final = "mcp-param-"
MAX_TAIL_BYTES: Final = 256 << 10
"""Of a stream, kept to read its last event."""
_NAMED_BY: Final = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}

RpcId = str | int | None

_PROTOCOL = Manifest(category="protocol", effect="read", privileged=False, risk=0, labels=())
_DATA = Manifest(category="data", effect="read", privileged=False, risk=1, labels=("untrusted",))
_OPEN: JsonObject = {"type": "object", "additionalProperties": True}
_URI: JsonObject = {
    "type": "object",
    "properties": {"uri": {"type": "string"}},
    "required": ["uri"],
    "additionalProperties": True,
}
_NAME: JsonObject = {
    "type": "object",
    "properties": {"name": {"type": "string"}},
    "required": ["name"],
    "additionalProperties": True,
}


def _offer(method: str, manifest: Manifest, schema: JsonObject) -> Tool:
    name = f"mcp:{method}"
    return Tool(name, pin(name, "", schema), schema, manifest)


PROTOCOL_TOOLS: Final[Mapping[str, Tool]] = {
    tool.name: tool
    for tool in (
        *(
            _offer(method, _PROTOCOL, _OPEN)
            for method in (
                "initialize",
                "server/discover",
                "ping",
                "tools/list",
                "prompts/list",
                "resources/list",
                "resources/templates/list",
                "logging/setLevel",
                "notifications",
                "response",
                "listen",
                "close",
            )
        ),
        _offer("resources/read", _DATA, _URI),
        _offer("resources/subscribe", _DATA, _URI),
        _offer("resources/unsubscribe", _PROTOCOL, _URI),
        _offer("prompts/get", _DATA, _NAME),
        _offer("completion/complete", _DATA, _OPEN),
    )
}
"""What every MCP server offers beside its tools, as tools whose name no server can give itself."""


class Message(msgspec.Struct, frozen=True):
    """One JSON-RPC message (or a GET or DELETE of the transport) as an action."""

    kind: Literal["request", "notification", "response", "listen", "close"]
    rpc_id: RpcId
    method: str
    tool: str
    arguments: JsonObject
    modern: bool


def read_message(body: bytes) -> Message:
    """The one message in *body*. Batches were removed from MCP in 2025-06-18 and are refused whole."""
    value = read_json(body)
    if isinstance(value, list):
        raise _refuse("batches are not part of MCP since 2025-06-18; send one message at a time")
    if not isinstance(value, dict) or value.get("jsonrpc") != "2.0":
        raise _refuse('expected one JSON-RPC object with "jsonrpc": "2.0"')
    for member in value:
        if member not in _TOP_LEVEL:
            raise _refuse(f'the member "{visible(member)}" is not part of a JSON-RPC message')
    method, rpc_id = value.get("method"), value.get("id")
    if isinstance(rpc_id, bool) or not isinstance(rpc_id, str | int | None):
        raise _refuse("the id of a JSON-RPC message is a string or an integer")
    if method is None and ("result" in value or "error" in value):
        _require_small("a response", value)
        return Message("response", rpc_id, "", "mcp:response", {"response": value}, False)
    if not isinstance(method, str):
        raise _refuse('expected a JSON-RPC message with a "method"')
    if "result" in value or "error" in value:
        raise _refuse("a JSON-RPC message is a request or a response, not both")
    params = value.get("params", {})
    if not isinstance(params, dict):
        raise _refuse('"params" must be an object')
    modern = _version(params) is not None
    if "id" not in value:
        if not method.startswith("notifications/"):
            raise _refuse(f'"{visible(method)}" without an id: only notifications have none')
        _require_small(method, params)
        return Message("notification", None, method, "mcp:notifications", params, modern)
    if rpc_id is None:
        raise _refuse("the id of a JSON-RPC request may not be null")
    tool, arguments = _tool_and_arguments(method, params)
    return Message("request", rpc_id, method, tool, arguments, modern)


def _refuse(detail: str) -> Unverifiable:
    return Unverifiable(Reason.MALFORMED_REQUEST, detail)


def _version(params: JsonObject) -> str | None:
    """The protocol version that a stateless request carries, None for one of a session."""
    meta = params.get("_meta")
    if not isinstance(meta, dict) or VERSION_META not in meta:
        return None
    version = meta[VERSION_META]
    if version != MODERN:
        raise _refuse(f"{VERSION_META} says {visible(str(version))}, expected {MODERN}")
    return MODERN


def _tool_and_arguments(method: str, params: JsonObject) -> tuple[str, JsonObject]:
    _check_meta(params.get("_meta"))
    given = {key: value for key, value in params.items() if key != "_meta"}
    if method == "tools/call":
        name, arguments = given.pop("name", None), given.pop("arguments", None)
        if not isinstance(name, str):
            raise _refuse('tools/call needs a "name"')
        if not isinstance(arguments, dict | None):
            raise _refuse('"arguments" must be an object')
        _require_members(method, given, frozenset())
        return require_tool_name(name), arguments or {}
    tool = "mcp:listen" if method == "subscriptions/listen" else f"mcp:{method}"
    if tool not in PROTOCOL_TOOLS:
        raise Unverifiable(Reason.UNKNOWN_TOOL, f'the MCP method "{visible(method)}" is not known')
    if PROTOCOL_TOOLS[tool].manifest.category == "protocol":
        _require_members(method, given, _PROTOCOL_MEMBERS.get(method, frozenset()))
        _require_small(method, given)
    return tool, given


_PROTOCOL_MEMBERS: Final[Mapping[str, frozenset[str]]] = {
    "initialize": frozenset({"protocolVersion", "capabilities", "clientInfo"}),
    "tools/list": frozenset({"cursor"}),
    "prompts/list": frozenset({"cursor"}),
    "resources/list": frozenset({"cursor"}),
    "resources/templates/list": frozenset({"cursor"}),
    "logging/setLevel": frozenset({"level"}),
    "resources/unsubscribe": frozenset({"uri"}),
    "subscriptions/listen": frozenset({"notifications"}),
}
_OWN_META: Final = frozenset({VERSION_META, CLIENT_INFO_META, CLIENT_CAPABILITIES_META, "progressToken"})
_TOP_LEVEL: Final = frozenset({"jsonrpc", "id", "method", "params", "result", "error"})
MAX_META_BYTES: Final = 1024
"""Of ``_meta`` beyond the protocol's own: trace context and clients' ids pass, cargo that no policy sees does not."""
MAX_UNJUDGED_BYTES: Final = 8192
"""Of what MCP itself carries (handshakes, notifications, capabilities), which policies do not look into."""


def _require_small(what: str, value: JsonObject) -> None:
    if len(jcs(value)) > MAX_UNJUDGED_BYTES:
        raise _refuse(f"{what} carries more than {MAX_UNJUDGED_BYTES} bytes, which no policy would judge")


def _require_members(method: str, given: JsonObject, known: frozenset[str]) -> None:
    """What no policy judges may not ride along."""
    for member in given:
        if member not in known:
            raise _refuse(f'{method}: the params member "{visible(member)}" is not accepted')


def _check_meta(meta: JsonValue) -> None:
    if meta is None:
        return
    if not isinstance(meta, dict):
        raise _refuse('"_meta" must be an object')
    if len(jcs({key: value for key, value in meta.items() if key not in _OWN_META})) > MAX_META_BYTES:
        raise _refuse(f'"_meta" carries more than {MAX_META_BYTES} bytes of its own')
    _require_small('"_meta"', meta)


def require_headers_agree(message: Message, headers: Mapping[str, str]) -> None:
    """Headers that repeat the body must say the same; checked before policy."""
    if message.kind != "request":
        return
    version = headers.get(VERSION_HEADER)
    if message.modern and version != MODERN:
        raise _mismatch(f"{VERSION_HEADER} says {visible(version or 'nothing')}, the body {MODERN}")
    if version == MODERN and not message.modern:
        raise _mismatch(f"{VERSION_HEADER} says {MODERN}, but the body has no {VERSION_META}")
    method = headers.get(METHOD_HEADER)
    if (message.modern or method is not None) and method != message.method:
        raise _mismatch(f"{METHOD_HEADER} says {visible(method or 'nothing')}, the body {visible(message.method)}")
    named_by = _NAMED_BY.get(message.method)
    if named_by is not None:
        name = headers.get(NAME_HEADER)
        expected = _name_of(message, named_by)
        if (message.modern or name is not None) and (name is None or _decode(name) != expected):
            raise _mismatch(f"{NAME_HEADER} says {visible(name or 'nothing')}, the body {visible(expected)}")


def _name_of(message: Message, key: str) -> str:
    if message.method == "tools/call":
        return message.tool
    value = message.arguments.get(key)
    return value if isinstance(value, str) else ""


def _mismatch(detail: str) -> Unverifiable:
    return Unverifiable(Reason.HEADER_MISMATCH, detail)


_SENTINEL: Final = re.compile(r"=\?base64\?(.*)\?=")


def _decode(value: str) -> str | None:
    match = _SENTINEL.fullmatch(value)
    if match is None:
        return value
    try:
        decoded = base64.b64decode(match[1], validate=True)
        return decoded.decode("utf-8") if base64.b64encode(decoded).decode() == match[1] else None
    except ValueError:
        return None


def _encode(value: str) -> str:
    if re.fullmatch(r"[\x20-\x7e]*", value) and value == value.strip() and not _SENTINEL.fullmatch(value):
        return value
    return f"=?base64?{base64.b64encode(value.encode()).decode('ascii')}?="


def payload(message: Message, body: bytes, headers: Mapping[str, str], tool: Tool | None) -> Payload:
    """What goes to the server: the body as it came, and headers made from it.

    Of the headers that came only the session, the version of a session and the last event id go on. Parameter
    headers (``x-mcp-header`` in the tool's schema) are made here, and one that came must be among them.
    """
    made: dict[str, str] = {}
    for name in (SESSION_HEADER, VERSION_HEADER, EVENT_HEADER):
        if name in headers:
            made[name] = headers[name]
    if message.modern and message.kind == "request":
        made[METHOD_HEADER] = message.method
        if message.method in _NAMED_BY:
            made[NAME_HEADER] = _encode(_name_of(message, _NAMED_BY[message.method]))
        made.update(_parameter_headers(message, tool))
    for name, value in headers.items():
        if name.startswith(PARAM_PREFIX) and made.get(name) != value:
            raise _mismatch(f"{name} does not repeat an argument of the body")
    method = {"listen": "GET", "close": "DELETE"}.get(message.kind, "POST")
    return Payload(method, tuple(sorted(made.items())), body)


def _parameter_headers(message: Message, tool: Tool | None) -> dict[str, str]:
    if tool is None or message.method != "tools/call":
        return {}
    found: dict[str, str] = {}
    stack: list[tuple[JsonValue, JsonValue]] = [(tool.input_schema, message.arguments)]
    while stack:
        schema, value = stack.pop()
        if not isinstance(schema, dict):
            continue
        header = schema.get("x-mcp-header")
        if isinstance(header, str) and isinstance(value, bool | int | str):
            text = str(value).lower() if isinstance(value, bool) else str(value)
            found[PARAM_PREFIX + header.lower()] = _encode(text)
        properties = schema.get("properties")
        if isinstance(properties, dict) and isinstance(value, dict):
            stack += [(inner, value[key]) for key, inner in properties.items() if key in value]
    return found


def call(rpc_id: RpcId, tool: str, arguments: JsonObject) -> tuple[Message, bytes]:
    """A stateless ``tools/call``, as message and bytes; how native actions reach MCP servers."""
    body = request(rpc_id, "tools/call", {"name": tool, "arguments": arguments})
    return Message("request", rpc_id, "tools/call", tool, arguments, True), body


def with_arguments(body: bytes, arguments: JsonObject) -> bytes:
    """The same ``tools/call`` with other *arguments*; everything else in it stays."""
    message = read_object(body)
    params = message.get("params")
    if message.get("method") != "tools/call" or not isinstance(params, dict):
        raise _refuse("only the arguments of a tools/call can be changed")
    return msgspec.json.encode({**message, "params": {**params, "arguments": arguments}})


def request(rpc_id: RpcId, method: str, params: JsonObject) -> bytes:
    """A stateless request of our own."""
    return msgspec.json.encode(
        {"jsonrpc": "2.0", "id": rpc_id, "method": method, "params": {**params, "_meta": _OUR_META}}
    )


_OUR_META: Final[JsonObject] = {
    VERSION_META: MODERN,
    CLIENT_INFO_META: {"name": "licet", "version": "1"},
    CLIENT_CAPABILITIES_META: {},
}


def result(rpc_id: RpcId, value: JsonObject) -> bytes:
    return jcs({"jsonrpc": "2.0", "id": rpc_id, "result": value})


def error(rpc_id: RpcId, code: int, message: str, data: JsonObject | None = None) -> bytes:
    body: JsonObject = {"code": code, "message": message}
    if data is not None:
        body["data"] = data
    return jcs({"jsonrpc": "2.0", "id": rpc_id, "error": body})


def final_response(content_type: str, body: bytes) -> JsonObject:
    """The one JSON-RPC response in *body*, be it plain JSON or the last event of a stream."""
    if content_type.startswith("text/event-stream"):
        events = [read_json(data) for data in _event_data(body)]
        found = [e for e in events if isinstance(e, dict) and ("result" in e or "error" in e)]
        if not found:
            raise Unverifiable(Reason.UPSTREAM_FAILED, "the stream ended without a response")
        return found[-1]
    value = read_json(body)
    if not isinstance(value, dict) or ("result" not in value and "error" not in value):
        raise Unverifiable(Reason.UPSTREAM_FAILED, "expected a JSON-RPC response")
    return value


def went_wrong(content_type: str, body: bytes) -> bool:
    """Whether the response in *body*, or at the end of a stream of which *body* is the last part, tells of an error;
    what cannot be read is no success."""
    if not content_type.startswith("text/event-stream"):
        return is_error(body)
    try:
        return is_error(jcs(final_response(content_type, body)))
    except Unverifiable:
        return True


def is_error(body: bytes) -> bool:
    """Whether a JSON-RPC response in plain JSON tells of an error, be it the protocol's or the tool's."""
    if b"rror" not in body and b"\\u" not in body:
        return False  # neither "error" nor "isError", however it is spelled
    try:
        response = final_response("application/json", body)
    except Unverifiable:
        return True
    result = response.get("result")
    return "error" in response or (isinstance(result, dict) and result.get("isError") is not False)


def _event_data(body: bytes) -> list[bytes]:
    """The data of each server-sent event (WHATWG HTML, 9.2.6) that has any."""
    events: list[bytes] = []
    lines: list[bytes] = []
    for line in re.split(rb"\r\n|\n|\r", body + b"\n\n"):
        if line.startswith(b"data:"):
            lines.append(line[5:].removeprefix(b" "))
        elif not line and lines:
            events.append(b"\n".join(lines))
            lines = []
    return [event for event in events if event]


def event(message: bytes) -> bytes:
    """*message* (JSON on one line) as a server-sent event."""
    return b"event: message\ndata: " + message + b"\n\n"
