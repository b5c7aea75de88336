"""Bundles: sealed as a whole, refused as a whole; lint that says where and what to do; cases."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway.candidate import read_directory
from tests.mesh import REPOSITORY
from trust.identity.keys import SecretKey
from trust.policy import bundle, cases
from trust.policy.bundle import BundleRejected, Compiled, Content
from trust.policy.lint import Problem
from trust.policy.positions import statements
from trust.reasons import Unverifiable

KEY = SecretKey(bytes(range(32)))
FILES = read_directory(REPOSITORY / "policies")


def content(version: int = 1, **changed: str) -> Content:
    sources = bundle.sources_from_files({**FILES, **{k.replace("__", "."): v for k, v in changed.items()}})
    return Content(version, 100, 200, sources, sources.expected)


def compiled(**changed: str) -> Compiled:
    return bundle.compile_bundle(content(**changed))


def test_a_bundle_opens_to_what_was_sealed() -> None:
    sealed = bundle.seal(content(), KEY)
    opened = bundle.open_bundle(sealed.data, KEY.public)
    assert opened == sealed
    assert bundle.seal(content(), KEY).digest == sealed.digest, "the same content has the same digest"
    assert bundle.seal(content(2), KEY).digest != sealed.digest


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d[:-1] + b" ",
        lambda d: d.replace(b"fs-read", b"fs-free", 1),
        lambda d: d.partition(b"\n")[2],
        lambda d: b"\n" + d.partition(b"\n")[2],
        lambda d: d.partition(b"\n")[0] + b"\n" + bundle.content_bytes(content(2)),
        lambda d: b"",
        lambda d: d.replace(b".", b"", 1),
        lambda d: "é".encode() + d,
    ],
)
def test_a_changed_bundle_is_refused(change: Any) -> None:
    with pytest.raises(Unverifiable):
        bundle.open_bundle(change(bundle.seal(content(), KEY).data), KEY.public)


def test_anothers_bundle_is_refused() -> None:
    with pytest.raises(Unverifiable):
        bundle.open_bundle(bundle.seal(content(), SecretKey(bytes(32))).data, KEY.public)


def problems(policy: str) -> tuple[Problem, ...]:
    try:
        return compiled(x__cedar=policy).read.problems
    except BundleRejected as bad:
        return bad.problems


def found(policy: str) -> list[tuple[str, int, int, str]]:
    return [(p.level, p.line, p.column, p.message) for p in problems(policy) if p.file == "x.cedar"]


SCOPE = '@id("x") permit (principal, action in Action::"fs", resource)\n'


@pytest.mark.parametrize(
    ("policy", "line", "column", "part"),
    [
        ("permit (principal, action, resource);", 1, 1, "has no @id"),
        ('// c\n\n@id("a b") permit (principal, action, resource);', 3, 1, "is not an id"),
        ('@id("x")\npermit (princpal, action, resource);', 2, 9, "princpal"),
        ('@id("x")\npermit (principal, action in Action::"sf", resource);', 2, 39, "unrecognized action"),
        (
            '@id("x")\npermit (principal, action in Action::"fs", resource)\nwhen { context.trst.score > 3 };',
            3,
            16,
            "attribute `trst`",
        ),
        ('@id("x") @mode("dark") permit (principal, action in Action::"fs", resource);', 1, 11, "is not known"),
        (
            '@id("x") @approval("of=") forbid (principal, action in Action::"fs", resource) unless { context.approved };',
            1,
            11,
            "names nobody",
        ),
        (
            '@id("x") forbid (principal, action in Action::"fs", resource) unless { context.approved };',
            1,
            80,
            "has no @approval",
        ),
        ('@id("protocol") permit (principal, action in Action::"fs", resource);', 1, 6, "used twice"),
        ('@id("x") permit (principal, action in Action::"fs", resource)', 1, 62, "unexpected end"),
        (f"{SCOPE}when {{ context.trust.score = 3 }};", 2, 28, "not a valid operator"),
        (f"{SCOPE}when {{ context.trust.scor > 3 }};", 2, 22, "`trust.scor` in context not found (for workbench/"),
        (f'{SCOPE}when {{ context.trust.score > "3" }};', 2, 22, "expected Long but saw String"),
        (f"{SCOPE}when {{ context.trust.score >= 3 && context.risk }};", 2, 44, "expected Bool"),
        (f'@reason("labels") {SCOPE}when {{ context.run.labels == "x" }};', 2, 20, "not compatible"),
    ],
)
def test_an_error_says_where(policy: str, line: int, column: int, part: str) -> None:
    errors = [f for f in found(policy) if f[0] == "error"]
    assert errors
    assert errors[0][1:3] == (line, column), errors
    assert part in errors[0][3]


@pytest.mark.parametrize(
    ("condition", "hint"),
    [
        ("context.trust.scor > 3", "did you mean `score`?"),
        ('context.run.lables.contains("x")', "did you mean `labels`?"),
        ('context.run.labels.contain("x")', "did you mean `contains`?"),
        ("context.trust.score = 3", "did you mean `==`?"),
        ("contxt.trust.score > 3", "did you mean `context`?"),
        ('principal.owner == "ada"', 'an entity is written Human::"name"'),
    ],
)
def test_a_misspelt_word_has_a_hint_wherever_it_stands(condition: str, hint: str) -> None:
    said = [[str(p) for p in problems(f"{SCOPE}when {{ {condition} }};")] for _ in range(5)]
    assert hint in said[0][0]
    assert said.count(said[0]) == 5, "the same mistake is told in the same words each time"


@pytest.mark.parametrize(
    ("policy", "hint"),
    [
        ('@id("x") permit (principal, action == Action::"workbench/raed_file", resource);', "workbench/read_file"),
        ('@id("x") permit (principal, action in Action::"git", resource);', "licet servers export"),
        (f"{SCOPE}\n{SCOPE.replace('x', 'y')};", "a semicolon is missing before this"),
        (f'@approval("of=operations") {SCOPE};', "add: when { context.approved }"),
        (f'@approval("of=operations") {SCOPE.replace("permit", "forbid")};', "add: unless { context.approved }"),
        (f'@approval("of=operations") {SCOPE}unless {{ context.approved }};', "when { context.approved }"),
        (
            f'@approval("of=operations") {SCOPE.replace("permit", "forbid")}when {{ context.approved }};',
            "unless { context.approved }",
        ),
    ],
)
def test_a_hint_says_what_to_write(policy: str, hint: str) -> None:
    assert any(hint in p.hint for p in problems(policy))


def test_whoever_waits_for_a_person_the_wrong_way_round_is_not_activated() -> None:
    inverted = f'@approval("of=operations") {SCOPE}unless {{ context.approved }};'
    assert any(p.level == "error" and "wrong way round" in p.message for p in problems(inverted))


def test_the_default_pack_is_formatted() -> None:
    from trust.policy import cedar

    for name, text in FILES.items():
        if name.endswith(".cedar"):
            assert cedar.format_policies(text, 100, 2).rstrip() + "\n" == text


def test_an_unknown_annotation_and_a_policy_that_permits_everything_are_warned_of() -> None:
    messages = [
        m
        for level, _, _, m in found('@id("x") @onwer("me") permit (principal, action, resource);')
        if level == "warning"
    ]
    assert any("@onwer means nothing" in m for m in messages)
    assert any("everything to everybody" in m for m in messages)
    assert any(
        p.hint == "did you mean `owner`?"
        for p in problems('@id("x") @onwer("me") permit (principal, action, resource);')
    )


@pytest.mark.parametrize("suffix", [".cedarschema", ".cedar"])
def test_a_directory_without_schema_or_policies_is_refused(suffix: str) -> None:
    files = {name: text for name, text in FILES.items() if not name.endswith(suffix)}

    def build() -> Compiled:
        sources = bundle.sources_from_files(files)
        return bundle.compile_bundle(Content(1, 0, 1, sources, sources.expected))

    with pytest.raises(BundleRejected):
        build()


def test_statements_are_cut_where_cedar_cuts_them() -> None:
    text = '// a; b\npermit (principal, action, resource) when { context.a == ";" }; // tail\n\n@id("y") forbid (principal, action, resource);\n// end'
    assert [s.text[:6] for s in statements(text)] == ["permit", '@id("y']
    assert [s.place().line for s in statements(text)] == [2, 4]


def test_the_default_cases_hold_and_an_important_policy_is_missed() -> None:
    made = compiled()
    results = cases.require(made)
    assert len(results) > 20
    assert "fs-read" not in cases.unguarded(made, cases.read_cases(made.content.sources.cases))


def test_a_case_that_fails_refuses_the_bundle_and_names_itself() -> None:
    with pytest.raises(BundleRejected, match=r"cases/workbench\.yaml:\d+:1: error: FAIL reading in the sandbox"):
        cases.require(compiled(x__cedar='@id("stop") forbid (principal, action in Action::"read", resource);'))


@pytest.mark.parametrize(
    "text",
    [
        "cases: [{name: a}]",
        "cases: 3",
        "{",
        "cases: [{name: a, expect: maybe}]",
        "cases: [{name: a, expect: permit, agent: nobody}]",
        "cases: [{name: a, expect: permit, arg: {}}]",
    ],
)
def test_a_case_file_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(BundleRejected):
        cases.read_cases({"cases/x.yaml": text})


def test_a_mistake_in_a_case_file_is_named_with_its_line() -> None:
    text = "agents:\n  a: {owner: x}\ncases:\n  - name: one\n    expect: permit\n  - name: two\n    expect: maybe\n"
    with pytest.raises(BundleRejected) as bad:
        cases.read_cases({"cases/x.yaml": text})
    assert (bad.value.problems[0].line, bad.value.problems[0].column) == (7, 13)
    with pytest.raises(BundleRejected) as bad:
        cases.require(compiled(x__cedar='@id("stop") forbid (principal, action in Action::"read", resource);'))
    for problem in bad.value.problems:
        lines = FILES[problem.file].splitlines()
        assert lines[problem.line - 1].partition("name: ")[2] in problem.message


def test_a_policy_that_no_tool_can_reach_is_told_apart_from_one_without_cases() -> None:
    made = compiled(y__cedar='@id("agents") permit (principal, action in Action::"agent", resource);')
    assert cases.idle(made) == ["agents"]
    assert "agents" not in cases.unguarded(made, cases.read_cases(made.content.sources.cases))


def test_a_list_under_each_makes_one_case_per_combination() -> None:
    text = "cases: [{name: n, expect: permit, each: {action: [a/b, a/c], trust: [1, 2, 3]}}]"
    assert len(cases.read_cases({"cases/x.yaml": text})) == 6


def test_content_survives_its_bytes() -> None:
    made = content()
    assert msgspec.convert(msgspec.json.decode(bundle.content_bytes(made)), Content) == made
