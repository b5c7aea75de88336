"""Keys, tokens, signed requests, tickets: what is believed, and everything that is not."""

from __future__ import annotations

import base64

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from trust.canonical import jcs, sha256_hex
from trust.identity import httpsig, jws, ticket, wit
from trust.identity.httpsig import Request
from trust.identity.keys import PublicKey, SecretKey, b64url, unb64url
from trust.identity.replay import Nonces
from trust.identity.ticket import Ticket
from trust.identity.wit import Workload
from trust.reasons import Reason, Unverifiable

KEY = SecretKey(bytes(range(32)))
OTHER = SecretKey(bytes(32))
NOW = 1_800_000_000

P = 2**255 - 19
SMALL_ORDER = [
    bytes(32),
    b"\x01" + bytes(31),
    (P - 1).to_bytes(32, "little"),
    bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
    bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa"),
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85"),
    bytes(31) + b"\x80",
]
NON_CANONICAL = [P.to_bytes(32, "little"), (P + 1).to_bytes(32, "little"), b"\xff" * 32]


@pytest.mark.parametrize(
    "raw", [*SMALL_ORDER, *NON_CANONICAL, b"", bytes(31), bytes(33)], ids=lambda raw: raw.hex()[:16]
)
def test_weak_keys_are_refused_wherever_they_enter(raw: bytes) -> None:
    with pytest.raises(Unverifiable):
        PublicKey(raw)
    with pytest.raises(Unverifiable):
        PublicKey.from_jwk({"kty": "OKP", "crv": "Ed25519", "x": b64url(raw)})


def test_the_did_of_the_all_zero_seed_is_the_published_one() -> None:
    did = "did:key:z6MkiTBz1ymuepAQ4HEHYSF1H8quG5GLVVQR3djdX3mDooWp"
    assert OTHER.public.did == did
    assert PublicKey.from_did(did) == OTHER.public


@pytest.mark.parametrize(
    "did", ["did:key:", "did:key:zabc", "did:web:x", "did:key:z6MkiTBz1ymuepAQ4HEHYSF1H8quG5GLVVQR3djdX3mDooW0"]
)
def test_a_did_that_is_no_ed25519_key_is_refused(did: str) -> None:
    with pytest.raises(Unverifiable):
        PublicKey.from_did(did)


@pytest.mark.parametrize("text", ["YQ==", "YR", "a b", "YQ=", "Y+"])
def test_base64url_has_one_form(text: str) -> None:
    with pytest.raises(Unverifiable):
        unb64url(text)


def test_a_secret_is_not_in_a_repr() -> None:
    assert bytes(range(32)).hex() not in repr(KEY)
    assert b64url(bytes(range(32))) not in repr(KEY)


def test_a_key_file_that_others_may_read_is_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "key"
    KEY.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert SecretKey.load(path).public == KEY.public
    path.chmod(0o644)
    with pytest.raises(PermissionError, match="chmod 600"):
        SecretKey.load(path)


def test_rfc_9421_b_2_6_signs_and_verifies_byte_for_byte() -> None:
    """The Ed25519 vector of RFC 9421: test-key-ed25519 over the base of section B.2.6."""
    seed = unb64url("n4Ni-HpISpVObnQMW0wOhCKROaIKqKtW_2ZYb2p9KcU")
    base = httpsig.signature_base(
        [
            ("date", "Tue, 20 Apr 2021 02:07:55 GMT"),
            ("@method", "POST"),
            ("@path", "/foo"),
            ("@authority", "example.com"),
            ("content-type", "application/json"),
            ("content-length", "18"),
        ],
        '("date" "@method" "@path" "@authority" "content-type" "content-length");created=1618884473;keyid="test-key-ed25519"',
    )
    expected = "wqcAqbmYJ2ji2glfAMaRy4gruYYnx2nEFN2HN6jrnDnQCK1u02Gb04v9EDgwUPiu4A0w6vuQv5lIp5WPpBKRCw=="
    assert base64.b64encode(SecretKey(seed).sign(base)).decode() == expected
    SecretKey(seed).public.verify(base64.b64decode(expected), base)


