"""Other people's implementations and examples: what they sign we believe, what we sign they believe."""

from __future__ import annotations

import base64
import datetime
import json
from collections import OrderedDict
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from http_message_signatures import HTTPMessageSigner, HTTPSignatureKeyResolver, algorithms
from http_message_signatures.digests import ContentDigest
from http_message_signatures.resolvers import HTTPSignatureComponentResolver
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jws as jose_jws
from joserfc import jwt as jose_jwt
from joserfc.jwk import OKPKey

from trust.canonical import jcs
from trust.identity import delegation, httpsig, jws, wit
from trust.identity.httpsig import Request
from trust.identity.keys import PublicKey, SecretKey, b64url, unb64url
from trust.identity.wit import Workload
from trust.reasons import Unverifiable

SEED = bytes(range(32))
KEY, DOMAIN = SecretKey(SEED), SecretKey(bytes([7]) * 32)
NOW = int(datetime.datetime.now(datetime.UTC).timestamp())
AUDIENCE = "wimse://mesh.test/gateway/main"


class _Keys(HTTPSignatureKeyResolver):
    def resolve_public_key(self, key_id: Any) -> Any:
        return Ed25519PrivateKey.from_private_bytes(SEED).public_key()

    def resolve_private_key(self, key_id: Any) -> Any:
        return Ed25519PrivateKey.from_private_bytes(SEED)


class _Message:
    """A request as that library wants it."""

    def __init__(self, method: str, url: str, headers: dict[str, str]) -> None:
        self.method, self.url, self.headers = method, url, headers


PATHS = st.from_regex(r"\A/[a-z0-9/._~-]{0,20}(\?[a-z0-9=&]{0,12})?\Z")
METHODS = st.sampled_from(["GET", "POST", "PUT", "DELETE"])
BODIES = st.binary(max_size=40)
NONCES = st.from_regex(r"\A[A-Za-z0-9_-]{16,64}\Z")


def token() -> str:
    workload = Workload("mesh.test", "agent", "a1", "did:web:mesh.test:agents:a1", KEY.public, 1, NOW + 600)
    return wit.issue(workload, now=NOW, token_id="t1", key=DOMAIN)


WIT = token()


@given(METHODS, PATHS, BODIES, NONCES)
@settings(deadline=None)
def test_what_we_sign_http_message_signatures_believes(method: str, path: str, body: bytes, nonce: str) -> None:
    """Its own verifier asks for a ``keyid``, which WIMSE forbids; its parser, base and digest are what is asked here."""
    given_ = {"content-type": "application/json"} if body else {}
    request = Request(method, "gateway.test:7400", path, httpsig.headers_of(given_), body)
    headers = given_ | httpsig.sign(request, wit=WIT, key=KEY, audience=AUDIENCE, created=NOW, nonce=nonce)
    message = _Message(method, f"http://gateway.test:7400{path}", headers)
    library = HTTPMessageSigner(signature_algorithm=algorithms.ED25519, key_resolver=_Keys())
    asked = library._parse_signature_dictionary(headers["signature-input"])["wimse"]
    made = library._parse_signature_dictionary(headers["signature"])["wimse"].value
    base, _, elements = library._build_signature_base(
        message,
        covered_component_ids=list(asked),
        signature_params=asked.params,
        component_resolver=HTTPSignatureComponentResolver(message),
    )
    Ed25519PrivateKey.from_private_bytes(SEED).public_key().verify(made, base.encode())
    assert asked.params["wimse-aud"] == AUDIENCE
    assert '"@request-target"' in elements
    if body:
        ContentDigest.verify(headers["content-digest"], body)


@given(METHODS, PATHS, BODIES, NONCES)
@settings(deadline=None)
def test_what_it_would_sign_we_believe(method: str, path: str, body: bytes, nonce: str) -> None:
    """The base is the library's own; only the parameter that it does not know is laid into its signer's hands."""
    headers = {"workload-identity-token": WIT}
    if body:
        headers |= {"content-type": "application/json", "content-digest": httpsig.content_digest(body)}
    covered = [name for name in httpsig.COVERED if name.startswith("@") or name in headers]
    signer = HTTPMessageSigner(signature_algorithm=algorithms.ED25519, key_resolver=_Keys())
    params = OrderedDict(
        [("created", NOW), ("expires", NOW + 60), ("nonce", nonce), ("tag", httpsig.TAG), ("wimse-aud", AUDIENCE)]
    )
    message = _Message(method, f"http://gateway.test:7400{path}", headers)
    base, node, _ = signer._build_signature_base(
        message,
        covered_component_ids=signer._parse_covered_component_ids(covered),
        signature_params=params,
        component_resolver=HTTPSignatureComponentResolver(message),
    )
    made = Ed25519PrivateKey.from_private_bytes(SEED).sign(base.encode())
    signed = {
        **headers,
        "signature-input": f"wimse={node}",
        "signature": f"wimse=:{base64.b64encode(made).decode()}:",
    }
    request = Request(method, "gateway.test:7400", path, httpsig.headers_of(signed), body)
    assert httpsig.verify(request, key=KEY.public, audience=AUDIENCE, now=NOW + 1).nonce == nonce


