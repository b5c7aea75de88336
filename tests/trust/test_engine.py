"""Cedar's answers turned into ours; slices that never change an answer."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trust.policy import cedar
from trust.policy.cedar import Uid, pst
from trust.policy.engine import Engine, Finding, Request
from trust.policy.slicing import Party, Slicer, context_reads
from trust.policy.terms import BadAnnotation, Terms, parse_terms, strictest
from trust.reasons import Reason

SCHEMA = cedar.parse_schema(
    """
    entity Team in [Team]; entity Agent in [Team]; entity Zone; entity Server in [Zone]; entity Robot in [Team];
    action "fs"; action "write" in ["fs"]; action "net";
    type Context = { x: Long, y?: Long, rec: { z?: Long, s: String }, approved: Bool };
    action "a1" in ["fs"] appliesTo { principal: [Agent, Robot], resource: Server, context: Context };
    action "a2" in ["write"] appliesTo { principal: [Agent, Robot], resource: Server, context: Context };
    action "a3" in ["net"] appliesTo { principal: [Agent, Robot], resource: Server, context: Context };
    action "a4" appliesTo { principal: [Agent, Robot], resource: Server, context: Context };
    """
)
ENTITIES: list[dict[str, Any]] = [
    {"uid": {"type": "Team", "id": "t0"}, "attrs": {}, "parents": []},
    {"uid": {"type": "Team", "id": "t1"}, "attrs": {}, "parents": [{"type": "Team", "id": "t0"}]},
    {"uid": {"type": "Agent", "id": "p0"}, "attrs": {}, "parents": [{"type": "Team", "id": "t1"}]},
    {"uid": {"type": "Agent", "id": "p1"}, "attrs": {}, "parents": []},
    {"uid": {"type": "Robot", "id": "p2"}, "attrs": {}, "parents": [{"type": "Team", "id": "t0"}]},
    {"uid": {"type": "Server", "id": "r0"}, "attrs": {}, "parents": [{"type": "Zone", "id": "z0"}]},
    {"uid": {"type": "Server", "id": "r1"}, "attrs": {}, "parents": []},
]


def named(text: str, links: list[dict[str, Any]] | None = None) -> pst.PolicySet:
    """Policies under their ``@id``, with template links."""
    nodes = cedar.parse_policies(text)
    everything = {**nodes.static_policies, **nodes.templates}
    renamed = {n.annotations["id"]: dataclasses.replace(n, id=n.annotations["id"]) for n in everything.values()}
    templates = {k for k, n in everything.items() if k in nodes.templates}
    template_ids = {everything[k].annotations["id"] for k in templates}
    return pst.PolicySet(
        {k: v for k, v in renamed.items() if k in template_ids},
        {k: v for k, v in renamed.items() if k not in template_ids},
        tuple(pst.TemplateLink(x["template_id"], x["new_id"], pst.FrozenMap(x["values"])) for x in links or []),
    )


def engine(text: str) -> Engine:
    return Engine(named(text), SCHEMA, ENTITIES)


def find(text: str, action: str = "a1", approved: bool = False, **context: Any) -> Finding:
    made = engine(text)
    complete = {"x": 1, "rec": {"s": "v"}, **context}
    return made.evaluate(
        Request(Uid("Agent", "p0"), action, Uid("Server", "r0"), complete), made.world([]), approved=approved
    )


PERMIT = '@id("p") permit(principal, action, resource);'


def test_a_clean_allow_permits_and_names_its_policies() -> None:
    assert find(PERMIT) == Finding("permit", ("p",))


def test_nothing_permitting_refuses() -> None:
    assert find('@id("p") permit(principal, action == Action::"a3", resource);').reason is Reason.NO_POLICY_PERMITS


def test_a_forbid_wins_and_is_named_by_its_id() -> None:
    found = find(PERMIT + '@id("no") @reason("never") forbid(principal, action, resource);')
    assert (found.outcome, found.policies, found.sentences) == ("refuse", ("no",), ("never",))


def test_a_forbid_that_cannot_be_evaluated_refuses() -> None:
    """Cedar skips it and says Allow; that is the trap."""
    found = find(PERMIT + '@id("broken") forbid(principal, action, resource) when { context.y > 5 };')
    assert found.outcome == "refuse"
    assert found.reason is Reason.POLICY_ERROR
    assert found.policies == ("broken",)


def test_a_permit_that_cannot_be_evaluated_refuses_even_beside_one_that_permits() -> None:
    found = find(PERMIT + '@id("broken") permit(principal, action, resource) when { context.y > 5 };')
    assert found.reason is Reason.POLICY_ERROR


BROKEN = '@id("broken") forbid(principal, action, resource) when { context.y > 5 };'


def test_what_is_forbidden_is_forbidden_whatever_else_is_broken() -> None:
    """Or a policy of somebody else's that overflows would hide whom it was against, and how bad that was."""
    worst = '@id("no") @severity("critical") @reason("never") forbid(principal, action, resource);'
    found = find(PERMIT + worst + BROKEN)
    assert (found.outcome, found.reason, found.policies) == ("refuse", Reason.POLICY_FORBIDS, ("no",))
    assert len(found.errors) == 1
    assert find(PERMIT + HOLD + BROKEN).reason is Reason.POLICY_ERROR, "that is nobody's fault who asks"