def workload(**changed: object) -> Workload:
    made = Workload("mesh.test", "agent", "a1", "did:web:mesh.test:agents:a1", KEY.public, 1, NOW + 600)
    return replace(made, **changed)  # type: ignore[arg-type]


def issue(**changed: object) -> str:
    return wit.issue(workload(**changed), now=NOW, token_id="t1", key=OTHER)


def believe(token: str, now: float = NOW + 1, domain: str = "mesh.test") -> Workload:
    return wit.verify(token, now=now, trust_domain=domain, issuer=OTHER.public)


def test_a_wit_says_who_it_speaks_for() -> None:
    assert believe(issue()) == workload()


def forged(typ: str = wit.TYP, key: SecretKey = OTHER, raw: bytes | None = None, **changed: object) -> str:
    claims = msgspec.json.decode(unb64url(issue().split(".")[1])) | changed
    return jws.seal(raw or jcs(claims), typ, key)


BAD_WITS = {
    "wrong type": forged(typ="JWT"),
    "another issuer's key": forged(key=KEY),
    "expired": forged(iat=NOW - 700, exp=NOW),
    "from the future": forged(iat=NOW + 60, exp=NOW + 100),
    "lives longer than an hour": forged(exp=NOW + 3601),
    "string exp": forged(exp=str(NOW + 60)),
    "no exp": jws.seal(
        jcs({k: v for k, v in msgspec.json.decode(unb64url(issue().split(".")[1])).items() if k != "exp"}),
        wit.TYP,
        OTHER,
    ),
    "unknown claim": forged(aud="x"),
    "foreign domain": forged(sub="wimse://other.test/agent/a1"),
    "foreign issuer": forged(iss="https://other.test"),
    "subject of an unknown kind": forged(sub="wimse://mesh.test/person/a1"),
    "weak key inside": forged(cnf={"jwk": {"kty": "OKP", "crv": "Ed25519", "x": b64url(bytes(32))}}),
    "key with a secret inside": forged(cnf={"jwk": {**KEY.public.jwk, "d": "AA"}}),
    "duplicate claims": forged(
        raw=jcs(msgspec.json.decode(unb64url(issue().split(".")[1])))[:-1] + b',"sub":"wimse://mesh.test/agent/root"}'
    ),
    "alg none": ".".join([b64url(b'{"alg":"none","typ":"wit+jwt"}'), issue().split(".")[1], ""]),
    "alg none with a signature": ".".join([b64url(b'{"alg":"none","typ":"wit+jwt"}'), *issue().split(".")[1:]]),
    "header with a key": ".".join(
        [b64url(jcs({"alg": "EdDSA", "typ": "wit+jwt", "jwk": dict(KEY.public.jwk)})), *issue().split(".")[1:]]
    ),
    "padding": issue() + "==",
    "empty": "",
    "too long": "a" * (jws.MAX_TOKEN_BYTES + 1),
}


@pytest.mark.parametrize("token", BAD_WITS.values(), ids=BAD_WITS.keys())
def test_a_wit_that_is_not_exactly_right_is_refused(token: str) -> None:
    with pytest.raises(Unverifiable):
        believe(token)


TOKEN = issue()


def request(method: str = "POST", body: bytes = b'{"x":1}', target: str = "/v1/dispatch", **headers: str) -> Request:
    given = [("content-type", "application/json"), *((k.replace("_", "-"), v) for k, v in headers.items())]
    return Request(method, "gateway:7400", target, given, body)


def sign(
    asked: Request, key: SecretKey = KEY, audience: str = "gw", created: int = NOW, nonce: str = "n" * 20
) -> Request:
    added = httpsig.sign(asked, wit=TOKEN, key=key, audience=audience, created=created, nonce=nonce)
    return replace(asked, headers=[*asked.headers, *added.items()])


def verify(asked: Request, now: float = NOW + 1, audience: str = "gw", **more: float) -> httpsig.Claim:
    return httpsig.verify(asked, key=KEY.public, audience=audience, now=now, **more)


def with_header(asked: Request, name: str, change) -> Request:  # type: ignore[no-untyped-def]
    return replace(asked, headers=[(k, change(v) if k == name else v) for k, v in asked.headers])


