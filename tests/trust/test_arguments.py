"""From JSON Schema to Cedar types, and from values to those types: visible exactly, or refused, or invisible."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trust.policy import cedar, schema
from trust.policy.arguments import Opaque, RecordOf, cedar_type, project, shape_of
from trust.policy.cedar import Uid
from trust.policy.inventory import Inventory, Manifest, Server, Tool
from trust.reasons import Reason, Unverifiable

BASE = "entity Human; entity Agent { owner: Human }; entity Server; type Trust = {}; type Run = {}; type Rate = {}; type Authority = {};"


def shape(properties: dict[str, Any], required: list[str] | None = None, **more: Any) -> RecordOf:
    return shape_of({"type": "object", "properties": properties, "required": required or [], **more})


def refusal(of: RecordOf, value: Any) -> str:
    with pytest.raises(Unverifiable) as refused:
        project(of, value)
    assert refused.value.reason is Reason.ARGUMENTS_INVALID
    return refused.value.detail


@pytest.mark.parametrize(
    ("declared", "cedar_text"),
    [
        ({"type": "string"}, "String"),
        ({"type": "integer"}, "Long"),
        ({"type": "boolean"}, "Bool"),
        ({"type": "number"}, "decimal"),
        ({"type": "array", "items": {"type": "string"}}, "Set<String>"),
        ({"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}, '{ "x": Long }'),
        ({"$ref": "#/$defs/Name"}, "String"),
        ({"enum": ["a", "b"], "type": "string"}, "String"),
    ],
)
def test_each_expressible_type_has_its_cedar_type(declared: dict[str, Any], cedar_text: str) -> None:
    made = shape({"a": declared}, ["a"], **{"$defs": {"Name": {"type": "string"}}})
    assert cedar_type(made) == f'{{ "a": {cedar_text} }}'


@pytest.mark.parametrize(
    "declared",
    [
        {},
        True,
        {"anyOf": [{"type": "string"}, {"type": "integer"}]},
        {"type": ["string", "integer"]},
        {"allOf": [{"type": "string"}]},
        {"type": "array"},
        {"type": "array", "items": {}},
        {"type": "object"},
        {"$ref": "elsewhere.json"},
    ],
    ids=str,
)
def test_what_cedar_cannot_express_is_invisible_and_never_half_visible(declared: Any) -> None:
    made = shape({"a": declared})
    assert isinstance(made.fields["a"].shape, Opaque)
    assert cedar_type(made) == "{}"
    assert project(made, {"a": ["anything"]}) == {}


def test_a_recursive_schema_ends() -> None:
    loop = {"Loop": {"type": "object", "properties": {"next": {"$ref": "#/$defs/Loop"}}}}
    assert cedar_type(shape({"a": {"$ref": "#/$defs/Loop"}}, **{"$defs": loop})).count("next") < 20


def test_null_is_an_absent_optional() -> None:
    made = shape({"n": {"anyOf": [{"type": "integer"}, {"type": "null"}]}}, ["n"])
    assert cedar_type(made) == '{ "n"?: Long }'
    assert project(made, {"n": None}) == {}
    assert project(made, {"n": 3}) == {"n": 3}


def test_an_argument_that_is_not_declared_is_refused() -> None:
    assert 'unknown argument "evil"; declared: path' in refusal(
        shape({"path": {"type": "string"}}), {"path": "a", "evil": 1}
    )


def test_an_open_schema_lets_more_through_but_not_into_cedar() -> None:
    made = shape({"path": {"type": "string"}}, additionalProperties=True)
    assert project(made, {"path": "a", "more": 1}) == {"path": "a"}


def test_a_missing_argument_is_refused() -> None:
    assert 'the argument "path" is missing' in refusal(shape({"path": {"type": "string"}}, ["path"]), {})


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("string", 1),
        ("integer", "1"),
        ("integer", True),
        ("integer", 1.5),
        ("boolean", 1),
        ("number", "1"),
        ("number", True),
        ("string", None),
    ],
)
def test_a_value_of_another_type_is_refused_and_shown(kind: str, value: Any) -> None:
    assert "expected" in refusal(shape({"a": {"type": kind}}), {"a": value})


def test_an_integer_written_as_a_float_is_that_integer() -> None:
    assert project(shape({"a": {"type": "integer"}}), {"a": 5.0}) == {"a": 5}


@pytest.mark.parametrize("value", [0.12345, 1e300, 922337203685477.6])
def test_a_number_that_cedar_cannot_hold_exactly_is_refused_not_rounded(value: float) -> None:
    assert "cannot be judged exactly" in refusal(shape({"a": {"type": "number"}}), {"a": value})


def test_a_value_outside_of_its_enum_is_refused() -> None:
    assert "one of" in refusal(shape({"a": {"type": "string", "enum": ["x"]}}), {"a": "y"})


def test_strange_names_are_quoted() -> None:
    assert cedar_type(shape({'a"b\\': {"type": "string"}})) == '{ "a\\u{22}b\\u{5c}"?: String }'


scalars = st.sampled_from(["string", "integer", "boolean", "number"]).map(lambda t: {"type": t})
names = st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1, max_size=8)
schemas = st.recursive(
    scalars,
    lambda inner: (
        st.builds(lambda i: {"type": "array", "items": i}, inner)
        | st.builds(
            lambda p: {"type": "object", "properties": p, "required": sorted(p)[:1]},
            st.dictionaries(names, inner, max_size=3),
        )
        | st.builds(lambda i: {"anyOf": [i, {"type": "null"}]}, inner)
    ),
    max_leaves=6,
)


def value_for(draw: Any, declared: Any) -> Any:
    if "anyOf" in declared:
        return None if draw(st.booleans()) else value_for(draw, declared["anyOf"][0])
    match declared["type"]:
        case "string":
            return draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=10))
        case "integer":
            return draw(st.integers(-(2**63), 2**63 - 1))
        case "boolean":
            return draw(st.booleans())
        case "number":
            return draw(st.integers(-(10**6), 10**6)) / 100
        case "array":
            return [value_for(draw, declared["items"]) for _ in range(draw(st.integers(0, 3)))]
    keep = [n for n in declared["properties"] if n in declared["required"] or draw(st.booleans())]
    return {n: value_for(draw, declared["properties"][n]) for n in keep}


@given(st.data(), st.dictionaries(names, schemas, max_size=4))
def test_every_projection_fits_the_generated_cedar_type(data: Any, properties: dict[str, Any]) -> None:
    """The engine is asked without a schema because contexts are made by projection; this is why that is sound."""
    input_schema = {"type": "object", "properties": properties, "required": sorted(properties)[:2]}
    tool = Tool("t", "d", input_schema, Manifest(category="fs", effect="read", privileged=False))
    text = schema.complete(BASE, Inventory({"s": Server("s", {"t": tool})}))
    parsed = cedar.parse_schema(text)
    arguments = value_for(data.draw, input_schema)
    context = {
        "args": project(shape_of(input_schema), arguments), "trust": {}, "run": {}, "rate": {}, "authority": {},
        "approved": False, "now": {"__extn": {"fn": "datetime", "arg": "2026-01-01T00:00:00Z"}}, "risk": 1,
    }  # fmt: skip
    policies = cedar.policy_set(cedar.parse_policies("permit(principal, action, resource);"))
    entities = cedar.parse_entities([], parsed)
    answer = cedar.ask(
        policies, entities, Uid("Agent", "a"), "s/t", Uid("Server", "s"), msgspec.json.encode(context), parsed
    )
    assert answer.clean_allow, answer.errors
