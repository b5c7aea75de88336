"""The choice of a node: constraints are never relaxed, and nothing falls through."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.router.choice import Candidate, choose
from gateway.state import NodeRecord
from trust.wire import Place

ANYWHERE = Place()


def candidate(
    name: str = "n", *, lease_s: float = 5.0, outstanding: int = 0, ejected: bool = False, **node: object
) -> Candidate:
    record = NodeRecord(name, "", **({"state": "ready", "servers": ("s",), "slots": 4} | node))  # type: ignore[arg-type]
    return Candidate(record, lease_s, outstanding, ejected)


def every(_node: NodeRecord) -> bool:
    return True


def chosen(
    candidates: list[Candidate], place: Place = ANYWHERE, permitted: set[str] | None = None, tie: float = 0.0
) -> str | None:
    choice = choose(candidates, "s", place, every, lambda n: permitted is None or n.name in permitted, tie)
    return choice.chosen.name if choice.chosen else None


candidates = st.lists(
    st.builds(
        candidate,
        st.sampled_from("abcdef"),
        lease_s=st.sampled_from([-1.0, 0.0, 5.0]),
        outstanding=st.integers(0, 9),
        ejected=st.booleans(),
        state=st.sampled_from(["ready", "draining", "quarantined", "pending"]),
        servers=st.sampled_from([("s",), ("t",), ()]),
        slots=st.integers(1, 8),
        weight=st.floats(0.1, 10),
    ),
    max_size=8,
    unique_by=lambda c: c.node.name,
)


NAMES = st.sets(st.sampled_from("abcdef"))


@given(candidates, st.none() | st.sampled_from("abcdef"), NAMES, NAMES, st.floats(0, 1))
def test_whatever_is_chosen_is_eligible(
    found: list[Candidate], pin: str | None, as_judged: set[str], permitted: set[str], tie: float
) -> None:
    choice = choose(found, "s", Place(pin=pin), lambda n: n.name in as_judged, lambda n: n.name in permitted, tie)
    eligible = {
        c.node.name for c in found
        if c.node.state == "ready" and c.lease_s > 0 and "s" in c.node.servers and c.node.name in permitted & as_judged and pin in (None, c.node.name)
    }  # fmt: skip
    assert (choice.chosen is None) == (not eligible)
    assert choice.chosen is None or choice.chosen.name in eligible
    assert sum(choice.eliminated.values()) == len(found) - len(eligible)
    assert set(choice.scores) == eligible


def test_the_least_busy_per_slot_wins() -> None:
    assert chosen([candidate("a", outstanding=3), candidate("b", outstanding=1)]) == "b"
    assert chosen([candidate("a", outstanding=3, slots=16), candidate("b", outstanding=1)]) == "a"


def test_equals_are_chosen_by_the_tie_break() -> None:
    assert {chosen([candidate("a"), candidate("b")], tie=t) for t in (0.0, 0.99, 1.0)} == {"a", "b"}


def test_an_ejected_node_is_passed_over_while_there_is_another_and_used_when_there_is_none() -> None:
    assert chosen([candidate("a", ejected=True), candidate("b", outstanding=9)]) == "b"
    assert chosen([candidate("a", ejected=True)]) == "a"


def test_the_trace_tells_who_fell_out_and_why() -> None:
    found = [
        candidate("a"),
        candidate("b", outstanding=2),
        candidate("c", state="draining"),
        candidate("d", lease_s=-1),
    ]
    trace = choose(found, "s", ANYWHERE, every, lambda n: True, 0.0).trace()
    assert trace["chosen"] == "a"
    assert trace["runner_up"] == "b"
    assert trace["eliminated"] == {"draining": 1, "lease_expired": 1}
