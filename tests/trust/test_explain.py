"""Explanations agree with decisions, for every case of the default pack and for conditions of every shape."""

from __future__ import annotations

from typing import Any

from gateway.candidate import read_directory
from tests.mesh import REPOSITORY
from trust.facts import Agent, Facts, Mandate, Rate, Run
from trust.policy import bundle, cases
from trust.policy.arguments import project
from trust.policy.bundle import Compiled, Content
from trust.policy.cedar import Uid
from trust.policy.engine import Finding, Request
from trust.policy.explain import Story, explain
from trust.reasons import Unverifiable
from trust.standing.score import Standing

FILES = read_directory(REPOSITORY / "policies")
AGENT = Agent("a", "did:example:a", "ada", "", "development")


def compiled(policy: str = "") -> Compiled:
    files = {**FILES, "x.cedar": policy} if policy else FILES
    sources = bundle.sources_from_files(files)
    return bundle.compile_bundle(Content(1, 0, 1, sources, sources.expected))


def explained(
    made: Compiled, tool: str, args: dict[str, Any], server: str = "workbench", **known: Any
) -> tuple[Finding, list[Story]]:
    found = made.content.typed_inventory.tool(server, tool)
    facts = Facts(
        known.get("agent", AGENT),
        Standing.at_once(known.get("trust", 400)),
        Run("r", 0, 0, known.get("labels", ()), known.get("spent_cents", 0), 0),
        Rate(*[known.get("rate", 0)] * 6, known.get("in_flight", 0)),
        Mandate("ada"),
        0,
        found.manifest.risk,
    )
    context = {**facts.context, "args": project(made.shape(found), args)}
    request = Request(facts.agent.uid, f"{server}/{tool}", Uid("Server", server), context)
    world = made.engine.world(facts.agent.entities())
    return explain(made, request, world, approved=known.get("approved", False))


def test_for_every_case_the_policies_that_decided_are_those_whose_conditions_hold() -> None:
    made = compiled()
    for case in cases.read_cases(made.content.sources.cases):
        written = case.written
        server, _, tool = written.action.partition("/")
        names = ("trust", "labels", "approved", "rate", "in_flight", "spent_cents")
        known = {name: getattr(written, name) for name in names}
        try:
            finding, stories = explained(made, tool, written.args, server, agent=case.agent, **known)
        except Unverifiable:  # refused before policy was asked
            assert written.expect == "refuse"
            continue
        by_name = {story.policy: story for story in stories}
        assert finding.outcome == written.expect
        if finding.outcome != "hold":
            assert all(by_name[key].applies for key in finding.policies), case
        forbids = {s.policy for s in stories if s.effect == "forbid" and s.applies}
        permits = {s.policy for s in stories if s.effect == "permit" and s.applies}
        assert (finding.outcome == "permit") == (bool(permits) and not forbids), case


def test_parts_are_asked_in_cedars_order_and_no_further() -> None:
    made = compiled(
        '@id("x") forbid (principal, action in Action::"fs", resource) when { '
        'context.args has destination && context.args.destination like "*x*" || '
        'context.trust.score > 900 || (context.args has path && context.args.path like "*(a).b*") };'
    )
    finding, stories = explained(made, "read_file", {"path": "see (a).b"})
    assert finding.policies == ("x",)
    (condition,) = stories[0].conditions
    first, second, third = condition.part.parts
    assert (condition.part.operator, condition.part.truth) == ("or", "true")
    assert [p.truth for p in first.parts] == ["false", "not reached"]
    assert (second.text, second.truth) == ("context.trust.score > 900", "false")
    assert third.parts[1].text == 'context.args.path like "*(a).b*"', "strings are shown as they are"


def test_what_fails_to_evaluate_is_shown_as_an_error() -> None:
    made = compiled(
        '@id("x") forbid (principal, action in Action::"fs", resource) when '
        "{ context.trust.score + 9223372036854775807 > 0 && context.risk > 0 };"
    )
    finding, stories = explained(made, "read_file", {"path": "a"})
    assert finding.outcome == "refuse"
    assert finding.policies == ("x",)
    (condition,) = stories[0].conditions
    assert [p.truth for p in condition.part.parts] == ["error", "not reached"]