def test_the_wimse_example_verifies_byte_for_byte() -> None:
    """The request of draft-ietf-wimse-s2s-protocol with the key that stands there (an earlier tag, the same form)."""
    key = PublicKey(unb64url("_amRC3YrYbHhH1RtYrL8cSmTDMhYtOUTG78cGTR5ezk"))
    params = (
        '("@method" "@request-target" "workload-identity-token");created=1718291357;expires=1718291657'
        ';nonce="abcd1111";tag="wimse-service-to-service"'
    )
    base = httpsig.signature_base(
        [
            ("@method", "GET"),
            ("@request-target", "/gimme-ice-cream?flavor=vanilla"),
            ("workload-identity-token", "aGVhZGVyCg.VGhpcyBpcyBub3QgYSByZWFsIHRva2VuLgo.c2lnbmF0dXJlCg"),
        ],
        params,
    )
    expected = "K4dfGnguF5f1L4DKBSp5XeFXosLGj8Y9fiUX06rL/wdOF+x3zTWmsvKWiY0B1oFZaOtm2FHru+YLjdkqa2WfCQ=="
    secret = SecretKey(unb64url("G4lGAYFtFq5rwyjlgSIRznIoCF7MtKDHByyUUZCqLiA"))
    assert secret.public == key
    assert base64.b64encode(secret.sign(base)).decode() == expected
    key.verify(base64.b64decode(expected), base)


# JOSE

NAMES = st.from_regex(r"\A[a-z0-9-]{1,20}\Z")


def okp(key: SecretKey, seed: bytes) -> OKPKey:
    return OKPKey.import_key({"kty": "OKP", "crv": "Ed25519", "x": b64url(key.public.raw), "d": b64url(seed)})


@given(NAMES, st.integers(1, 1000), st.integers(1, 3600))
def test_joserfc_reads_our_wits(name: str, revision: int, life: int) -> None:
    workload = Workload(
        "mesh.test", "agent", name, f"did:web:mesh.test:agents:{name}", KEY.public, revision, NOW + life
    )
    made = wit.issue(workload, now=NOW, token_id="t", key=DOMAIN)
    read = jose_jwt.decode(made, okp(DOMAIN, bytes([7]) * 32), algorithms=["EdDSA"])
    assert read.header == {"alg": "EdDSA", "typ": "wit+jwt"}
    assert read.claims["sub"] == f"wimse://mesh.test/agent/{name}"
    assert OKPKey.import_key(read.claims["cnf"]["jwk"]).thumbprint() == KEY.public.thumbprint


@given(NAMES, st.integers(1, 1000))
def test_we_read_wits_that_joserfc_made(name: str, revision: int) -> None:
    claims = {
        "iss": "https://mesh.test", "sub": f"wimse://mesh.test/agent/{name}", "did": "did:web:x", "iat": NOW,
        "exp": NOW + 60, "jti": "t", "cnf": {"jwk": dict(KEY.public.jwk)}, "rev": revision,
    }  # fmt: skip
    header = {"alg": "EdDSA", "typ": "wit+jwt"}
    made = jose_jwt.encode(header, claims, okp(DOMAIN, bytes([7]) * 32), algorithms=["EdDSA"])
    read = wit.verify(made, now=NOW, trust_domain="mesh.test", issuer=DOMAIN.public)
    assert (read.name, read.revision, read.key) == (name, revision, KEY.public)
    with pytest.raises(Unverifiable):
        wit.verify(made, now=NOW, trust_domain="mesh.test", issuer=KEY.public)


@given(
    st.dictionaries(st.text(max_size=5), st.integers(0, 2**53 - 1) | st.text(max_size=8) | st.booleans(), max_size=5)
)
def test_payloads_go_both_ways(payload: dict[str, Any]) -> None:
    ours = jws.seal(jcs(payload), "x+jwt", KEY)
    theirs = jose_jws.serialize_compact(
        {"alg": "EdDSA", "typ": "x+jwt"}, json.dumps(payload), okp(KEY, SEED), algorithms=["EdDSA"]
    )
    read = jose_jws.deserialize_compact(ours, okp(KEY, SEED), algorithms=["EdDSA"])
    assert json.loads(read.payload) == payload
    assert json.loads(jws.open_sealed(theirs, "x+jwt", KEY.public)) == payload


@given(st.sampled_from(["files/read", "pay/transfer"]), st.integers(0, 5), st.integers(1, 3600))
def test_joserfc_reads_every_link_of_our_chains(tool: str, max_depth: int, life: int) -> None:
    chain = delegation.mint(
        trust_domain="mesh.test", principal="ada", audience="a", holder=KEY.public, tools={tool: {}},
        max_depth=max_depth, now=NOW, expires_at=NOW + life, root="r", key=DOMAIN,
    )  # fmt: skip
    if max_depth:
        chain = delegation.derive(
            chain, holder=DOMAIN.public, tools={tool: {}}, expires_at=NOW + life, now=NOW, token_id="t", key=KEY
        )
    keys = [okp(DOMAIN, bytes([7]) * 32), okp(KEY, SEED)]
    for depth, (link, key) in enumerate(zip(chain.split("~"), keys, strict=False)):
        read = jose_jwt.decode(link, key, algorithms=["EdDSA"])
        assert read.header == {"alg": "EdDSA", "typ": "aat+jwt"}
        assert read.claims["del_depth"] == depth
        assert read.claims["authorization_details"][0]["tools"] == {tool: {}}
