"""Who may do what with Licet itself: each role, in its own namespace and no other, and policies that stay at home."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.control import Act, _may
from gateway.editions import Draft, prepare
from trust.policy import cedar
from trust.policy.bundle import BundleRejected, Sources
from trust.policy.cedar import Uid
from trust.policy.confined import MARK, confine, confined_to, released, unconfined
from trust.policy.inventory import Inventory
from trust.policy.lint import read_policies
from trust.policy.positions import statements

ROLES = ("viewer", "author", "approver", "operator", "auditor")
ACTS: tuple[Act, ...] = get_args(Act)
VIEW = {"agents.see", "nodes.see", "servers.see", "policies.see", "usage.see"}
ATTEND = {"approvals.see", "own.see", "own.change"}
AUDIT = {"ledger.read", "ledger.export", "ledger.sql", "subjects.find"}
OPERATE = {
    "people.see", "agents.change", "agents.stop", "standing.change", "nodes.change", "servers.accept", "people.change",
    "ledger.prune", "ledger.renew", "subjects.erase",
}  # fmt: skip
MAY = {
    "viewer": VIEW | ATTEND,
    "author": VIEW | ATTEND | {"policies.activate"},
    "approver": ATTEND | {"approvals.decide", "deputies.name", "servers.see"},
    "operator": VIEW | ATTEND | AUDIT | OPERATE,
    "auditor": VIEW | ATTEND | AUDIT,
}


@pytest.mark.parametrize("role", ROLES)
def test_a_role_may_do_its_own_and_nothing_else(role: str) -> None:
    """In the mesh, where servers are for everybody to see."""
    assert {act for act in ACTS if _may(frozenset({role}), "", act, "")} == MAY[role] | {"servers.see"}


@given(st.sets(st.sampled_from(ROLES)), st.sampled_from(ACTS), st.sampled_from(["", "red", "blue"]), st.data())
def test_nobody_reaches_beyond_its_namespace(roles: set[str], act: Act, home: str, data: st.DataObject) -> None:
    there = data.draw(st.sampled_from(["", "red", "blue"]))
    allowed = bool(_may(frozenset(roles), home, act, there))
    if home not in ("", there):
        assert allowed == (act == "servers.see" and there == "")
    elif home == "":
        assert allowed == bool(_may(frozenset(roles), "red", act, "red") or (act == "servers.see" and there == ""))


BASE = """
entity Server; entity Node; entity Agent;
action "call" appliesTo { principal: Agent, resource: Server, context: { n: Long } };
action "place" appliesTo { principal: Agent, resource: Node, context: { n: Long } };
"""
TEXTS = [
    '@id("a") permit (principal, action, resource);',
    '@id("a") permit(principal, action == Action::"call", resource) when { context.n > 1 } unless { context.n == 7 };',
    '// permit (principal, action, resource);\n@id("a") @reason("permit (a); forbid (b);") permit (principal, action, resource) // x ;\n;',
    '@id("a") permit (principal, action, resource is Server) when { context.n != 3 };',
    '@id("a") @reason("a\\";") permit (principal,\n action,\n resource\n)\n;\n@id("b") forbid (principal, action, resource) when { context.n == 5 };',
]


@pytest.mark.parametrize("text", TEXTS)
def test_what_a_namespace_permits_is_permitted_on_its_own_servers(text: str) -> None:
    made = confine(text, ["own", 'qu"ote'])
    assert released(made) == text
    read = read_policies({"red/x.cedar": made}, BASE)
    assert not read.errors
    assert not unconfined(read, "red/", ["own", 'qu"ote'])
    schema = cedar.parse_schema(BASE)
    policies = cedar.policy_set(read.nodes)
    entities = cedar.parse_entities([], schema)

    def allowed(policies: cedar.PolicySet, action: str, resource: Uid, n: int) -> bool:
        asked = (Uid("Agent", "z"), action, resource, b'{"n":%d}' % n)
        return cedar.ask(policies, entities, *asked, schema).clean_allow

    free = cedar.policy_set(read_policies({"x.cedar": text}, BASE).nodes)
    for n in range(9):
        for name in ("own", 'qu"ote'):
            assert allowed(policies, "call", Uid("Server", name), n) == allowed(free, "call", Uid("Server", name), n)
        assert not allowed(policies, "call", Uid("Server", "theirs"), n)
        assert not allowed(policies, "place", Uid("Node", "own"), n)


@pytest.mark.parametrize("text", ["", ' when { resource in [Server::"theirs"] }', " when { context.n > 1 }"])
def test_a_permit_that_is_not_confined_is_found(text: str) -> None:
    """However it came to stand there."""
    read = read_policies({":red/x.cedar": f'@id("a") permit (principal, action, resource){text};'}, BASE)
    assert not read.errors
    assert unconfined(read, ":red/", ["own"]) == ["a"]
    assert not unconfined(read, ":blue/", ["own"])


def test_a_namespace_without_servers_permits_nothing_and_still_forbids() -> None:
    text = '@id("a") permit (principal, action, resource);\n@id("b") forbid (principal, action, resource);\n'
    read = read_policies({"red/x.cedar": confine(text, [])}, BASE)
    assert not read.errors
    assert released(confine(text, [])) == text
    assert [str(node.effect) for node in read.nodes.static_policies.values()] == ["permit", "forbid"]


SNEAKY = [
    '@id("a\n; permit (principal, action, resource); //") permit (principal, action, resource);',
    '@id("a") permit (principal, action, resource) when { context.n == 1 } ; // "',
    '@id("a") @reason("x\n") permit (principal, action, resource);',
    '@id("a") permit (principal, action, resource) when { resource in [Server::"theirs"] }; //confined\n',
]


@pytest.mark.parametrize("text", SNEAKY)
def test_a_text_that_reads_in_two_ways_permits_nothing_more(text: str) -> None:
    """Either the confined text is refused, or all that it permits is confined, by Cedar's own reading."""
    read = read_policies({"red/x.cedar": confine(text, ["own"])}, BASE)
    if read.errors or unconfined(read, "red/", ["own"]) or MARK in text:
        return
    nodes = cedar.parse_policies("\n".join(one.text for one in statements(confine(text, ["own"])))).static_policies
    assert len(nodes) == len(read.nodes.static_policies)


@given(st.text(alphabet='permitforbd ();"\\\n/@a,{}', max_size=120))
def test_whatever_is_handed_in_comes_back_or_is_confined(text: str) -> None:
    if MARK not in text:
        assert released(confine(text, ["own"])) == text


@given(st.lists(st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True), max_size=4))
def test_where_a_confined_text_permits_is_known(servers: list[str]) -> None:
    text = (
        '@id("a") permit (principal, action, resource);\n@id("b") permit (principal, action, resource) when { true };\n'
    )
    assert confined_to(confine(text, servers)) == set(servers)
    assert confined_to(text) == set()


def test_policies_that_cannot_be_read_are_not_left_out() -> None:
    """An edition without its own forbids and approvals would permit more than anybody wanted."""
    draft = Draft("red", 1, 0, 1, Sources(BASE, {"m.cedar": '@id("m") permit (principal, action, resource);'}, {}),
                  None, None, Inventory({}), [], lost=True)  # fmt: skip
    found = prepare(draft)
    assert isinstance(found, BundleRejected)
    assert "cannot be read here" in str(found)
    assert not isinstance(prepare(msgspec.structs.replace(draft, lost=False)), BundleRejected)
