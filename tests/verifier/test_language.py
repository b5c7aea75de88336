"""The stand-alone evaluator against Cedar itself: whatever Cedar says of an expression, it says too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cedarpy
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.mesh import REPOSITORY
from trust.verifier import cedar, text
from trust.verifier.cedar import Entity, Failed, Uid, Unsupported

ENTITIES: list[dict[str, Any]] = [
    {
        "uid": {"type": "Agent", "id": "a"},
        "attrs": {
            "n": 7,
            "s": "text",
            "owner": {"__entity": {"type": "Human", "id": "ada"}},
            "labels": ["x", "y"],
            "deep": {"one": {"two": 2}},
        },
        "parents": [{"type": "Team", "id": "t"}],
    },
    {"uid": {"type": "Team", "id": "t"}, "attrs": {}, "parents": [{"type": "Team", "id": "top"}]},
    {"uid": {"type": "Team", "id": "top"}, "attrs": {"n": -1}, "parents": []},
    {"uid": {"type": "Action", "id": "act"}, "attrs": {}, "parents": [{"type": "Action", "id": "group"}]},
    {"uid": {"type": "Server", "id": "s"}, "attrs": {"labels": []}, "parents": [{"type": "Zone", "id": "z"}]},
]
CONTEXT: dict[str, Any] = {
    "n": 3,
    "big": 2**63 - 1,
    "s": "a*b\\c é",
    "yes": True,
    "tags": ["x", "z", 1],
    "none": [],
    "r": {"n": 1, "with space": "v"},
    "d": {"__extn": {"fn": "decimal", "arg": "1.50"}},
    "now": {"__extn": {"fn": "datetime", "arg": "2026-11-21T10:20:30Z"}},
    "ip": {"__extn": {"fn": "ip", "arg": "10.1.2.3"}},
    "who": {"__entity": {"type": "Team", "id": "t"}},
}


def by_cedar(source: str) -> tuple[bool, bool]:
    """(allowed, whether a policy failed)."""
    request = {
        "principal": 'Agent::"a"', "action": 'Action::"act"', "resource": 'Server::"s"', "context": CONTEXT,
    }  # fmt: skip
    found = cedarpy.is_authorized(request, source, ENTITIES)
    return found.allowed, bool(found.diagnostics.errors)


def by_us(source: str) -> tuple[bool, bool]:
    entities = {
        Uid(one["uid"]["type"], one["uid"]["id"]): Entity(
            cedar.from_json(one["attrs"]), [Uid(p["type"], p["id"]) for p in one["parents"]]
        )
        for one in ENTITIES
    }
    request = cedar.Request(
        Uid("Agent", "a"), Uid("Action", "act"), Uid("Server", "s"), cedar.from_json(CONTEXT), entities
    )
    policies = {f"p{number}": policy for number, policy in enumerate(text.policies(source))}
    allowed, _, failed = cedar.answer(policies, request)
    return allowed, bool(failed)


LEAVES = [
    "true", "false", "0", "1", "-1", "7", "9223372036854775807", "-9223372036854775808", '""', '"text"', '"a*b"',
    '"\\u{e9}\\n\\t\\"\\\\\\0\\x41"', "principal", "action", "resource", "context", 'Agent::"a"', 'Team::"t"',
    'Team::"top"', 'Team::"nobody"', 'Human::"ada"', 'Action::"group"', 'Ns::Kind::"x"', "context.n", "context.big",
    "context.s", "context.yes", "context.tags", "context.none", "context.r", 'context.r["with space"]', "context.d",
    "context.now", "context.ip", "context.who", "context.missing", "context.r.n", "principal.n", "principal.owner",
    "principal.labels", "principal.deep.one.two", "principal.missing", "resource.labels", 'Team::"top".n',
    'Team::"nobody".n', "[]", "[1, 2, 1]", "[1, true, \"1\"]", "[[1], [1]]", "{}", "{a: 1, \"b c\": [true]}",
    'decimal("1.5")', 'decimal("-0.0001")', 'decimal("922337203685477.5807")', 'decimal("1.23456")', 'decimal("x")',
    'datetime("2026-11-21")', 'datetime("2026-11-21T10:20:30.123+0130")', 'datetime("1969-12-31T23:59:59Z")',
    'datetime("2026-02-30")', 'datetime("2026-11-21T24:00:00Z")', 'duration("1d2h3m4s5ms")', 'duration("-90m")',
    'duration("1h1d")', 'duration("")', 'ip("10.0.0.0/8")', 'ip("::1")', 'ip("127.0.0.1")', 'ip("224.0.0.1")',
    'ip("ff00::/8")', 'ip("1.2.3")', 'ip("10.0.0.0/33")', "[principal, 1]", '[Team::"t", Team::"x"]',
]  # fmt: skip
leaves = st.sampled_from(LEAVES)


def combined(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    binary = st.sampled_from(["==", "!=", "<", "<=", ">", ">=", "&&", "||", "+", "-", "*", "in"])
    names = st.sampled_from(
        ["n", "s", "r", "labels", "owner", "missing", '"with space"', "r.n", "deep.one.two", "deep.no.two"]
    )
    kinds = st.sampled_from(["Agent", "Team", "Ns::Kind"])
    patterns = st.sampled_from(['"*"', '"a*"', '"a\\*b*"', '"*t"', '"te*t"', '"*\\u{e9}"', '""', '"text"'])
    one = st.sampled_from(
        ["isEmpty", "toDate", "toTime", "toMilliseconds", "toSeconds", "toMinutes", "toHours", "toDays", "isIpv4",
         "isIpv6", "isLoopback", "isMulticast"]
    )  # fmt: skip
    two = st.sampled_from(
        ["contains", "containsAll", "containsAny", "lessThan", "lessThanOrEqual", "greaterThan", "greaterThanOrEqual",
         "offset", "durationSince", "isInRange"]
    )  # fmt: skip
    return st.one_of(
        st.builds(lambda a, o, b: f"({a}) {o} ({b})", inner, binary, inner),
        st.builds(lambda a: f"!({a})", inner),
        st.builds(lambda a: f"-({a})", inner),
        st.builds(lambda a, n: f"({a}) has {n}", inner, names),
        st.builds(lambda a, p: f"({a}) like {p}", inner, patterns),
        st.builds(lambda a, k: f"({a}) is {k}", inner, kinds),
        st.builds(lambda a, k, b: f"({a}) is {k} in ({b})", inner, kinds, inner),
        st.builds(lambda a, b, c: f"if {a} then {b} else {c}", inner, inner, inner),
        st.builds(lambda a, m: f"({a}).{m}()", inner, one),
        st.builds(lambda a, m, b: f"({a}).{m}({b})", inner, two, inner),
        st.builds(lambda a, b: f"[{a}, {b}]", inner, inner),
        st.builds(lambda a, b: f"{{x: {a}, y: {b}}}", inner, inner),
    )


expressions = st.recursive(leaves, combined, max_leaves=6)


def same(source: str) -> None:
    theirs = by_cedar(source)
    try:
        ours = by_us(source)
    except (Unsupported, text.Unread):
        return  # it says that it does not know, which is no wrong answer
    assert ours == theirs, source


@given(expressions, st.sampled_from(["when", "unless"]), st.sampled_from(["permit", "forbid"]))
@example('context.now > datetime("2026-11-21")', "when", "permit")
@example('principal in [Team::"t", 1]', "when", "permit")
@example("context.tags.contains(true)", "when", "permit")
def test_each_expression_comes_out_as_cedar_has_it(expression: str, kind: str, effect: str) -> None:
    same(f"{effect}(principal, action, resource) {kind} {{ {expression} }};")


@given(expressions, expressions)
def test_equality_is_cedars(one: str, other: str) -> None:
    same(f"permit(principal, action, resource) when {{ ({one}) == ({other}) }};")
    same(f"permit(principal, action, resource) when {{ [{one}].contains({other}) }};")


def test_every_leaf_is_known() -> None:
    """So that the properties above do not pass by knowing nothing."""
    for leaf in LEAVES:
        source = f"permit(principal, action, resource) when {{ [{leaf}].contains(1) || true }};"
        assert by_us(source) == by_cedar(source), leaf


SCOPES = [
    "principal, action, resource",
    'principal == Agent::"a", action, resource',
    'principal in Team::"top", action, resource',
    'principal in Team::"x", action, resource',
    "principal is Agent, action, resource",
    'principal is Agent in Team::"t", action, resource',
    "principal is Team, action, resource",
    'principal, action == Action::"act", resource',
    'principal, action in Action::"group", resource',
    'principal, action in [Action::"x", Action::"group"], resource',
    "principal, action in [], resource",
    'principal, action, resource in Zone::"z"',
    'principal, action, resource is Server in Zone::"y"',
    'principal, action, resource == Server::"s",',
]


@pytest.mark.parametrize("scope", SCOPES)
def test_scopes_match_as_cedars_do(scope: str) -> None:
    source = f'@id("x") @note // a comment\npermit ({scope}) when {{ true }} unless {{ false }};'
    assert by_us(source) == by_cedar(source)


@given(st.lists(st.tuples(st.sampled_from(["permit", "forbid"]), leaves), min_size=1, max_size=4))
def test_several_policies_together_come_out_as_cedar_has_it(parts: list[tuple[str, str]]) -> None:
    same("\n".join(f"{effect}(principal, action, resource) when {{ {leaf} }};" for effect, leaf in parts))


def test_our_own_policies_are_read() -> None:
    for path in sorted(Path(REPOSITORY / "policies").glob("*.cedar")):
        nodes = cedarpy.PolicySet.from_str(path.read_text()).to_pst().static_policies
        found = text.policies(path.read_text())
        assert {one.annotations["id"] for one in found} == {node.annotations["id"] for node in nodes.values()}


@pytest.mark.parametrize(
    "source",
    [
        "permit(principal, action);",
        "permit(principal, action, resource)",
        "allow(principal, action, resource);",
        "permit(principal == ?principal, action, resource);",
        "permit(principal, action, resource) when { 1 + };",
        "permit(principal, action, resource) when { 9223372036854775808 };",
        'permit(principal, action, resource) when { "\\q" };',
        "permit(principal, action, resource) when { a && b };",
        "permit(principal, action, resource) when { 1 < 2 < 3 };",
        "permit(principal, action, resource) when { # };",
    ],
)
def test_what_is_no_policy_is_not_read(source: str) -> None:
    with pytest.raises(text.Unread):
        text.policies(source)


def test_what_it_does_not_know_it_says() -> None:
    for expression in ('principal.hasTag("x")', "context.s.reverse()"):
        (policy,) = text.policies(f"permit(principal, action, resource) when {{ {expression} }};")
        with pytest.raises(Unsupported):
            cedar.evaluate(
                policy.conditions[0][1],
                cedar.Request(Uid("Agent", "a"), Uid("A", "a"), Uid("S", "s"), {"s": ""}, {}),
            )
    with pytest.raises(Unsupported):
        cedar.from_json(json.loads("1.5"))
    with pytest.raises(Failed):
        cedar.extension("decimal", [1])
