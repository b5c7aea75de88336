"""Delegation: authority only shrinks, in each way in which somebody could try to make it grow."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from trust.canonical import jcs
from trust.identity import constraints, delegation, jws
from trust.identity.constraints import Constraint
from trust.identity.delegation import Authority
from trust.identity.keys import SecretKey, unb64url
from trust.reasons import Reason, Unverifiable

DOMAIN = SecretKey(bytes([9]) * 32)
ONE, TWO, THREE, OTHER = (SecretKey(bytes([n]) * 32) for n in (1, 2, 3, 4))
NOW = 1_800_000_000
TOOLS: dict[str, Any] = {
    "files/read_file": {"path": {"constraint_type": "prefix", "prefix": "reports/"}},
    "files/list": {},
    "pay/transfer": {
        "amount": {"constraint_type": "range", "min": 1, "max": 100},
        "to": {"constraint_type": "one_of", "values": ["acme", "globex"]},
    },
}
NARROWER: dict[str, Any] = {"files/read_file": {"path": {"constraint_type": "exact", "value": "reports/q3.txt"}}}


def root(**changed: Any) -> str:
    given_: dict[str, Any] = {
        "trust_domain": "mesh.test", "principal": "ada", "audience": delegation.audience("mesh.test"),
        "holder": ONE.public, "tools": delegation.grants(TOOLS), "max_depth": 3, "now": NOW, "expires_at": NOW + 3600,
        "root": "root_1", "key": DOMAIN,
    }  # fmt: skip
    return delegation.mint(**{**given_, **changed})


def child(chain: str, key: SecretKey = ONE, holder: SecretKey = TWO, tools: Any = None, **changed: Any) -> str:
    given_: dict[str, Any] = {
        "holder": holder.public, "tools": delegation.grants(tools or NARROWER), "expires_at": NOW + 1800, "now": NOW + 1,
        "token_id": "aat_1", "key": key,
    }  # fmt: skip
    return delegation.derive(chain, **{**given_, **changed})


def opened(chain: str, **changed: Any) -> Authority:
    given_: dict[str, Any] = {
        "issuer": DOMAIN.public, "trust_domain": "mesh.test", "audience": delegation.audience("mesh.test"),
        "now": NOW + 10,
    }  # fmt: skip
    return delegation.open_chain(chain, **{**given_, **changed})


def forged(chain: str, key: SecretKey, typ: str = delegation.TYP, **changed: Any) -> str:
    """*chain* with other claims in its last token, signed by *key*."""
    head, _, last = chain.rpartition("~")
    claims = {**jws.peek(last, delegation.TYP), **changed}
    claims = {name: value for name, value in claims.items() if value is not None}
    made = jws.seal(jcs(claims), typ, key)
    return f"{head}~{made}" if head else made


def details(tools: Any) -> list[Any]:
    return [{"type": delegation.DETAIL, "tools": tools}]


def test_a_chain_gives_what_its_last_token_says_to_who_holds_its_last_key() -> None:
    made = opened(child(root()))
    assert (made.principal, made.root, len(made.tokens), made.expires_at) == ("ada", "root_1", 2, NOW + 1800)
    made.require("files/read_file", {"path": "reports/q3.txt", "more": 1})
    made.require_holder(TWO.public)
    for tool, arguments in (
        ("files/read_file", {"path": "reports/q4.txt"}),
        ("files/read_file", {}),
        ("files/list", {}),
        ("pay/transfer", {"amount": 1, "to": "acme"}),
    ):
        with pytest.raises(Unverifiable) as bad:
            made.require(tool, arguments)
        assert bad.value.reason is Reason.AUTHORITY_EXCEEDED
    for key in (ONE, THREE):
        with pytest.raises(Unverifiable):
            made.require_holder(key.public)


def refused(chain: str, **changed: Any) -> str:
    with pytest.raises(Unverifiable) as bad:
        opened(chain, **changed)
    assert bad.value.reason is Reason.DELEGATION_INVALID
    return bad.value.detail


CHAIN = child(root())
WIDER = {
    "another tool": {"authorization_details": details({**NARROWER, "files/delete": {}})},
    "a constraint dropped": {"authorization_details": details({"files/read_file": {}})},
    "a wider constraint": {
        "authorization_details": details(
            {"files/read_file": {"path": {"constraint_type": "prefix", "prefix": "report"}}}
        )
    },
    "a constraint that cannot be compared": {
        "authorization_details": details(
            {"files/read_file": {"path": {"constraint_type": "not_one_of", "excluded": ["x"]}}}
        )
    },
    "a constraint nobody knows": {
        "authorization_details": details({"files/read_file": {"path": {"constraint_type": "regex", "pattern": ".*"}}})
    },
    "a constraint with more in it": {
        "authorization_details": details(
            {"files/read_file": {"path": {"constraint_type": "exact", "value": "reports/a", "or": "b"}}}
        )
    },
    "another type of authority": {"authorization_details": [{"type": "payment", "tools": NARROWER}]},
    "two authorities": {"authorization_details": details(NARROWER) * 2},
    "no authority": {"authorization_details": []},
    "it outlives its parent": {"exp": NOW + 3601},
    "it never ends": {"exp": None},
    "an end that is text": {"exp": str(NOW + 1800)},
    "a depth that stays": {"del_depth": 0},
    "a depth that jumps": {"del_depth": 2},
    "a ceiling that rises": {"del_max_depth": 4},
    "another parent": {"par_hash": "A" * 43},
    "no parent": {"par_hash": None},
    "another principal": {"sub": "bob"},
    "another audience": {"aud": "elsewhere"},
    "another root": {"rid": "root_2"},
    "another issuer": {"iss": delegation.THUMBPRINT_URI + OTHER.public.thumbprint},
    "a claim that nobody reads": {"admin": True},
    "a weak key": {"cnf": {"jwk": {"kty": "OKP", "crv": "Ed25519", "x": "AQ" + "A" * 41}}},
    "a key of another kind": {"cnf": {"jwk": {"kty": "RSA", "n": "x", "e": "AQAB"}}},
    "from before its parent": {"iat": NOW - 3600},
}


@pytest.mark.parametrize("name", WIDER)
def test_a_chain_that_widens_is_refused(name: str) -> None:
    assert opened(forged(CHAIN, ONE))
    refused(forged(CHAIN, ONE, **WIDER[name]))


@pytest.mark.parametrize(
    "name", [name for name in WIDER if name.startswith(("another tool", "a constraint dropped", "a wider"))]
)
def test_nobody_can_even_make_one(name: str) -> None:
    with pytest.raises(Unverifiable):
        child(root(), tools=WIDER[name]["authorization_details"][0]["tools"])


def test_a_link_signed_by_somebody_else_is_refused() -> None:
    for key in (TWO, OTHER, DOMAIN):
        refused(forged(CHAIN, key))
    refused(forged(CHAIN, ONE, typ="JWT"))


def test_a_spliced_chain_is_refused() -> None:
    """A child under another root of the same holder, a leaf without its middle, a chain turned round."""
    first, second = root(root="root_1"), root(root="root_2", tools=delegation.grants({"files/list": {}}))
    leaf = child(first).rpartition("~")[2]
    refused(f"{second}~{leaf}")
    deep = child(child(first), key=TWO, holder=THREE)
    top, middle, bottom = deep.split("~")
    refused(f"{top}~{bottom}")
    refused(f"{middle}~{bottom}")
    refused(f"{top}~{bottom}~{middle}")
    refused(f"{top}~{middle}~{middle}")
    refused(leaf)
    assert opened(deep).tokens[0] == opened(first).tokens[0]


def test_a_root_is_believed_of_this_trust_domain_for_this_audience_in_its_time_only() -> None:
    refused(root(key=OTHER))
    refused(root(), issuer=OTHER.public)
    refused(root(trust_domain="elsewhere.test"))
    refused(root(audience="elsewhere"))
    refused(root(), now=NOW + 3600)
    refused(root(), now=NOW - 10)
    refused(forged(root(), DOMAIN, sub=None))
    refused(forged(root(), DOMAIN, rid=None))
    refused(forged(root(), DOMAIN, par_hash="A" * 43))
    refused(forged(root(), DOMAIN, del_depth=1))
    refused(forged(root(), DOMAIN, del_max_depth=delegation.MAX_DEPTH + 1))
    refused(forged(root(), DOMAIN, exp=NOW + delegation.MAX_LIFE_S + 1))
    refused(CHAIN, now=NOW + 1800)


def test_a_chain_ends_at_its_ceiling() -> None:
    chain = child(root(max_depth=1))
    with pytest.raises(Unverifiable, match="max_depth"):
        child(chain, key=TWO, holder=THREE)
    narrowed = child(root(max_depth=3), max_depth=1)
    with pytest.raises(Unverifiable, match="max_depth"):
        child(narrowed, key=TWO, holder=THREE)
    deep = root(max_depth=delegation.MAX_DEPTH)
    for _ in range(delegation.MAX_DEPTH):
        deep = child(deep, key=ONE, holder=ONE)
    assert len(opened(deep).tokens) == delegation.MAX_DEPTH + 1
    with pytest.raises(Unverifiable):
        child(deep, key=ONE, holder=ONE)
    refused("~".join([deep, deep.rpartition("~")[2]]))


def test_limits_of_size() -> None:
    refused("a" * (delegation.MAX_CHAIN_BYTES + 1))
    with pytest.raises(Unverifiable, match="at most"):
        root(
            tools=delegation.grants(
                {f"s/t{n}": {"a": {"constraint_type": "exact", "value": "x" * 200}} for n in range(400)}
            )
        )
    for nonsense in ("", "~", "a~b", "a.b.c", "..", "é"):
        refused(nonsense)


def test_what_must_be_compared_is_bounded() -> None:
    """Alternatives of alternatives: a token of a few KiB must not cost seconds."""
    values = [f"v{n}" for n in range(constraints.MAX_VALUES)]
    one_of = {"constraint_type": "one_of", "values": values}
    with pytest.raises(Unverifiable, match="the limit is"):
        delegation.grants({"s/t": {"a": {"constraint_type": "any", "constraints": [one_of] * 2}}})
    with pytest.raises(Unverifiable):
        delegation.grants({"s/t": {"a": {"constraint_type": "one_of", "values": [*values, "more"]}}})
    with pytest.raises(Unverifiable, match="the limit is"):
        delegation.grants({"s/t": {f"a{n}": one_of for n in range(5)}})
    exact = {"constraint_type": "exact", "value": 1}
    with pytest.raises(Unverifiable, match="too much"):
        delegation.grants(
            {"s/t": {"a": {"constraint_type": "any", "constraints": [exact] * constraints.MAX_CONSTRAINTS}}}
        )
    widest = {"s/t": {"a": {"constraint_type": "any", "constraints": [one_of, exact]}}}
    assert len(opened(child(root(tools=delegation.grants(widest)), tools=widest)).tokens) == 2


def test_handing_over_keeps_the_authority_and_adds_a_link() -> None:
    handed = delegation.hand_over(CHAIN, THREE.public, now=NOW + 5, token_id="aat_2", key=TWO)
    before, after = opened(CHAIN), opened(handed)
    assert (after.tools, after.expires_at, after.holder) == (before.tools, before.expires_at, THREE.public)
    assert after.tokens[:-1] == before.tokens


def test_duplicate_claims_are_refused() -> None:
    head, payload, _ = CHAIN.rpartition("~")[2].split(".")
    claims = unb64url(payload).decode()
    doubled = jws.seal((claims[:-1] + ',"exp":' + str(NOW + 9_999_999) + "}").encode(), delegation.TYP, ONE)
    refused(f"{root()}~{doubled}")
    assert head


# Constraints

VALUES = st.one_of(
    st.integers(-3, 5), st.sampled_from(["a", "ab", "abc", "a/../b", "b", ""]), st.booleans(), st.none(),
    st.floats(-3, 5, allow_nan=False).map(lambda f: round(f * 2) / 2),
    st.lists(st.sampled_from(["a", "b", 1, 2]), max_size=3),
)  # fmt: skip
ITEMS = st.lists(st.sampled_from(["a", "b", "ab", 1, 2, True, None]), min_size=1, max_size=3)


def built(kind: str, **members: Any) -> Constraint:
    return msgspec.convert({"constraint_type": kind, **members}, Constraint)


SIMPLE = st.one_of(
    st.builds(lambda v: built("exact", value=v), VALUES),
    st.builds(lambda a, b: built("range", min=min(a, b), max=max(a, b)), st.integers(-3, 5), st.integers(-3, 5)),
    st.builds(lambda a: built("range", min=a), st.integers(-3, 5)),
    st.builds(lambda a: built("range", max=a), st.integers(-3, 5)),
    st.builds(lambda v: built("one_of", values=v), ITEMS),
    st.builds(lambda v: built("not_one_of", excluded=v), ITEMS),
    st.builds(lambda v: built("contains", required=v), ITEMS),
    st.builds(lambda v: built("subset", allowed=v), ITEMS),
    st.builds(lambda v: built("prefix", prefix=v), st.sampled_from(["a", "ab", "abc", "b"])),
)
CONSTRAINT = st.recursive(
    SIMPLE,
    lambda inner: st.builds(
        lambda kind, parts: built(kind, constraints=msgspec.to_builtins(parts)),
        st.sampled_from(["all", "any"]),
        st.lists(inner, min_size=1, max_size=3),
    ),
    max_leaves=5,
)


@given(CONSTRAINT, CONSTRAINT, VALUES)
def test_what_narrows_never_allows_what_was_not_allowed(child_: Constraint, parent: Constraint, value: Any) -> None:
    assume(constraints.satisfies(child_, value))
    if constraints.narrows(child_, parent):
        assert constraints.satisfies(parent, value)


@given(SIMPLE)
def test_everything_simple_narrows_itself(constraint: Constraint) -> None:
    if msgspec.to_builtins(constraint).get("value") == "a/../b":
        return
    assert constraints.narrows(constraint, constraint)


@given(CONSTRAINT, CONSTRAINT, CONSTRAINT, VALUES)
def test_narrowing_twice_is_narrowing(one: Constraint, two: Constraint, three: Constraint, value: Any) -> None:
    if constraints.narrows(one, two) and constraints.narrows(two, three) and constraints.satisfies(one, value):
        assert constraints.satisfies(three, value)


@pytest.mark.parametrize(
    ("constraint", "yes", "no"),
    [
        ({"constraint_type": "exact", "value": 1}, [1, 1.0], [True, "1", 2, None, [1]]),
        ({"constraint_type": "range", "min": 1, "max": 2}, [1, 1.5, 2], [0, 3, True, "1", None]),
        ({"constraint_type": "one_of", "values": ["a", 1]}, ["a", 1], ["b", True, None]),
        ({"constraint_type": "not_one_of", "excluded": ["a"]}, ["b", 1], ["a"]),
        ({"constraint_type": "contains", "required": ["a"]}, [["a"], ["b", "a"]], [[], ["b"], "a", {"a": 1}]),
        ({"constraint_type": "subset", "allowed": ["a", "b"]}, [[], ["a"], ["b", "a"]], [["c"], "a"]),
        (
            {"constraint_type": "prefix", "prefix": "a/"},
            ["a/", "a/b", "a/..b"],
            ["a", "b/a/", "a/../b", "a/b/..", "a\\..\\b", 1, ["a/"]],
        ),
    ],
)
def test_what_satisfies(constraint: dict[str, Any], yes: list[Any], no: list[Any]) -> None:
    made = msgspec.convert(constraint, Constraint)
    assert all(constraints.satisfies(made, value) for value in yes)
    assert not any(constraints.satisfies(made, value) for value in no)


@pytest.mark.parametrize(
    "tools",
    [
        {"s/t": {"a": {"constraint_type": "range"}}},
        {"s/t": {"a": {"constraint_type": "one_of", "values": []}}},
        {"s/t": {"a": {"constraint_type": "all", "constraints": []}}},
        {"s/t": {"a": {"constraint_type": "prefix", "prefix": "x/../"}}},
        {"s/t": {"a": {"constraint_type": "wildcard"}}},
        {"s/t": {"a": 5}},
    ],
)
def test_a_constraint_that_says_nothing_is_refused(tools: Any) -> None:
    with pytest.raises(Unverifiable):
        delegation.grants(tools)


def test_a_constraint_that_is_nested_too_deeply_is_refused() -> None:
    nested: dict[str, Any] = {"constraint_type": "exact", "value": 1}
    for _ in range(constraints.MAX_NESTING + 1):
        nested = {"constraint_type": "all", "constraints": [nested]}
    with pytest.raises(Unverifiable):
        delegation.grants({"s/t": {"a": nested}})


@given(st.text(max_size=60))
def test_nothing_that_is_no_chain_is_opened(text: str) -> None:
    refused(text)


@given(st.integers(0, len(CHAIN) - 1), st.sampled_from("AZaz09-_.~"))
def test_a_chain_with_one_other_character_is_refused(place: int, character: str) -> None:
    changed = CHAIN[:place] + character + CHAIN[place + 1 :]
    assume(changed != CHAIN)
    refused(changed)
