"""Bytes that two programs could read differently, sent over a raw socket: refused, recorded, never forwarded."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.mesh import Mesh
from trust.ledger.entries import Dispatch, Refusal
from trust.ledger.verify import verify

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

BODY = b'{"tool": "workbench/read_file", "args": {"path": "notes.txt"}}'


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    """One for all that is refused here."""
    async with Mesh(tmp_path_factory.mktemp("mesh")) as running:
        (running.sandbox / "notes.txt").write_text("hello")
        yield running


def refusals(mesh: Mesh) -> list[Refusal]:
    return [e for e in mesh.entries() if isinstance(e, Refusal)]


def dispatches(mesh: Mesh) -> int:
    return sum(isinstance(e, Dispatch) for e in mesh.entries("gateway"))


async def send(mesh: Mesh, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """One raw exchange; the connection is read to its end or to the answer's length."""
    reader, writer = await asyncio.open_connection("127.0.0.1", mesh.sidecar.port)
    writer.write(request)
    await writer.drain()
    try:
        async with asyncio.timeout(30):
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            if "connection" not in headers:
                headers["kept"] = str(not reader.at_eof())
            return int(lines[0].split()[1]), headers, body
    finally:
        writer.close()


def raw(
    mesh: Mesh,
    target: str = "/v1/actions",
    headers: list[str] | None = None,
    body: bytes = BODY,
    method: str = "POST",
    **replaced: str,
) -> bytes:
    given = {
        "Host": f"127.0.0.1:{mesh.sidecar.port}",
        "Authorization": f"Bearer {mesh.sidecar.token}",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        **{k.replace("_", "-"): v for k, v in replaced.items()},
    }
    lines = [f"{method} {target} HTTP/1.1", *(f"{k}: {v}" for k, v in given.items() if v), *(headers or [])]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


async def expect_refused(mesh: Mesh, request: bytes, reason: str, status: int = 400) -> dict[str, Any]:
    before, sent = len(refusals(mesh)), dispatches(mesh)
    found, headers, body = await send(mesh, request)
    told: dict[str, Any] = json.loads(body)
    assert (found, told["reason"]) == (status, reason), told
    assert headers["licet-decision"] == "deny"
    recorded = refusals(mesh)[before:]
    assert [r.reason for r in recorded] == [reason], "exactly one entry"
    assert recorded[0].decision_id == told["decision_id"]
    assert dispatches(mesh) == sent, "nothing was forwarded"
    return told


async def test_a_plain_request_goes_through(mesh: Mesh) -> None:
    status, headers, _ = await send(mesh, raw(mesh))
    assert (status, headers["licet-decision"]) == (200, "allow")


TARGETS = {
    "dot segments, encoded": "/v1/%2e%2e/v1/actions",
    "encoded slash": "/v1%2factions",
    "encoded letter": "/v1/action%73",
    "double slash": "/v1//actions",
    "dot segment": "/v1/./actions",
    "parent segment": "/v1/x/../actions",
    "backslash": "/v1\\actions",
    "null": "/v1/actions%00",
    "double encoding": "/v1/%252e%252e/actions",
    "fragment": "/v1/actions#x",
    "matrix of odd characters": "/v1/actions<>",
    "asterisk": "*",
}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
async def test_a_path_with_two_readings_is_refused(mesh: Mesh, target: str) -> None:
    before, sent = len(refusals(mesh)), dispatches(mesh)
    found, _, body = await send(mesh, raw(mesh, target))
    assert found == 400, body
    assert dispatches(mesh) == sent
    [recorded] = refusals(mesh)[before:]
    assert recorded.reason in ("ambiguous_path", "malformed_request")


async def test_an_absolute_uri_is_refused(mesh: Mesh) -> None:
    await expect_refused(mesh, raw(mesh, "http://elsewhere.test/v1/actions"), "ambiguous_path")


HEADERS = {
    "two hosts": ["Host: elsewhere.test"],
    "two content lengths": ["Content-Length: 1"],
    "length and chunks": ["Transfer-Encoding: chunked"],
    "forwarded for": ["X-Forwarded-For: 10.0.0.1"],
    "forwarded": ["Forwarded: for=1.2.3.4"],
    "underscore": ["X_Tool: a"],
    "internal": ["Licet-Decision: allow"],
    "internal agent": ["Licet-Agent: root"],
    "connection names a header": ["Connection: authorization"],
    "upgrade": ["Connection: keep-alive", "Upgrade: h2c"],
    "two authorizations": ["Authorization: Bearer x"],
    "two content types": ["Content-Type: text/plain"],
    "folded": ["X-A: b\r\n c"],
    "bare line feed": ["X-A: b\nX-B: c"],
    "space before the colon": ["X-A : b"],
    "a null byte": ["X-A: b\x00c"],
}


