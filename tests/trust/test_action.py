"""What an approval is bound to: every part of an action that matters, in one canonical form."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trust.test_canonical import values
from trust.action import Action, Payload
from trust.canonical import digest_of
from trust.reasons import Unverifiable

GIVEN: dict[str, Any] = {"agent": "a", "principal": "p", "authority": ("x",), "tool_digest": "d"}


def action(arguments: dict[str, Any], server: str = "s", tool: str = "t") -> Action:
    return Action("act_1", "dec_1", "native", server, tool, arguments, Payload("POST", (), b""), "run_1")


@given(st.dictionaries(st.text(), values, max_size=4), st.text(max_size=5), st.text(max_size=5))
def test_the_digest_is_that_of_the_canonical_form(arguments: dict[str, Any], agent: str, principal: str) -> None:
    whole = {
        "agent": agent,
        "principal": principal,
        "authority": ["x"],
        "action": "s/t",
        "server": "s",
        "resource": 'Server::"s"',
        "arguments": arguments,
        "tool_schema": "d",
    }
    try:
        expected = digest_of(whole)
    except Unverifiable:
        return
    assert action(arguments).digest(agent, principal, ("x",), "d") == expected


@pytest.mark.parametrize("changed", [{"agent": "b"}, {"principal": "q"}, {"authority": ()}, {"tool_digest": "e"}])
def test_whatever_changes_changes_the_digest(changed: dict[str, Any]) -> None:
    made = action({"amount": 1})
    assert made.digest(**GIVEN) != made.digest(**{**GIVEN, **changed})
    assert made.digest(**GIVEN) != action({"amount": 2}).digest(**GIVEN)
    assert made.digest(**GIVEN) != action({"amount": 1}, server="r").digest(**GIVEN)
    assert made.digest(**GIVEN) != action({"amount": 1}, tool="u").digest(**GIVEN)
