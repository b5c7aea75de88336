"""The verifier's own signatures, canonical form, proofs and arguments against the standards and against Licet's."""

from __future__ import annotations

import ast
import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.mesh import REPOSITORY
from tests.trust.test_arguments import names, schemas, value_for
from trust.identity.keys import SecretKey
from trust.ledger import checkpoint
from trust.ledger.checkpoint import Checkpoint
from trust.policy.arguments import project, shape_of
from trust.reasons import Unverifiable
from trust.verifier import arguments, ed25519, jcs, notes
from trust.verifier.cedar import Unsupported, from_json, key

RFC8032 = [
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
]


@pytest.mark.parametrize(("public", "message", "signature"), RFC8032)
def test_the_vectors_of_rfc_8032_verify_and_with_any_bit_changed_do_not(
    public: str, message: str, signature: str
) -> None:
    parts = [bytes.fromhex(part) for part in (public, message, signature)]
    assert ed25519.verifies(*parts)
    for which, part in enumerate(parts):
        for place in range(0, len(part) * 8, 37):
            changed = bytearray(part)
            changed[place // 8] ^= 1 << place % 8
            assert not ed25519.verifies(*[bytes(changed) if n == which else one for n, one in enumerate(parts)])


def test_signatures_that_are_not_canonical_are_refused() -> None:
    """The same signature with S + L, points that are none, wrong lengths: what RFC 8032 has refused."""
    public, message, signature = (bytes.fromhex(part) for part in RFC8032[1])
    scalar = int.from_bytes(signature[32:], "little") + ed25519.L
    assert not ed25519.verifies(public, message, signature[:32] + scalar.to_bytes(32, "little"))
    assert not ed25519.verifies(public, message, signature + b"\0")
    assert not ed25519.verifies(public + b"\0", message, signature)
    assert not ed25519.verifies(b"\xff" * 32, message, signature)  # y is not below p
    assert not ed25519.verifies((2).to_bytes(32, "little"), message, signature)  # no x for this y
    negative_zero = bytearray((1).to_bytes(32, "little"))
    negative_zero[31] |= 0x80
    assert not ed25519.verifies(bytes(negative_zero), message, signature)


@settings(max_examples=25)
@given(st.binary(max_size=200), st.binary(min_size=32, max_size=32))
def test_signatures_of_another_implementation_verify(message: bytes, seed: bytes) -> None:
    secret = Ed25519PrivateKey.from_private_bytes(seed)
    public = secret.public_key().public_bytes_raw()
    assert ed25519.verifies(public, message, secret.sign(message))
    assert not ed25519.verifies(public, message + b"x", secret.sign(message))


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(values)
def test_the_canonical_form_is_that_of_rfc_8785(value: Any) -> None:
    try:
        expected = rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError):
        return
    assert jcs.canonical(value).encode() == expected


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_are_written_as_ecmascript_writes_them(number: float) -> None:
    written = jcs.canonical(number)
    assert written.encode() == rfc8785.dumps(number)
    assert math.isclose(json.loads(written), number, rel_tol=0, abs_tol=0)


def test_json_that_means_two_things_is_not_read() -> None:
    for text in (b'{"a": 1, "a": 2}', b"NaN", b"[Infinity]", b"\xff"):
        with pytest.raises(ValueError):
            jcs.read(text)


def test_checkpoints_and_cosignatures_of_licet_verify() -> None:
    log, witness = SecretKey.generate(), SecretKey.generate()
    root = hashlib.sha256(b"root").digest()
    note = checkpoint.seal(Checkpoint("licet.local/sidecar/a", 7, root, 5), log)
    whole = (note + checkpoint.cosign(note, "licet.local/gateway/main", witness, 1_700_000_000)).decode()
    made = notes.Checkpoint(whole)
    made.require_signed(checkpoint.vkey("licet.local/sidecar/a", log.public))
    name = checkpoint.witness_vkey("licet.local/gateway/main", witness.public)
    assert made.cosigned_at(name) == 1_700_000_000
    for wrong in (
        whole.replace("\n7\n", "\n8\n"),
        whole.replace("licet.local/sidecar/a\n", "licet.local/sidecar/b\n"),
        whole.replace("time 5", "time 6") if "time 5" in whole else whole.replace("\n7\n", "\n6\n"),
    ):
        for check in (
            lambda one: one.require_signed(checkpoint.vkey("licet.local/sidecar/a", log.public)),
            lambda one: one.cosigned_at(name),
        ):
            with pytest.raises(notes.Fault):
                check(notes.Checkpoint(wrong))
    other = SecretKey.generate().public
    with pytest.raises(notes.Fault):
        made.require_signed(checkpoint.vkey("licet.local/sidecar/a", other))
    with pytest.raises(notes.Fault):
        made.cosigned_at(checkpoint.witness_vkey("licet.local/gateway/main", other))
    for text in ("", "no key", "a+00000000+AAAA", checkpoint.vkey("x", other)):
        with pytest.raises(notes.Fault):
            notes.key_of(text, notes.WITNESS)


@given(st.data(), st.dictionaries(names, schemas, max_size=4))
def test_arguments_are_typed_as_licet_types_them(data: Any, properties: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": properties, "required": []}
    value = value_for(data.draw, schema)
    try:
        expected = project(shape_of(schema), value)
    except Unverifiable:
        return  # it was refused before policy saw it, so there is no decision to make again
    try:
        ours = arguments.projected(arguments.shape_of(schema), value)
    except Unsupported:
        pytest.fail(f"{schema} {value}")
    assert key(ours) == key(from_json(expected))


def test_the_verifier_needs_nothing_but_python_itself() -> None:
    for path in sorted(Path(REPOSITORY / "trust/verifier").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(), feature_version=(3, 8))):
            if isinstance(node, ast.Import):
                assert all(one.name in sys.stdlib_module_names for one in node.names), path
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                assert str(node.module).partition(".")[0] in sys.stdlib_module_names, path