@pytest.mark.parametrize("headers", HEADERS.values(), ids=HEADERS.keys())
async def test_headers_with_two_readings_are_refused_and_recorded(mesh: Mesh, headers: list[str]) -> None:
    before, sent = len(refusals(mesh)), dispatches(mesh)
    found, _, body = await send(mesh, raw(mesh, headers=headers))
    assert found == 400, body
    assert json.loads(body)["reason"] in ("ambiguous_headers", "malformed_request")
    assert len(refusals(mesh)) == before + 1
    assert dispatches(mesh) == sent


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "[::1]"])
async def test_this_machine_has_more_than_one_name(mesh: Mesh, name: str) -> None:
    port = mesh.sidecar.port
    async with mesh.http.get(f"http://127.0.0.1:{port}/v1/tools", headers={"Host": f"{name}:{port}"}) as answer:
        assert answer.status == 401, "it is asked who it is, and not refused for the name"


async def test_another_host_is_refused(mesh: Mesh) -> None:
    await expect_refused(mesh, raw(mesh, Host="elsewhere.test"), "ambiguous_headers")


@pytest.mark.parametrize("origin", ["http://evil.test", "null", ""])
async def test_a_page_of_another_origin_is_refused(mesh: Mesh, origin: str) -> None:
    await expect_refused(mesh, raw(mesh, headers=[f"Origin: {origin}"]), "ambiguous_headers")


BODIES = {
    "duplicate key": b'{"tool": "workbench/read_file", "args": {}, "tool": "workbench/delete_file"}',
    "duplicate escaped key": b'{"tool": "workbench/read_file", "args": {"path": "a", "p\\u0061th": "b"}}',
    "NaN": b'{"tool": "workbench/read_file", "args": {"path": NaN}}',
    "byte order mark": b"\xef\xbb\xbf" + BODY,
    "UTF-16": BODY.decode().encode("utf-16"),
    "lone surrogate": b'{"tool": "workbench/read_file", "args": {"path": "\\ud800"}}',
    "number beyond 64 bits": b'{"tool": "workbench/read_file", "args": {"path": 99999999999999999999}}',
    "too deep": b'{"tool": "workbench/read_file", "args": ' + b'{"a":' * 80 + b"1" + b"}" * 80 + b"}",
    "trailing bytes": BODY + b"{}",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
async def test_json_with_two_readings_is_refused(mesh: Mesh, body: bytes) -> None:
    await expect_refused(mesh, raw(mesh, body=body), "ambiguous_json")


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "gzip, gzip", "x-unknown"])
async def test_content_codings_are_refused_before_anything_is_decoded(mesh: Mesh, coding: str) -> None:
    body = gzip.compress(BODY)
    request = raw(mesh, body=body, headers=[f"Content-Encoding: {coding}"])
    await expect_refused(mesh, request, "unsupported_encoding", 415)


async def test_a_body_declared_too_large_is_refused_unread(mesh: Mesh) -> None:
    request = raw(mesh, body=b"", Content_Length=str(1 << 30))
    await expect_refused(mesh, request, "body_too_large", 413)


async def test_a_chunked_body_that_grows_too_large_is_refused(mesh: Mesh) -> None:
    chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
    request = raw(mesh, body=b"", Content_Length="", headers=["Transfer-Encoding: chunked"]) + chunk * 5 + b"0\r\n\r\n"
    await expect_refused(mesh, request, "body_too_large", 413)


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND"])
async def test_every_other_method_is_refused_and_recorded(mesh: Mesh, method: str) -> None:
    before = len(refusals(mesh))
    reader, writer = await asyncio.open_connection("127.0.0.1", mesh.sidecar.port)
    writer.write(raw(mesh, method=method))
    assert b" 405 " in await reader.readline()
    writer.close()
    assert [one.reason for one in refusals(mesh)[before:]] == ["method_not_allowed"]


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/action", "/v1/actions/", "/mcp", "/mcp/", "/metrics/x", "/v1/dispatch", "/v1/execute"]
)
async def test_every_other_path_is_refused_and_recorded(mesh: Mesh, path: str) -> None:
    await expect_refused(mesh, raw(mesh, path), "not_found", 404)


