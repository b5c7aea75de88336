"""The strict JSON reader and the canonical writer."""

from __future__ import annotations

import json

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from trust.canonical import MAX_DEPTH, digest_of, jcs, read_json, read_object
from trust.reasons import Reason, Unverifiable

AMBIGUOUS = {
    "duplicate key": b'{"a": 1, "a": 2}',
    "duplicate key behind an escape": b'{"a": 1, "\\u0061": 2}',
    "duplicate key deep inside": b'[{"x": {"k": 1, "k": 1}}]',
    "NaN": b'{"a": NaN}',
    "Infinity": b"[-Infinity]",
    "byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "UTF-16 without a mark": '{"a": 1}'.encode("utf-16-le"),
    "lone surrogate": b'{"a": "\\ud800"}',
    "lone surrogate as a key": b'{"\\udc00": 1}',
    "reversed surrogates": b'"\\udc00\\ud800"',
    "invalid UTF-8": b'"\xff"',
    "integer beyond 64 bits": b"9223372036854775808",
    "integer far beyond 64 bits": b"1" + b"0" * 5000,
    "negative integer beyond 64 bits": b"-9223372036854775809",
    "float beyond 64 bits": b"1e999",
    "trailing bytes": b"{} {}",
    "trailing garbage": b"{}x",
    "empty": b"",
    "single quotes": b"{'a': 1}",
    "comment": b"{} // no",
    "raw control character": b'"\x01"',
    "too deep": b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
    "far too deep": b"[" * 100_000,
}


@pytest.mark.parametrize("data", AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
def test_ambiguous_json_is_refused_with_its_reason(data: bytes) -> None:
    with pytest.raises(Unverifiable) as refused:
        read_json(data)
    assert refused.value.reason is Reason.AMBIGUOUS_JSON
    assert refused.value.detail


def test_the_deepest_allowed_value_is_read() -> None:
    assert read_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH) is not None


def test_many_shallow_containers_are_not_mistaken_for_depth() -> None:
    assert len(read_json(b"[" + b"{}," * 1000 + b"{}]")) == 1001  # type: ignore[arg-type]


def test_surrogate_pairs_are_characters_and_are_read() -> None:
    assert read_json(b'"\\ud83d\\ude00"') == "😀"


def test_a_text_that_must_be_an_object_is_one() -> None:
    with pytest.raises(Unverifiable, match="expected a JSON object, found list"):
        read_object(b"[]")


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False).filter(lambda f: abs(f) < 2**53 or not f.is_integer())
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(values)
def test_the_canonical_form_is_that_of_rfc_8785(value: object) -> None:
    assert jcs(value) == rfc8785.dumps(value)  # type: ignore[arg-type]


@given(values)
def test_what_was_written_reads_back_to_the_same_digest(value: object) -> None:
    assert digest_of(read_json(jcs(value))) == digest_of(value)  # type: ignore[arg-type]


@given(values)
def test_the_reader_agrees_with_an_ordinary_parser_where_there_is_one_meaning(value: object) -> None:
    assert read_json(json.dumps(value).encode()) == value


def test_integers_beyond_53_bits_beside_floats_have_no_exact_form_and_are_refused() -> None:
    with pytest.raises(Unverifiable, match="no canonical form"):
        digest_of({"amount": 2**53 + 1, "rate": 0.5})


def test_integers_between_53_and_64_bits_keep_their_digits() -> None:
    assert jcs({"id": 2**63 - 1}) == b'{"id":9223372036854775807}'
    assert digest_of(2**53 + 1) != digest_of(2**53 + 2)


def test_the_published_vector_of_rfc_8785() -> None:
    text = rb'{"numbers":[333333333.33333329,1E30,4.50,2e-3,0.000000000000000000000000001],"string":"\u20ac$\u000F\u000aA\u0027\u0042\u0022\u005c\\\"\/","literals":[null,true,false]}'
    expected = '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    assert jcs(read_json(text)).decode() == expected
