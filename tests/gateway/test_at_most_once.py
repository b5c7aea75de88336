"""At most once: whatever answers are lost, nodes begin anew, and routers repeat, what is not idempotent runs once.

The node's parts are real: tickets sealed and opened, nonces, the memory of what was done. The network loses, delays and
repeats as hypothesis says, and each router follows the rules of :mod:`gateway.tries` with its own, maybe old, knowledge.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.node.done import KEEP_S, MAX_ANSWER_BYTES, Done
from sidecar.node.upstream import Replied
from trust.identity import ticket
from trust.identity.keys import SecretKey
from trust.identity.replay import Nonces
from trust.reasons import Unverifiable

KEY = SecretKey.generate()
NODES = ("a", "b")


@dataclass
class Machine:
    """A node: what it does is counted outside of it, as money is."""

    name: str
    epoch: int = 1
    spent: Nonces = field(default_factory=Nonces)
    done: Done = field(default_factory=Done)

    def begin_anew(self) -> None:
        """Its process died: another epoch, and nothing remembered."""
        self.epoch += 1
        self.spent, self.done = Nonces(), Done()

    def execute(self, token: str, now: float, happened: Counter[str]) -> bool:
        """Whether it took the ticket; *happened* counts what ran."""
        try:
            opened = ticket.open_ticket(
                token, gateway=KEY.public, sessions=lambda _: None, node=self.name, key="k", epoch=self.epoch, payload="p",
                credentials="c", now=now,
            )  # fmt: skip
            self.spent.spend(opened.id, opened.deadline, now)
            if self.done.knows(opened.action_id, opened.payload):
                return True
        except Unverifiable:
            return False
        self.done.begin(opened.action_id, opened.payload, now)
        happened[opened.action_id] += 1
        self.done.ended(opened.action_id, Replied(200, {}, b"ok"))
        return True


def entitled(action: str, node: str, epoch: int, number: int, now: float) -> str:
    made = ticket.Ticket(
        id=f"tkt_{action}_{number}", action_id=action, node=node, key="k", epoch=epoch, server="s", tool="t", agent="x",
        principal="p", run="r", payload="p", tool_digest="d", action_digest="", approval=None, credentials="c",
        issued_at=int(now), deadline=int(now) + 30, attempt=number,
    )  # fmt: skip
    return ticket.seal(made, KEY)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.sampled_from(NODES), st.sampled_from(["answered", "lost before", "lost after"])),
        st.tuples(st.just("again"), st.sampled_from(["answered", "lost before", "lost after"])),
        st.tuples(st.just("begins anew"), st.sampled_from(NODES)),
        st.tuples(st.just("arrives late"), st.integers(0, 5)),
    ),
    max_size=25,
)


@given(steps)
def test_what_is_not_idempotent_runs_at_most_once(plan: list[tuple[object, ...]]) -> None:
    """One action. A router may hold an old epoch; messages may arrive twice, and much later."""
    nodes = {name: Machine(name) for name in NODES}
    happened: Counter[str] = Counter()
    messages: list[tuple[str, str]] = []
    first: tuple[str, int] | None = None
    number, over = 0, False

    def post(name: str, epoch: int, how: str) -> bool:
        nonlocal number
        number += 1
        token = entitled("act", name, epoch, number, 1000.0)
        messages.append((name, token))
        if how == "lost before":
            return False
        taken = nodes[name].execute(token, 1000.0, happened)
        return how == "answered" and taken

    for step in plan:
        match step:
            case ("send", str(name), str(how)) if first is None and not over:
                first = (name, nodes[name].epoch)
                over = post(*first, how)
            case ("again", str(how)) if first is not None and not over and number < 3:
                # The rule of gateway.tries: only at the same node, and only in the epoch in which it was sent.
                over = post(*first, how)
            case ("begins anew", str(name)):
                nodes[name].begin_anew()
            case ("arrives late", int(at)) if at < len(messages):
                name, token = messages[at]
                nodes[name].execute(token, 1010.0, happened)
    assert happened["act"] <= 1


@given(st.lists(st.sampled_from(NODES), min_size=2, max_size=2, unique=True))
def test_the_model_would_notice_two_nodes(order: list[str]) -> None:
    """A router that tried elsewhere after a loss would do it twice: so it must not, and the model can tell."""
    nodes = {name: Machine(name) for name in NODES}
    happened: Counter[str] = Counter()
    for number, name in enumerate(order, 1):
        nodes[name].execute(entitled("act", name, 1, number, 1000.0), 1000.0, happened)
    assert happened["act"] == 2


async def test_asked_again_while_it_runs_it_waits_for_the_one_answer() -> None:
    done = Done()
    done.begin("act", "p", 0.0)
    asking = asyncio.create_task(done.again("act"))
    await asyncio.sleep(0)
    assert not asking.done()
    done.ended("act", Replied(200, {}, b"made"))
    assert (await asking).body == b"made"


async def test_what_cannot_be_told_again_is_unknown() -> None:
    done = Done()
    for action, answer in (("stream", None), ("large", Replied(200, {}, b"x" * (MAX_ANSWER_BYTES + 1)))):
        done.begin(action, "p", 0.0)
        done.ended(action, answer)
        with pytest.raises(Unverifiable, match="cannot be told again"):
            await done.again(action)


def test_the_same_action_with_other_bytes_is_refused() -> None:
    done = Done()
    done.begin("act", "p", 0.0)
    with pytest.raises(Unverifiable, match="other bytes"):
        done.knows("act", "q")


def test_what_ended_is_forgotten_after_a_while_and_what_runs_never() -> None:
    done = Done()
    done.begin("ended", "p", 0.0)
    done.ended("ended", Replied(200, {}, b"x"))
    done.begin("runs", "p", 1.0)
    done.begin("later", "p", KEEP_S + 1)
    assert not done.knows("ended", "p")
    assert done.knows("runs", "p")