MCP_CALL = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "tools/call",
    "params": {"name": "read_file", "arguments": {"path": "notes.txt"}},
}
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {},
    "io.modelcontextprotocol/clientCapabilities": {},
}


async def mcp(mesh: Mesh, message: Any, headers: dict[str, str] | None = None) -> Any:
    data = message if isinstance(message, bytes) else json.dumps(message).encode()
    return await mesh.request(
        "POST", mesh.url + "/mcp/workbench", token=mesh.sidecar.token, data=data,
        headers={"Content-Type": "application/json", "Accept": "application/json, text/event-stream", **(headers or {})},
    )  # fmt: skip


MISMATCHES = {
    "method": {"mcp-method": "tools/list", "mcp-name": "read_file"},
    "name": {"mcp-method": "tools/call", "mcp-name": "delete_file"},
    "no name": {"mcp-method": "tools/call"},
    "no method": {"mcp-name": "read_file"},
    "a parameter that is no argument": {
        "mcp-method": "tools/call",
        "mcp-name": "read_file",
        "mcp-param-path": "other.txt",
    },
    "broken encoding": {"mcp-method": "tools/call", "mcp-name": "=?base64?!!?="},
}


@pytest.mark.parametrize("headers", MISMATCHES.values(), ids=MISMATCHES.keys())
async def test_a_header_that_disagrees_with_the_body_is_refused_before_policy(
    mesh: Mesh, headers: dict[str, str]
) -> None:
    message = {**MCP_CALL, "params": {**MCP_CALL["params"], "_meta": META}}  # type: ignore[dict-item]
    before = len(refusals(mesh))
    answer = await mcp(mesh, message, {"mcp-protocol-version": "2026-07-28", **headers})
    assert (answer.status, answer.json["error"]["code"]) == (400, -32020)
    assert [one.step for one in refusals(mesh)[before:]] == [1]


MESSAGES = {
    "a batch": [MCP_CALL, {**MCP_CALL, "id": 2}],
    "an empty batch": [],
    "not JSON-RPC": {"method": "tools/call"},
    "request and response": {**MCP_CALL, "result": {}},
    "null id": {**MCP_CALL, "id": None},
    "boolean id": {**MCP_CALL, "id": True},
    "fractional id": {**MCP_CALL, "id": 1.5},
    "a call without an id": {k: v for k, v in MCP_CALL.items() if k != "id"},
    "params as a list": {**MCP_CALL, "params": []},
    "no name": {**MCP_CALL, "params": {}},
    "arguments as a string": {**MCP_CALL, "params": {"name": "read_file", "arguments": "{}"}},
}


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES.keys())
async def test_a_message_that_is_not_one_clear_request_is_refused(mesh: Mesh, message: Any) -> None:
    sent = dispatches(mesh)
    answer = await mcp(mesh, message)
    assert answer.status == 400
    assert answer.json["error"]["code"] in (-32600, -32700)
    assert dispatches(mesh) == sent


@pytest.mark.parametrize(
    "name", ["read_file\u200b", "rеad_file", "read_file\u202e", "ｒead_file", "../read_file", "read file", ""]
)
async def test_a_deceptive_tool_name_is_refused_and_shown_escaped(mesh: Mesh, name: str) -> None:
    answer = await mcp(mesh, {**MCP_CALL, "params": {"name": name, "arguments": {}}})
    assert answer.status in (200, 403)
    assert b"unknown_tool" in answer.body
    assert all(ord(c) < 0x7F for c in refusals(mesh)[-1].detail)


@pytest.mark.parametrize(
    "method",
    ["tools/destroy", "sampling/createMessage", "../tools/call", "tools/call ", "Tools/Call", "mcp:initialize"],
)
async def test_an_unknown_method_is_refused(mesh: Mesh, method: str) -> None:
    answer = await mcp(mesh, {**MCP_CALL, "method": method})
    assert answer.json["error"]["data"]["reason"] == "unknown_tool"


async def test_the_ledger_still_verifies_after_all_of_it(mesh: Mesh) -> None:
    for target in TARGETS.values():
        await send(mesh, raw(mesh, target))
    for body in BODIES.values():
        await send(mesh, raw(mesh, body=body))
    await mesh.stop("sidecar")
    assert verify(mesh.home / "sidecar" / "ledger").holds