def test_a_request_that_cannot_be_built_refuses() -> None:
    found = find(PERMIT + '@id("q") permit(principal, action, resource) when { context.x == 1 };', x=1.5)
    assert found.outcome == "refuse"
    assert found.reason is Reason.POLICY_ERROR


HOLD = '@id("h") @approval("of=ops quorum=2 ttl=15m") @reason("ask") forbid(principal, action, resource) unless { context.approved };'


def test_what_only_an_approval_would_allow_is_held_on_its_terms() -> None:
    found = find(PERMIT + HOLD)
    assert found.outcome == "hold"
    assert found.terms == Terms({"ops": 2}, 900)
    assert found.sentences == ("ask",)


def test_with_the_approval_it_is_permitted() -> None:
    assert find(PERMIT + HOLD, approved=True).outcome == "permit"


def test_nobody_is_asked_for_what_would_be_refused_anyway() -> None:
    found = find(PERMIT + HOLD + '@id("no") forbid(principal, action, resource);')
    assert found.outcome == "refuse"
    assert set(found.policies) == {"h", "no"}


def test_an_error_that_an_approval_would_meet_refuses_instead_of_holding() -> None:
    found = find(
        PERMIT + HOLD + '@id("broken") forbid(principal, action, resource) when { context.approved && context.y > 5 };'
    )
    assert found.outcome == "refuse"


def test_a_permit_that_needs_approval_holds_too() -> None:
    text = '@id("pa") @approval("of=ops") permit(principal, action, resource) when { context.approved };'
    assert find(text).terms == Terms({"ops": 1})


def test_the_strictest_of_all_terms_holds() -> None:
    text = (
        PERMIT
        + HOLD
        + '@id("h2") @approval("of=fin ttl=5m step_up") forbid(principal, action, resource) unless { context.approved };'
    )
    assert find(text).terms == Terms({"ops": 2, "fin": 1}, 300, step_up=True)


def test_a_shadow_policy_is_recorded_and_not_enforced() -> None:
    found = find(PERMIT + '@id("s") @mode("shadow") forbid(principal, action, resource);')
    assert (found.outcome, found.shadow) == ("permit", ("s",))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "quorum=1",
        "of=",
        "of=ops quorum=0",
        "of=ops quorum=100",
        "of=ops ttl=5",
        "of=ops ttl=8d",
        "of=ops who=x",
        "of=ops of=fin",
        "of=ops step_up=yes",
        "of=OPS",
    ],
)
def test_terms_that_name_nobody_or_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(BadAnnotation):
        parse_terms(text)


def test_no_terms_at_all_are_no_terms() -> None:
    with pytest.raises(ValueError, match="nobody could approve"):
        strictest([])


# A slice must never change an answer

principals = ["principal", 'principal == Agent::"p0"', 'principal == Agent::"p1"', 'principal in Team::"t0"', 'principal in Team::"t1"',
              "principal is Agent", "principal is Robot", 'principal is Agent in Team::"t0"', 'principal is Robot in Team::"t0"',
              'principal == Agent::"nobody"']  # fmt: skip
actions = ["action", 'action == Action::"a1"', 'action == Action::"a4"', 'action in Action::"fs"', 'action in Action::"write"',
           'action in [Action::"net", Action::"a1"]', 'action in [Action::"a2", Action::"fs"]']  # fmt: skip
resources = [
    "resource",
    'resource == Server::"r0"',
    'resource in Zone::"z0"',
    "resource is Server",
    'resource is Server in Zone::"z0"',
]
conditions = ["", "when { context.x > 3 }", "when { context.y > 3 }", "when { context has y && context.y > 3 }", "unless { context.approved }",
              "when { context.rec.z > 0 }", "when { context.rec has z }", 'when { context.rec == {s: "v"} }', "when { context has rec.z }",
              'when { context == {x: 1, rec: {s: "v"}, approved: false} }', "when { if context.x > 2 then context.y > 1 else true }",
              'when { principal in Team::"t0" }', 'when { principal is Robot }', 'when { context.x + context.x > 5 }',
              'when { (if context.approved then context.rec else context.rec).z == 1 }', 'when { [context.x, 3].contains(context.y) }',
              'when { {a: context.rec}.a has z }', 'when { resource in Zone::"z0" && context.rec.s like "v*" }',
              'when { context has "x" }', 'when { context["rec"]["s"] == "v" }']  # fmt: skip