def test_a_signed_request_verifies_and_tells_its_nonce() -> None:
    assert verify(sign(request())).nonce == "n" * 20
    assert verify(sign(request("GET", b"", "/v1/bundle?wait=20"))).expires_at == NOW + httpsig.MAX_LIFE_S


GOOD = sign(request(idempotency_key="k1"))
BAD_REQUESTS = {
    "another method": replace(GOOD, method="PUT"),
    "another target": replace(GOOD, target="/v1/dispatch?x=1"),
    "another authority": replace(GOOD, authority="elsewhere:7400"),
    "another body": replace(GOOD, body=b'{"x":2}'),
    "no body any more": replace(GOOD, body=b""),
    "another content type": with_header(GOOD, "content-type", lambda v: "text/plain"),
    "another digest": with_header(GOOD, "content-digest", lambda v: httpsig.content_digest(b"y")),
    "another token": with_header(GOOD, "workload-identity-token", lambda v: v[:-2] + "xx"),
    "another key's signature": sign(request(), key=OTHER),
    "a header added that must be covered": replace(GOOD, headers=[*GOOD.headers, ("licet-delegation", "x")]),
    "the idempotency key taken away": replace(GOOD, headers=[h for h in GOOD.headers if h[0] != "idempotency-key"]),
    "two signatures": replace(GOOD, headers=[*GOOD.headers, ("signature", GOOD.only("signature") or "")]),
    "two inputs": replace(GOOD, headers=[*GOOD.headers, ("signature-input", GOOD.only("signature-input") or "")]),
    "no signature": replace(GOOD, headers=[h for h in GOOD.headers if h[0] != "signature"]),
    "covers too little": with_header(GOOD, "signature-input", lambda v: v.replace(' "content-digest"', "")),
    "an algorithm parameter": with_header(GOOD, "signature-input", lambda v: v + ';alg="none"'),
    "a key id": with_header(GOOD, "signature-input", lambda v: v + ';keyid="x"'),
    "no tag": with_header(GOOD, "signature-input", lambda v: v.replace(f';tag="{httpsig.TAG}"', "")),
    "a second label": with_header(GOOD, "signature-input", lambda v: v + ", other=()"),
    "lives too long": with_header(
        GOOD, "signature-input", lambda v: v.replace(f"expires={NOW + 60}", f"expires={NOW + 61}")
    ),
}


@pytest.mark.parametrize("asked", BAD_REQUESTS.values(), ids=BAD_REQUESTS.keys())
def test_a_request_that_was_changed_or_covers_too_little_is_refused(asked: Request) -> None:
    with pytest.raises(Unverifiable):
        verify(asked)


@pytest.mark.parametrize(
    ("now", "audience", "more"),
    [(NOW + 60, "gw", {}), (NOW - 6, "gw", {}), (NOW + 1, "other", {}), (NOW + 1, "gw", {"not_before": NOW + 1.0})],
    ids=["expired", "from the future", "another audience", "from before a restart"],
)
def test_a_request_at_the_wrong_time_or_place_is_refused(now: float, audience: str, more: dict[str, float]) -> None:
    with pytest.raises(Unverifiable):
        verify(sign(request()), now=now, audience=audience, **more)


@given(st.integers(0, 63), st.integers(1, 255))
def test_no_flipped_bit_in_a_signature_verifies(position: int, flip: int) -> None:
    def flipped(value: str) -> str:
        raw = bytearray(base64.b64decode(value.removeprefix("wimse=:").removesuffix(":")))
        raw[position] ^= flip
        return f"wimse=:{base64.b64encode(bytes(raw)).decode()}:"

    with pytest.raises(Unverifiable):
        verify(with_header(GOOD, "signature", flipped))


def test_a_nonce_is_spent_once_until_it_expires() -> None:
    nonces = Nonces()
    nonces.spend("a", NOW + 60, NOW)
    with pytest.raises(Unverifiable) as refused:
        nonces.spend("a", NOW + 60, NOW + 59)
    assert refused.value.reason is Reason.REPLAYED
    nonces.spend("b", NOW + 120, NOW + 61)
    nonces.spend("a", NOW + 120, NOW + 61)


