"""Chains that were verified are remembered, and only as many as memory is there for."""

from __future__ import annotations

from typing import Any

import pytest

from trust.identity import chains, delegation
from trust.identity.chains import VerifiedChains
from trust.identity.constraints import Exact
from trust.identity.keys import SecretKey
from trust.policy.grants import require_possible
from trust.policy.inventory import Inventory, Manifest, Server, Tool, pin
from trust.reasons import Unverifiable

ISSUER, HOLDER = SecretKey(bytes(range(32))), SecretKey(bytes(range(1, 33)))
NOW = 1_000_000


def root(number: int, size: int = 10, lives_s: int = 100) -> str:
    return delegation.mint(
        trust_domain="t", principal="ada", audience=delegation.audience("t"), holder=HOLDER.public,
        tools={"s/t": {"a": Exact("x" * size)}}, max_depth=1, now=NOW, expires_at=NOW + lives_s,
        root=f"root_{number}", key=ISSUER,
    )  # fmt: skip


def test_a_chain_is_verified_once_and_ends_in_time(monkeypatch: Any) -> None:
    opened: list[str] = []
    honest = delegation.open_chain

    def counting(chain: str, **more: Any) -> Any:
        opened.append(chain)
        return honest(chain, **more)

    monkeypatch.setattr(delegation, "open_chain", counting)
    known, chain = VerifiedChains(ISSUER.public, "t"), root(1)
    assert known.authority(chain, NOW) == known.authority(chain, NOW + 99)
    assert len(opened) == 1
    with pytest.raises(Unverifiable, match="came to its end"):
        known.authority(chain, NOW + 100)
    for wrong in (chain[:-2] + "AA", chain + "~" + chain, ""):
        with pytest.raises(Unverifiable):
            known.authority(wrong, NOW)
    assert len(known) == 1, "what does not verify is not remembered"


def test_what_is_remembered_has_a_limit_in_bytes(monkeypatch: Any) -> None:
    monkeypatch.setattr(chains, "MAX_BYTES", 20_000)
    known = VerifiedChains(ISSUER.public, "t")
    short = root(0)
    for number in range(30):
        known.authority(root(number, 3000), NOW)
        known.authority(short, NOW)
    assert len(known) < 7
    assert known._bytes <= 20_000


def test_a_link_that_is_over_says_which_and_since_when() -> None:
    known = VerifiedChains(ISSUER.public, "t")
    with pytest.raises(Unverifiable, match=r"its root ended 5 s ago, at 1970-01-12 13:48:20 UTC"):
        known.authority(root(1), NOW + 105)
    with pytest.raises(Unverifiable, match=r"its root begins at .*do the clocks agree"):
        known.authority(root(1), NOW - 50)


SCHEMA = {
    "type": "object",
    "properties": {
        "path": {"type": "string"},
        "count": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
}
INVENTORY = Inventory({"s": Server("s", {"read": Tool("read", pin("read", "", SCHEMA), SCHEMA, Manifest())})})
POSSIBLE: list[dict[str, Any]] = [
    {},
    {"path": {"constraint_type": "exact", "value": "x"}},
    {"path": {"constraint_type": "prefix", "prefix": "x"}, "count": {"constraint_type": "range", "max": 5}},
    {"tags": {"constraint_type": "subset", "allowed": ["a"]}},
    {"count": {"constraint_type": "any", "constraints": [{"constraint_type": "one_of", "values": [1, 2]}]}},
    {"path": {"constraint_type": "not_one_of", "excluded": [7]}},
]
MISTAKEN: list[tuple[dict[str, Any], str]] = [
    ({"paht": {"constraint_type": "exact", "value": "x"}}, 'no argument "paht": it has count, path, tags'),
    ({"count": {"constraint_type": "exact", "value": "5"}}, "expected an integer, found '5'"),
    ({"path": {"constraint_type": "one_of", "values": ["a", 1]}}, "expected a string, found 1"),
    ({"path": {"constraint_type": "range", "min": 1}}, "is a string, which a range says nothing about"),
    ({"count": {"constraint_type": "prefix", "prefix": "x"}}, "is an integer, which a prefix"),
    ({"path": {"constraint_type": "contains", "required": ["x"]}}, "is no list"),
    (
        {"path": {"constraint_type": "all", "constraints": [{"constraint_type": "exact", "value": 1}]}},
        "expected a string, found 1",
    ),
]


@pytest.mark.parametrize("arguments", POSSIBLE, ids=str)
def test_a_grant_that_some_call_can_meet_is_fine(arguments: dict[str, Any]) -> None:
    require_possible(delegation.grants({"s/read": arguments}), INVENTORY)


@pytest.mark.parametrize(("arguments", "says"), MISTAKEN, ids=lambda v: str(v)[:40])
def test_a_grant_that_no_call_can_meet_says_what_there_is(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(Unverifiable) as caught:
        require_possible(delegation.grants({"s/read": arguments}), INVENTORY)
    assert says in caught.value.detail


def test_an_unknown_tool_hints_at_its_neighbours() -> None:
    with pytest.raises(Unverifiable, match="near it: s/read"):
        require_possible({"s/raed": {}}, INVENTORY)