scopes = st.tuples(
    st.sampled_from(["permit", "forbid"]),
    st.sampled_from(principals),
    st.sampled_from(actions),
    st.sampled_from(resources),
    st.sampled_from(conditions),
)
slotted = st.tuples(
    st.sampled_from(["permit", "forbid"]),
    st.sampled_from(
        ["principal == ?principal", "principal in ?principal", "principal is Agent in ?principal", "principal"]
    ),
    st.sampled_from(actions),
    st.sampled_from(["resource == ?resource", "resource in ?resource", "resource is Server in ?resource", "resource"]),
    st.sampled_from(conditions),
)
uids = {
    "principal": [Uid("Agent", "p0"), Uid("Team", "t0"), Uid("Team", "t1"), Uid("Robot", "p2")],
    "resource": [Uid("Server", "r0"), Uid("Zone", "z0")],
}


def written(index: int, parts: tuple[str, str, str, str, str]) -> str:
    effect, principal, action, resource, condition = parts
    return f'@id("q{index}") {effect}({principal}, {action}, {resource}) {condition};'


def link_for(draw: Any, index: int, parts: tuple[str, str, str, str, str]) -> dict[str, Any] | None:
    slots = [slot for slot in ("principal", "resource") if f"?{slot}" in parts[1] + parts[3]]
    if not slots:
        return None
    chosen = {slot: draw(st.sampled_from(uids[slot])) for slot in slots}
    values = {slot: pst.EntityUid(pst.EntityType(uid.type), uid.id) for slot, uid in chosen.items()}
    return {"template_id": f"q{index}", "new_id": f"link{index}", "values": values}


@given(
    st.data(), st.lists(scopes, min_size=1, max_size=7), st.lists(slotted, max_size=3),
    st.sampled_from([Uid("Agent", "p0"), Uid("Agent", "p1"), Uid("Robot", "p2"), Uid("Agent", "unknown")]),
    st.sampled_from(["a1", "a2", "a3", "a4"]), st.sampled_from([Uid("Server", "r0"), Uid("Server", "r1")]),
    st.booleans(), st.integers(0, 5), st.none() | st.integers(0, 5), st.none() | st.integers(0, 2),
)  # fmt: skip
def test_sliced_and_whole_evaluation_agree(
    data: Any, written_policies: list[Any], templates: list[Any], principal: Uid, action: str, resource: Uid,
    approved: bool, x: int, y: int | None, z: int | None,
) -> None:  # fmt: skip
    """In decision, reasons and errors; and with only the attributes that the slice reads."""
    every = [*written_policies, *templates]
    text = "\n".join(written(i, parts) for i, parts in enumerate(every))
    links = [made for i, parts in enumerate(every) if (made := link_for(data.draw, i, parts))]
    nodes = named(text, links)
    world = Engine(named(PERMIT), SCHEMA, ENTITIES).world([])
    context: dict[str, Any] = {"x": x, "rec": {"s": "v"}, "approved": approved}
    if y is not None:
        context["y"] = y
    if z is not None:
        context["rec"]["z"] = z
    whole = cedar.ask(
        cedar.policy_set(nodes), world.entities, principal, action, resource, msgspec.json.encode(context)
    )
    cut = Slicer(nodes).cut(world.party(principal), world.party(Uid("Action", action)), world.party(resource))
    narrowed = msgspec.json.encode(cut.narrow(context))
    sliced = cedar.ask(cut.policies, world.entities, principal, action, resource, narrowed)
    assert sliced == whole


def test_a_slice_leaves_out_what_cannot_match() -> None:
    text = "\n".join(f'@id("q{i}") permit(principal == Agent::"p{i}", action, resource);' for i in range(100))
    slicer = Slicer(named(text))
    party = Party(Uid("Agent", "p7"), frozenset())
    cut = slicer.cut(party, Party(Uid("Action", "a1"), frozenset()), Party(Uid("Server", "r0"), frozenset()))
    assert cut.ids == {"q7"}


def test_a_context_used_as_a_whole_is_given_as_a_whole() -> None:
    nodes = named('@id("q") permit(principal, action, resource) when { context == {x: 1} };')
    assert context_reads(nodes) is None


def test_reads_are_known_to_two_levels() -> None:
    nodes = named(
        '@id("q") permit(principal, action, resource) when { context.rec.s == "v" && context has y && context.x > 1 };'
    )
    assert context_reads(nodes) == {"rec": frozenset({"s"}), "y": None, "x": None}


def test_a_policy_for_a_team_concerns_its_members_and_the_members_of_its_teams() -> None:
    text = '@id("direct") permit(principal in Team::"t1", action, resource); @id("above") permit(principal in Team::"t0", action, resource);'
    assert find(text).policies == ("above", "direct")


def test_a_policy_for_an_action_group_concerns_the_groups_inside_it() -> None:
    assert find('@id("g") permit(principal, action in Action::"fs", resource);', action="a2").policies == ("g",)


def test_an_attribute_that_is_only_asked_about_is_read_too() -> None:
    nodes = named('@id("q") permit(principal, action, resource) when { context.rec has z };')
    assert context_reads(nodes) == {"rec": frozenset({"z"})}
    assert (
        find('@id("q") permit(principal, action, resource) when { context.rec has z };', rec={"s": "v", "z": 1}).outcome
        == "permit"
    )
