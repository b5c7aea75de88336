"""Requests of the workbench: only to hosts on the list, whatever a name resolves to or a server answers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from licet.workbench.network import MAX_RECEIVED, MAX_SENT, AllowList, Network, NotAllowed


class Page(BaseHTTPRequestHandler):
    asked: list[tuple[str, str, bytes, str]]

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append((self.command, self.path, body, self.headers["Host"]))  # type: ignore[attr-defined]
        if self.path == "/away":
            self.send_response(302)
            self.send_header("Location", "http://169.254.169.254/latest/meta-data/")
            self.end_headers()
            return
        text = b"x" * (MAX_RECEIVED + 5) if self.path == "/large" else b"hello"
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    made = HTTPServer(("127.0.0.1", 0), Page)
    made.asked = []  # type: ignore[attr-defined]
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def on(server: HTTPServer, *more: str) -> tuple[Network, str]:
    port = server.server_port
    return Network(AllowList((f"127.0.0.1:{port}", *more))), f"http://127.0.0.1:{port}"


def test_a_listed_host_is_asked_and_answers(server: HTTPServer) -> None:
    network, url = on(server)
    received = network.request("GET", url + "/page?q=1")
    assert (received.status, received.text, received.content_type) == (200, "hello", "text/plain")
    network.request("POST", url + "/form", b'{"a":1}', "application/json")
    assert [one[:3] for one in server.asked] == [("GET", "/page?q=1", b""), ("POST", "/form", b'{"a":1}')]  # type: ignore[attr-defined]


def test_a_redirect_is_told_and_not_followed(server: HTTPServer) -> None:
    network, url = on(server)
    received = network.request("GET", url + "/away")
    assert (received.status, received.location) == (302, "http://169.254.169.254/latest/meta-data/")


def test_too_much_is_cut_or_refused(server: HTTPServer) -> None:
    network, url = on(server)
    received = network.request("GET", url + "/large")
    assert (len(received.text), received.truncated) == (MAX_RECEIVED, True)
    with pytest.raises(ValueError, match="the limit is"):
        network.request("POST", url, b"x" * (MAX_SENT + 1))


@pytest.mark.parametrize(
    "url",
    [
        "http://other.example/",
        "http://127.0.0.1:1/",
        "http://127.0.0.1/",
        "https://example.org:8443/",
        "http://example.org/",
        "https://example.org.evil.test/",
        "https://evilexample.org/",
        "https://sub.example.org/",
        "https://wild.test/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://[::1]/",
    ],
)
def test_what_is_not_on_the_list_is_not_asked(url: str) -> None:
    with pytest.raises(NotAllowed, match="not on the list"):
        AllowList(("example.org:443", "*.wild.test:443")).require(url)


def test_a_wildcard_is_for_names_below_it() -> None:
    allowed = AllowList(("*.wild.test",))
    for host in ("a.wild.test", "a.b.wild.test", "A.WILD.test"):
        assert allowed.require(f"https://{host}/")[1].endswith(".wild.test")
    assert AllowList(("example.org",)).require("http://EXAMPLE.org./")[1] == "example.org"


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "gopher://example.org/", "https://user@example.org/", "https://example.org/a b", "example.org",
     "https://example.org\\@evil.test/", "https://example.org/\r\nX: y", "https://exämple.org/", "https://"],
)  # fmt: skip
def test_what_is_no_plain_url_is_refused(url: str) -> None:
    with pytest.raises((ValueError, NotAllowed)):
        AllowList(("example.org",)).require(url)


@pytest.mark.parametrize(
    "inside",
    ["127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "fe80::1", "100.64.0.1", "::ffff:127.0.0.1", "0.0.0.0"],
)
def test_a_name_that_leads_inside_is_not_followed(inside: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(_host: str, port: int, **_: object) -> list[object]:
        return [(0, 0, 0, "", ("93.184.216.34", port)), (0, 0, 0, "", (inside, port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(NotAllowed, match="not public"):
        AllowList(("example.org",)).address("example.org", 443)


def test_the_connection_goes_to_the_address_that_was_checked(
    server: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name server that answers otherwise the second time is not asked a second time."""
    answers = iter(["93.184.216.34", "127.0.0.1"])
    connected: list[tuple[str, int]] = []

    def connect(address: tuple[str, int], *_: object, **__: object) -> socket.socket:
        connected.append(address)
        raise OSError("stopped here")

    monkeypatch.setattr(socket, "getaddrinfo", lambda _h, p, **_: [(0, 0, 0, "", (next(answers), p))])
    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(OSError, match="stopped here"):
        Network(AllowList((f"name.test:{server.server_port}",))).request(
            "GET", f"http://name.test:{server.server_port}/"
        )
    assert connected == [("93.184.216.34", server.server_port)]


@pytest.mark.parametrize("bad", ["", "http://example.org", "exa mple.org", "*", "*.*.org", "example.org:x", "a/b"])
def test_a_list_that_makes_no_sense_is_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="expected a host"):
        AllowList((bad,))


@given(st.text(max_size=60))
def test_nothing_that_somebody_writes_gets_past_an_empty_list(text: str) -> None:
    for url in (text, f"https://{text}/", f"https://example.org{text}"):
        with pytest.raises((NotAllowed, ValueError)):
            AllowList(()).require(url)