TICKET = Ticket(
    id="tkt", action_id="act", node="n1", key=b64url(OTHER.public.raw), epoch=3, server="s", tool="t", agent="a", principal="p", run="r",
    payload="d" * 64, tool_digest="f" * 64, action_digest="e" * 64, approval=None, credentials="c", issued_at=NOW, deadline=NOW + 30,
)  # fmt: skip


def open_ticket(token: str, **changed: object) -> Ticket:
    asked = {
        "gateway": KEY.public,
        "sessions": {"ses_1": b"k" * 32}.get,
        "node": "n1",
        "key": b64url(OTHER.public.raw),
        "epoch": 3,
        "payload": "d" * 64,
        "credentials": "c",
        "now": NOW + 1,
    } | changed
    return ticket.open_ticket(token, **asked)  # type: ignore[arg-type]


def test_a_ticket_opens_for_its_node_epoch_bytes_and_time_only() -> None:
    token = ticket.seal(TICKET, KEY)
    assert open_ticket(token) == TICKET
    for changed in (
        {"node": "n2"}, {"epoch": 2}, {"epoch": 4}, {"payload": "f" * 64}, {"now": NOW + 30}, {"now": NOW - 6},
        {"gateway": OTHER.public}, {"credentials": "x"}, {"key": b64url(KEY.public.raw)},
    ):  # fmt: skip
        with pytest.raises(Unverifiable):
            open_ticket(token, **changed)


def test_a_ticket_within_a_session_is_held_to_the_same_and_to_its_session() -> None:
    token = ticket.seal_within(TICKET, "ses_1", b"k" * 32)
    assert open_ticket(token) == TICKET
    assert not ticket.is_signed(token)
    session, payload, mac = token.split("~")
    other = ticket.seal_within(replace(TICKET, agent="b"), "ses_1", b"k" * 32).split("~")
    for bad in (
        ticket.seal_within(TICKET, "ses_1", b"x" * 32),
        ticket.seal_within(TICKET, "ses_2", b"k" * 32),
        f"{session}~{other[1]}~{mac}",
        f"{session}~{payload}~",
        f"{session}~{payload}",
        f"{session}~{payload}~{mac}~{mac}",
        f"~{payload}~{mac}",
        "~~",
        "~",
    ):
        with pytest.raises(Unverifiable):
            open_ticket(bad)
    for changed in ({"node": "n2"}, {"epoch": 2}, {"payload": "f" * 64}, {"now": NOW + 30}, {"credentials": "x"}):
        with pytest.raises(Unverifiable):
            open_ticket(token, **changed)


def test_who_checks_a_ticket_itself_believes_the_node_it_was_made_for_and_nobody_else() -> None:
    made = replace(TICKET, body=sha256_hex(b"body"))
    token = ticket.seal(made, KEY)
    asked = {"gateway": KEY.public, "now": NOW + 1}
    good = ticket.use(token, b"body", OTHER)
    assert ticket.open_used(token, good, b"body", **asked) == made
    within = ticket.seal_within(made, "ses_1", b"k" * 32)
    for bad, proof, body, changed in (
        (token, ticket.use(token, b"body", KEY), b"body", {}),
        (token, good, b"other", {}),
        (token, "", b"body", {}),
        (ticket.seal(replace(made, tool="u"), KEY), good, b"body", {}),
        (within, ticket.use(within, b"body", OTHER), b"body", {}),
        (token, good, b"body", {"gateway": OTHER.public}),
        (token, good, b"body", {"now": NOW + 30}),
    ):
        with pytest.raises(Unverifiable):
            ticket.open_used(bad, proof, body, **(asked | changed))


def test_a_ticket_that_lives_too_long_is_refused() -> None:
    with pytest.raises(Unverifiable):
        open_ticket(ticket.seal(msgspec.structs.replace(TICKET, deadline=NOW + 31), KEY))


def test_a_wit_is_no_ticket() -> None:
    with pytest.raises(Unverifiable):
        open_ticket(jws.seal(msgspec.json.encode(TICKET), wit.TYP, KEY))
