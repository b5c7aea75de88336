"""Random sequences of everything that can be done with approvals, against a model that is small enough to be believed.

The mesh is real: a sidecar asks and claims, a node runs a bank that writes down what it did; only time is made to pass.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from gateway.state import ApprovalRecord
from tests.mesh import Answer, Mesh
from tests.stories.test_approvals import bank_mesh

Done = TypeVar("Done")
TTL_S = 3600
FINANCE = ("fay", "finn", "flo")
PEOPLE = (*FINANCE, "ada", "gus")
"""Three who may, the agent's owner who has the role and may not, and one who may only as a deputy."""


@dataclass
class Request:
    """What the model knows of one approval."""

    id: str
    run: str
    asked: int
    cents: int
    until: int
    state: str = "pending"
    votes: dict[str, tuple[str, str, Any]] = field(default_factory=dict)  # seat: (by, decision, scope)
    editors: set[str] = field(default_factory=set)
    under: str = ""
    revoked: bool = False


@dataclass
class Grant:
    run: str
    cents: int | None
    uses: int
    until: int


class Approvals(RuleBasedStateMachine):
    """Each rule does one thing to the mesh, and says before what must come of it."""

    mesh: ClassVar[Mesh]
    loop: ClassVar[asyncio.AbstractEventLoop]
    offset: ClassVar[list[int]]
    examples: ClassVar[Any] = itertools.count()
    approvals = Bundle("approvals")

    @initialize()
    def begin(self) -> None:
        self.name = f"x{next(self.examples)}"
        self.requests: dict[str, Request] = {}
        self.order: dict[int, list[str]] = {}
        self.grants: dict[str, Grant] = {}
        self.blocked: set[str] = set()
        self.deputies: dict[tuple[str, str], int] = {}
        self.ran: list[int] = []
        for person, deputy in itertools.product(PEOPLE, PEOPLE):
            self.do(self.mesh.admin("POST", "/v1/deputies/end", {"deputy": deputy}, person))

    def teardown(self) -> None:
        """Nothing of this example waits when the next begins: an agent may have a hundred requests, and no more."""
        self.time_passes(10_000)

    # Doing

    def do(self, work: Coroutine[Any, Any, Done]) -> Done:
        """In the mesh's own thread: leases and facts go on while hypothesis thinks."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def record(self, approval: str) -> ApprovalRecord:
        return self.do(_in_loop(lambda: self.mesh.gateway.desk.get(approval)))

    @property
    def now(self) -> int:
        return self.offset[0]

    def call(self, run: str, cents: int) -> Answer:
        return self.do(self.mesh.call("bank/pay", {"to": self.name, "cents": cents}, run=f"{self.name}-{run}"))

    # The model

    def alive(self, one: Request) -> bool:
        return one.state in ("pending", "approved") and self.now < one.until

    def same(self, run: str, cents: int) -> Request | None:
        """The last request for these arguments that counts."""
        found = None
        for approval in sorted(self.order.get(cents, [])):
            one = self.requests[approval]
            if cents not in (one.asked, one.cents):
                continue
            if (self.alive(one) and one.run == run) or one.state == "denied":
                found = one
        return found

    def covering(self, run: str, cents: int) -> str:
        for approval in sorted(self.grants):
            grant = self.grants[approval]
            if grant.run == run and grant.cents in (None, cents) and self.now < grant.until:
                return approval
        return ""

    def spend(self, one: Request) -> None:
        one.state = "consumed"
        self.ran.append(one.cents)

    def known(self, approval: str, run: str, asked: int) -> Request:
        made = self.requests[approval] = Request(approval, run, asked, asked, self.now + TTL_S)
        self.order.setdefault(asked, []).append(approval)
        return made

    def seats(self, voter: str) -> list[str]:
        others = sorted(p for (p, d), until in self.deputies.items() if d == voter and self.now < until)
        return [voter, *others]

    def may(self, one: Request, voter: str, *, anew: bool) -> str:
        """The seat in which *voter* votes; empty: in none. *anew*: whoever edited or voted before may."""
        barred = {"ada"} | (set() if anew else one.editors)
        taken = set() if anew else set(one.votes) | {by for by, _, _ in one.votes.values()}
        if voter in barred | taken:
            return ""
        free = [s for s in self.seats(voter) if s in (*FINANCE, "ada") and s not in taken | barred]
        return free[0] if free else ""

    # What can be done

    @rule(target=approvals, run=st.sampled_from("ab"), cents=st.integers(1, 3))
    def ask(self, run: str, cents: int) -> Any:
        same, before = self.same(run, cents), self.covering(run, cents)
        answer = self.call(run, cents)
        if same is not None and same.state == "denied":
            assert answer.json["reason"] == "approval_denied"
        elif same is not None and same.state == "pending":
            assert (answer.status, answer.json["approval"]) == (202, same.id)
        elif same is not None:
            assert answer.status == 200, answer.body
            self.spend(same)
        elif run in self.blocked:
            assert answer.json["reason"] == "approval_denied"
        elif before:
            assert answer.status == 200, answer.body
            everything = self.do(_in_loop(self.mesh.gateway.desk.all))
            made = next(r for r in everything if r.id not in self.requests and r.under == before)
            self.spend(self.known(made.id, run, cents))
            self.requests[made.id].under = before
            grant = self.grants[before]
            if grant.uses:
                grant.uses -= 1
                if not grant.uses:
                    del self.grants[before]
        else:
            assert answer.status == 202, answer.body
            self.known(answer.json["approval"], run, cents)
            return answer.json["approval"]
        return multiple()

    @rule(
        approval=approvals,
        voter=st.sampled_from(PEOPLE),
        decision=st.sampled_from(["approve", "approve", "approve", "deny"]),
        scope=st.sampled_from([None, None, ("uses", 3, 60), ("tool", 0, 30)]),
        block=st.booleans(),
    )
    def vote(self, approval: str, voter: str, decision: str, scope: Any, block: bool) -> None:
        one, more = self.requests[approval], {}
        if scope is not None:
            more["scope"] = {"kind": scope[0], "uses": scope[1], "minutes": scope[2]}
        seat = self.may(one, voter, anew=False)
        answer = self.do(self.mesh.vote(approval, decision, voter, block=block, **more))
        if one.state != "pending" or self.now >= one.until or not seat:
            assert answer.status >= 400, answer.body
            return
        assert answer.status == 200, answer.body
        one.votes[seat] = voter, decision, scope if decision == "approve" else None
        yes = [given for _, said, given in one.votes.values() if said == "approve"]
        if decision == "deny":
            one.state = "denied"
            if block:
                self.blocked.add(one.run)
        elif len(yes) >= 2:
            one.state = "approved"
            self.grant(one, yes)

    def grant(self, one: Request, given: list[Any]) -> None:
        """As far as the narrowest of them says."""
        if None in given:
            return
        minutes = min(minutes for _, _, minutes in given)
        exact = [uses for kind, uses, _ in given if kind == "uses"]
        cents, uses = (one.cents, min(exact) - 1) if exact else (None, 0)
        self.grants[one.id] = Grant(one.run, cents, uses, self.now + minutes * 60)

    @rule(approval=approvals, who=st.sampled_from(PEOPLE), cents=st.sampled_from([1, 2, 3, 2_000_000]))
    def edit(self, approval: str, who: str, cents: int) -> None:
        one = self.requests[approval]
        seen = self.record(approval).presented
        body = {"arguments": {"to": self.name, "cents": cents}, "presented": seen}
        answer = self.do(self.mesh.admin("POST", f"/v1/approvals/{approval}/edits", body, who))
        able = one.state == "pending" and self.now < one.until and self.may(one, who, anew=True)
        if not able or cents in (one.cents, 2_000_000):
            assert answer.status >= 400, answer.body
            return
        assert answer.status == 200, answer.body
        one.cents, one.votes = cents, {}
        one.editors.add(who)
        if one.id not in self.order.setdefault(cents, []):
            self.order[cents].append(one.id)

    @rule(approval=approvals)
    def claim(self, approval: str) -> None:
        one = self.requests[approval]
        answer = self.do(self.mesh.claim(approval))
        if one.state == "approved" and self.now < one.until:
            assert answer.status == 200, answer.body
            self.spend(one)
        else:
            assert str(answer.json["reason"]).startswith("approval_"), answer.body

    @rule(approval=approvals, who=st.sampled_from(PEOPLE))
    def revoke(self, approval: str, who: str) -> None:
        one = self.requests[approval]
        answer = self.do(self.mesh.admin("POST", f"/v1/approvals/{approval}/revocation", {}, who))
        grant = self.grants.get(approval)
        left = grant is not None and self.now < grant.until
        if not self.may(one, who, anew=True) or not (one.state == "approved" or left):
            assert answer.status >= 400, answer.body
            return
        assert answer.status == 200, answer.body
        self.grants.pop(approval, None)
        if one.state == "approved":
            one.state = "cancelled"

    @rule(person=st.sampled_from(FINANCE), deputy=st.sampled_from(["gus", "fay"]), hours=st.integers(0, 2))
    def name_deputy(self, person: str, deputy: str, hours: int) -> None:
        now = self.mesh.gateway.desk._clock.wall_us()
        body = {"deputy": deputy, "since_us": now, "until_us": now + hours * 3_600_000_000}
        answer = self.do(self.mesh.admin("POST", "/v1/deputies", body, person))
        if person == deputy or not hours:
            assert answer.status >= 400
        else:
            assert answer.status == 201, answer.body
            self.deputies[person, deputy] = self.now + hours * 3600

    @rule(seconds=st.sampled_from([500, 1000, 2000]))
    def time_passes(self, seconds: int) -> None:
        self.offset[0] += seconds + 5  # no limit falls into the real milliseconds in between
        self.do(self.mesh.gateway.desk.attend())
        for one in self.requests.values():
            if one.state in ("pending", "approved") and self.now >= one.until:
                one.state = "expired"

    @rule(really=st.integers(0, 9))
    def gateway_restarts(self, really: int) -> None:
        """Seldom: it takes a second."""
        if not really:
            self.do(restart(self.mesh, self.offset))

    # What must always be true

    @invariant()
    def the_gateway_says_the_same(self) -> None:
        for one in getattr(self, "requests", {}).values():
            record = self.record(one.id)
            votes = {vote.seat: (vote.by, vote.decision) for vote in record.votes}
            assert (one.id, record.state) == (one.id, one.state)
            assert votes == {seat: (by, said) for seat, (by, said, _) in one.votes.items()}
            assert record.action_digest == record.request["action_digest"]

    @invariant()
    def the_bank_did_what_was_approved_and_nothing_else(self) -> None:
        path = self.mesh.home / "done"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        mine = [given["cents"] for _, given in lines if given["to"] == getattr(self, "name", "")]
        assert mine == getattr(self, "ran", [])


async def _in_loop(read: Callable[[], Done]) -> Done:
    return read()


async def restart(mesh: Mesh, offset: list[int]) -> None:
    await mesh.stop("gateway")
    await mesh.start_gateway()
    shift(mesh, offset)
    async with asyncio.timeout(30):
        while not (all(mesh.sidecar.checks().values()) and mesh.sidecar.world.age_s() < 1 and await leased(mesh)):
            await asyncio.sleep(0.05)


async def leased(mesh: Mesh) -> bool:
    return all(node["state"] == "ready" for node in (await mesh.admin("GET", "/v1/nodes")).json["nodes"])


def shift(mesh: Mesh, offset: list[int]) -> None:
    """Stamps of the gateway's ledger, and what is compared with them, are of another time; signatures are not."""
    clock: Any = mesh.gateway.desk._clock
    clock.wall_us = lambda: time.time_ns() // 1000 + offset[0] * 1_000_000


@pytest.mark.slow
def test_whatever_is_done_the_model_says_the_same(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    soak = request.config.getoption("--soak")
    loop = Approvals.loop = asyncio.new_event_loop()
    Approvals.offset = [0]
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> Mesh:
        mesh = bank_mesh(tmp_path)
        await mesh.__aenter__()
        shift(mesh, Approvals.offset)
        return mesh

    mesh = Approvals.mesh = asyncio.run_coroutine_threadsafe(start(), loop).result(60)
    try:
        run_state_machine_as_test(
            Approvals,
            settings=settings(
                max_examples=300 if soak else 20,
                stateful_step_count=30,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        asyncio.run_coroutine_threadsafe(mesh.__aexit__(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
