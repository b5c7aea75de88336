"""Any HTTP service as tools: agents fill in parameters, and nothing else of a request."""

from __future__ import annotations

import json
import sys
import urllib.parse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from mcp.server.mcpserver.exceptions import ToolError

from licet.workbench.service import BadService, Described, own_headers, read, request_of
from sidecar.config import ToolServer
from tests.mesh import REPOSITORY, Mesh
from tests.stories.test_routing import policies, refused

TOML = """
base = "BASE"
header_file = "own"
[tools.get_invoice]
path = "/invoices/{id}"
query = ["currency"]
parameters = { id = "string", currency = "string?" }
[tools.pay]
method = "POST"
path = "/invoices/{id}/payments"
parameters = { id = "string", amount = "integer" }
[tools.elsewhere]
path = "/redirect"
"""
MANIFEST = "\n".join(
    f'[tools.{name}]\ncategory = "data"\neffect = "{effect}"\nprivileged = false\nrisk = 1\n'
    for name, effect in (("get_invoice", "read"), ("pay", "write"), ("elsewhere", "read"))
)


@asynccontextmanager
async def billing() -> AsyncIterator[tuple[str, list[Any]]]:
    asked: list[Any] = []

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        asked.append((request.method, request.raw_path, request.headers.get("Authorization"), await request.read()))
        if request.path == "/api/redirect":
            return web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"})
        if "missing" in request.path:
            return web.json_response({"error": "no such invoice"}, status=404)
        return web.json_response({"id": "17", "amount": 4200})

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/api", asked
    await runner.cleanup()


@pytest.mark.slow
async def test_a_service_behind_a_node_is_called_as_it_was_written_down(tmp_path: Path) -> None:
    (tmp_path / "own").write_text("Authorization: Bearer of-the-operator\n")
    (tmp_path / "manifest.toml").write_text(MANIFEST)
    async with billing() as (base, asked), Mesh(tmp_path, policies=policies()) as mesh:
        (tmp_path / "service.toml").write_text(TOML.replace("BASE", base))
        command = (sys.executable, "-m", "licet.workbench.service", str(tmp_path / "service.toml"))
        server = ToolServer(name="billing", command=command, cwd=REPOSITORY, manifest=tmp_path / "manifest.toml")
        await mesh.add_node("office", server)
        await mesh.ready()
        told = await mesh.call("billing/get_invoice", {"id": "17/../../etc", "currency": "EUR"})
        assert told.json["result"]["structuredContent"]["body"] == {"id": "17", "amount": 4200}
        await mesh.call("billing/pay", {"id": "17", "amount": 4200})
        assert asked == [
            ("GET", "/api/invoices/17%2F..%2F..%2Fetc?currency=EUR", "Bearer of-the-operator", b""),
            ("POST", "/api/invoices/17/payments", "Bearer of-the-operator", b'{"amount": 4200}'),
        ]
        lost = (await mesh.call("billing/get_invoice", {"id": "missing"})).body
        assert b"the service answered 404" in lost
        assert b"of-the-operator" not in lost
        await mesh.call("billing/elsewhere", {})
        assert len(asked) == 4, "a redirect is told, not followed"
        refused(await mesh.call("billing/pay", {"id": "17", "amount": "all"}), "arguments_invalid")
        refused(await mesh.call("billing/pay", {"id": "17", "amount": 1, "host": "x"}), "arguments_invalid")


PLAIN = Described(path="/a/{x}/b", query=("q",), parameters={"x": "string", "q": "string?"})


@given(st.text(min_size=1), st.none() | st.text())
def test_a_parameter_is_one_segment_or_one_value_whatever_is_in_it(x: str, q: str | None) -> None:
    if x in (".", ".."):
        with pytest.raises(ToolError):
            request_of("http://h/base", PLAIN, {"x": x, "q": q})
        return
    try:
        url, body = request_of("http://h/base", PLAIN, {"x": x, "q": q})
    except UnicodeEncodeError:
        return  # a lone surrogate, which the border has refused long before
    parts = urllib.parse.urlsplit(url)
    assert (parts.netloc, body) == ("h", b"")
    first, base, a, segment, b = parts.path.split("/")
    assert (first, base, a, urllib.parse.unquote(segment), b) == ("", "base", "a", x, "b")
    assert urllib.parse.parse_qs(parts.query, keep_blank_values=True) == ({} if q is None else {"q": [q]})


@pytest.mark.parametrize("bad", ["", ".", ".."])
def test_what_would_change_the_path_is_no_parameter(bad: str) -> None:
    with pytest.raises(ToolError, match="part of a path"):
        request_of("http://h", PLAIN, {"x": bad})


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ('path = "/x"\nquery = ["y"]', "not among parameters"),
        ('path = "/x/{y}"', "not among parameters"),
        ('path = "x"', "expected /plain/segments"),
        ('path = "/x?admin=1"', "expected /plain/segments"),
        ('path = "/x"\nmethod = "TRACE"', "Invalid enum value"),
        ('path = "/x"\nparameters = { a = "object" }', "expected one of string"),
        ('path = "/x"\nparameters = { a = "string" }', "say which parameters are query"),
        ('path = "/{a}"\nparameters = { a = "string?" }', "cannot be missing"),
        ('path = "/x"\ncolour = "blue"', "unknown field"),
    ],
)
def test_a_service_that_makes_no_sense_says_where(tmp_path: Path, changed: str, why: str) -> None:
    path = tmp_path / "s.toml"
    path.write_text(f'base = "http://h/"\n[tools.t]\n{changed}\n')
    with pytest.raises(BadService, match=why):
        read(path)


@pytest.mark.parametrize("base", ["ftp://h/", "http://", "http://u:p@h/", "http://h/?x=1", "h/x"])
def test_a_base_is_an_address_and_no_more(tmp_path: Path, base: str) -> None:
    path = tmp_path / "s.toml"
    path.write_text(f"base = {json.dumps(base)}\n[tools]\n")
    with pytest.raises(BadService, match="expected http://host/path"):
        read(path)


def test_a_wrong_line_of_headers_is_not_quoted(tmp_path: Path) -> None:
    path = tmp_path / "own"
    path.write_text("secret-without-a-name\n")
    with pytest.raises(BadService) as bad:
        own_headers(path)
    assert "secret" not in str(bad.value).replace(str(path), "")
