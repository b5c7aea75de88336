"""Which arguments are personal, and that without the key nothing of them can be read, guessed or told apart."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trust.test_canonical import values
from trust import report
from trust.action import Action, Payload
from trust.canonical import jcs
from trust.identity.keys import unb64url
from trust.personal import (
    ALL,
    MARK,
    Marked,
    Personal,
    SubjectKey,
    marks_of,
    opened,
    padded,
    principal_id,
    subject_id,
)
from trust.policy.inventory import Manifest, Tool
from trust.reasons import Unverifiable

KEY = SubjectKey("sub_1", bytes(range(32)))
objects = st.dictionaries(st.text(max_size=8), values, max_size=5)
NAME = {"type": "string", MARK: True}
TEXT = {"type": "string"}


def tool(properties: dict[str, Any] | None, rest: dict[str, Any] | None = None, **manifest: Any) -> Tool:
    schema = {"type": "object", **({} if properties is None else {"properties": properties}), **(rest or {})}
    return Tool("t", "d", schema, Manifest(**manifest))


def action(arguments: Any, marks: Marked, key: SubjectKey = KEY, body: bytes = b"{}") -> Action:
    payload = Payload("POST", (), body)
    return Action("a", "d", "native", "s", "t", arguments, payload, "r", personal=Personal(marks, key))


def deed(made: Action, **more: Any) -> Any:
    return report.deed(made, agent="demo", principal="ada", authn="bound", authority=(), action_digest="", **more)


@pytest.mark.parametrize(
    ("found", "plain"),
    [
        (tool({"a": TEXT, "b": TEXT}), None),
        (tool({"a": {**TEXT, MARK: False}}), None),
        (tool(None), None),
        (tool({"a": NAME, "b": TEXT}), {"b"}),
        (tool({"a": TEXT, "b": TEXT}, personal=("a",)), {"b"}),
        (tool({"a": TEXT, "b": TEXT}, subject="a"), {"b"}),
        (tool({"a": {"type": "object", "properties": {"x": NAME}}, "b": TEXT}), {"b"}),
        (tool({"a": {"type": "array", "items": {"anyOf": [NAME, TEXT]}}, "b": TEXT}), {"b"}),
        (tool({"a": TEXT, "b": TEXT}, personal=("misspelt",)), set()),
        (tool({"a": {"$ref": "#/$defs/x"}, "b": TEXT}, {"$defs": {"x": NAME}}), set()),
        (tool({"a": NAME, "b": {"$ref": "#/properties/a"}, "c": TEXT}), {"c"}),
        (tool({"b": TEXT}, {MARK: True}), set()),
        (tool(None, personal=("a",)), set()),
    ],
)
def test_what_is_marked(found: Tool, plain: set[str] | None) -> None:
    marks = marks_of(found)
    assert marks.anything is (plain is not None)
    assert marks.plain == (plain or set())


@given(objects, st.sets(st.text(max_size=3)))
def test_split_and_together_again(arguments: Any, plain: set[str]) -> None:
    made = action(arguments, Marked(True, frozenset(plain)))
    kept = deed(made)
    assert set(kept.arguments) <= plain
    assert opened(KEY, unb64url(kept.sealed.box), kept.arguments) == arguments


@given(objects)
def test_what_cannot_be_told_apart_without_the_key(arguments: Any) -> None:
    """Other keys, other bytes everywhere; the same key, the same."""
    first, again = deed(action(arguments, ALL)), deed(action(arguments, ALL))
    other = deed(action(arguments, ALL, KEY.of("other")))
    for name in ("arguments_sha256", "payload_sha256"):
        assert getattr(first, name) == getattr(again, name) != getattr(other, name)
    assert first.sealed.box == again.sealed.box != other.sealed.box
    with pytest.raises(Unverifiable, match="not sealed under"):
        KEY.of("other").unseal(unb64url(first.sealed.box), "arguments")


def test_the_digests_are_what_the_documents_say() -> None:
    """Recomputed with the standard library alone."""
    made = action({"name": "Ada", "cents": 7}, Marked(True, frozenset({"cents"})))
    canonical = b'{"cents":7,"name":"Ada"}'
    salt = hmac.digest(KEY.secret, b"licet salt\n" + canonical, "sha256")
    assert deed(made).arguments_sha256 == hashlib.sha256(salt + canonical).hexdigest()
    everything = {
        "action": "s/t", "agent": "demo", "arguments": {"name": "Ada", "cents": 7}, "authority": [], "principal": "ada",
        "resource": 'Server::"s"', "salt": salt.hex(), "server": "s", "tool_schema": "d",
    }  # fmt: skip
    text = json.dumps(everything, sort_keys=True, separators=(",", ":"))
    assert made.digest("demo", "ada", (), "d") == hashlib.sha256(text.encode()).hexdigest()
    assert subject_id("Ada") == hashlib.sha256(b"licet subject\nAda").hexdigest()
    assert KEY.of("demo").secret == hmac.digest(KEY.secret, b"licet subject key of demo", "sha256")


def test_what_is_sealed_for_one_use_opens_for_no_other() -> None:
    box = KEY.seal(b"{}", "request")
    assert KEY.unseal(box, "request") == b"{}"
    with pytest.raises(Unverifiable):
        KEY.unseal(box, "arguments")
    with pytest.raises(Unverifiable):
        KEY.unseal(box[:-1] + bytes([box[-1] ^ 1]), "request")
    with pytest.raises(Unverifiable):
        KEY.unseal(b"", "request")


def test_nothing_stands_in_plain_and_sealed() -> None:
    """Else people would read the one, and the other would have been decided."""
    box = KEY.seal(jcs({"cents": 7_000_000}), "arguments")
    with pytest.raises(Unverifiable, match="in plain and sealed"):
        opened(KEY, box, {"cents": 7})


def test_arguments_that_are_not_of_the_schema_are_all_sealed() -> None:
    made = action({"cents": "Ada's street"}, Marked(True, frozenset({"cents"})))
    assert deed(made).arguments == {"cents": "Ada's street"}
    assert deed(made, valid=False).arguments == {}


def test_under_a_key_that_nobody_keeps_nothing_is_kept() -> None:
    made = action({"name": "Ada"}, ALL, SubjectKey("", bytes(32)))
    assert (deed(made).sealed.key, deed(made).sealed.box, report.kept_beside(made)) == ("", "", None)
    large = action({"name": "Ada" * 9000}, ALL, SubjectKey("", bytes(32)), b"x" * 30_000)
    assert report.kept_beside(large) is None
    assert deed(large).sealed.blob == ""


@pytest.mark.parametrize(
    ("subject", "arguments", "name"),
    [
        ("who", {"who": "ada"}, "ada"),
        ("who", {"who": 17}, "17"),
        ("who", {"who": 17.0}, "17"),
        ("who", {"who": " u\u0308ber "}, "\u00fcber"),
        ("who", {"who": {"id": 7}}, '{"id":7}'),
        ("who", {"who": "principal:bob"}, "principal:bob"),
        ("who", {"who": None}, None),
        ("who", {"who": ""}, None),
        ("who", {}, None),
        ("", {"who": "ada"}, None),
    ],
)
def test_whom_a_call_is_about(subject: str, arguments: Any, name: str | None) -> None:
    expected = principal_id("bob") if name is None else subject_id(name)
    assert Marked(True, subject=subject).about(arguments, "bob") == expected


@given(st.binary(max_size=6000))
def test_how_long_what_was_sealed_is_cannot_be_told(data: bytes) -> None:
    """But roughly: so a yes, a number and a short name are all one."""
    box = KEY.seal(data, "arguments")
    assert KEY.unseal(box, "arguments") == data
    assert len(box) - 16 == padded(len(data) + 4) <= max(256, (len(data) + 4) * 9 // 8 + 256)
    if len(data) <= 252:
        assert len(box) == 272


@given(st.integers(0, 1 << 24))
def test_padding_grows_and_is_never_too_little(size: int) -> None:
    assert size <= padded(size) <= padded(size + 1)
    assert padded(padded(size)) == padded(size)
