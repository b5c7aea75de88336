"""The ten steps that every action of the agent passes, in order, from top to bottom.

1 receive (the ingress of each protocol) · 2 identify · 3 recall · 4 evaluate · 5 decide · 6 record · 7 hold ·
8 route · 9 execute (the node) · 10 answer. Between recall and the counting of a permitted call nothing is
awaited, so no other call can slip in between what was read and what was decided.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from typing import Any, Final, Literal

import msgspec

from edge.blobs import Blobs
from edge.clock import SystemClock, new_id, new_span
from edge.durable import DurableLedger
from edge.telemetry import Telemetry
from edge.tracing import Marks
from sidecar import answers
from sidecar.answers import Allowed, Answer, Audit, Held, Refused
from sidecar.asking import Asking
from sidecar.chains import Chains, Opened
from sidecar.forward import Behind, Forwarded, forward
from sidecar.identity import Identity
from sidecar.journal import Recall
from sidecar.reports import Reports
from sidecar.shown import Shown
from sidecar.stream import End, Stream
from sidecar.subjects import Subjects
from sidecar.told import tell
from sidecar.world import View
from trust import feed, mcp, report, wire
from trust.action import Action
from trust.canonical import sha256_hex
from trust.facts import Facts, Mandate
from trust.ledger import entries
from trust.ledger.writer import EntryTooLarge, LedgerUnavailable
from trust.personal import Marked, padded
from trust.policy import judge
from trust.policy.bundle import Compiled
from trust.policy.engine import Finding
from trust.policy.inventory import RISK_HIGH, Tool
from trust.reasons import NOTHING_HAPPENED, Reason, Unverifiable
from trust.standing.rules import COUNTED
from trust.standing.score import lowest
from trust.verdict import Hold, Permit, Refusal, Verdict, decide
from trust.wire import Dispatch, Place, Proof

ANYWHERE: Final = Place()
TOLD_S, TOLD_AGENTS_S = 5.0, 60.0
"""For so long what a gateway counted holds: it is decided again at once, or when the agent has signed it again."""
Status = Literal["done", "tool_error", "refused", "failed", "unknown"]
_log = logging.getLogger("licet.sidecar")


class Caller(msgspec.Struct, frozen=True):
    """Who asks, and how that is known; ``chain`` is the delegated authority that it brings, if any, ``proof`` the
    signature of an agent that holds its key itself."""

    authn: str
    chain: str = ""
    proof: Proof | None = None


class Judged(msgspec.Struct, frozen=True):
    """An action with everything that its decision was made of."""

    action: Action
    caller: Caller
    bundle: Compiled
    tool: Tool
    facts: Facts
    action_digest: str
    finding: Finding
    approval: str | None
    place: Place
    permitted_at: float = 0.0

    @property
    def mandate(self) -> Mandate:
        return self.facts.mandate


class Pipeline:
    """One per sidecar."""

    def __init__(
        self,
        agent: str,
        identity: Identity,
        view: View,
        chains: Chains,
        subjects: Subjects,
        reports: Reports,
        recall: Recall,
        ledger: DurableLedger,
        blobs: Blobs,
        clock: SystemClock,
        telemetry: Telemetry,
    ) -> None:
        self.shown = Shown(view, chains)
        self.approvals = Asking(agent, identity, clock)
        self._agent = agent
        self.on_held: Callable[[str], None] = lambda _approval: None
        self._telemetry = telemetry
        self._chains = chains
        self._subjects = subjects
        self._reports = reports
        self._identity = identity
        self._world = view
        self._recalled = recall
        self._ledger = ledger
        self._blobs = blobs
        self._clock = clock

    async def act(
        self,
        action: Action,
        caller: Caller,
        place: Place = ANYWHERE,
        *,
        approval: str | None = None,
        again: bool = False,
    ) -> Answer:
        """Steps 2 to 10 for *action*; with *approval*, its claim. What is told of it follows what was recorded. If the
        gateway knew more of what the agent did, all of that *again*, once."""
        began, marks = self._clock.mono_ns(), self._telemetry.tracer.marks(action.trace.received_ns)
        marks.at("1 receive")
        answer = await self._act(action, caller, place, approval, marks)
        if answer.decision_id == action.decision_id:  # else it is a stored action's, which was told as such
            tell(self._telemetry, action, answer, marks, (self._clock.mono_ns() - began) / 1e9)
        # What an agent signed itself is good for one attempt, so it is asked to send it again.
        if isinstance(answer, answers.Behind) and not again and caller.proof is None:
            action = msgspec.structs.replace(action, id=new_id("act"), decision_id=new_id("dec"))
            return await self.act(action, caller, place, approval=approval, again=True)
        return answer

    async def _act(self, action: Action, caller: Caller, place: Place, approval: str | None, marks: Marks) -> Answer:
        delegated: Opened | None = None
        try:
            action = self._subjects.guarded(action)
        except Unverifiable as bad:  # it has no canonical form, so nothing of it can be recorded
            return await self.refuse_with(Refusal.of(1, bad), action.decision_id, caller=caller.authn)
        try:
            delegated = await self._chains.open(caller.chain) if caller.chain else None  # 2
            action = await self._subjects.sealed(action, lambda: self._principal(delegated))
            judged, verdict = self._judge_in_turn(action, caller, delegated, place, approval, marks)
        except Unverifiable as bad:
            no = Refusal.of(_step_of(bad.reason), bad)
            refused = await self._refuse(action, no, caller, None)
            marks.at("6 record")
            return refused
        if isinstance(verdict, Refusal):
            refused = await self._refuse(action, verdict, caller, judged)
            marks.at("6 record")
            return refused
        if isinstance(verdict, Hold):
            held = await self._hold(judged, verdict)
            marks.at("7 hold")
            return held
        return await self._permitted(judged, verdict, marks)

    def _judge_in_turn(
        self, action: Action, caller: Caller, delegated: Opened | None, place: Place, approval: str | None, marks: Marks
    ) -> tuple[Judged, Verdict]:
        """Steps 2 to 5. What is permitted counts before anybody else decides, here or in another worker."""
        turn = self._recalled.turn
        known = turn.look()
        judged = self._judge(action, caller, delegated, place, approval, marks)
        verdict = decide(action, judged.finding, approval)
        marks.at("5 decide")
        if not isinstance(verdict, Permit):
            return judged, verdict
        with turn:
            if turn.known != known:
                judged = self._judge(action, caller, delegated, place, approval, marks)
                verdict = decide(action, judged.finding, approval)
            if isinstance(verdict, Permit):
                manifest = judged.tool.manifest
                now = self._clock.now()
                self._recalled.permitted(action.run, action.name, tuple(manifest.labels), now, manifest.cents)
                judged = msgspec.structs.replace(judged, permitted_at=now)
        return judged, verdict

    def _principal(self, delegated: Opened | None) -> str:
        return self._world.identified().agent.owner if delegated is None else delegated.mandate.principal

    def _judge(
        self, action: Action, caller: Caller, delegated: Opened | None, place: Place, approval: str | None, marks: Marks
    ) -> Judged:
        """Steps 2, 3 and 4: plain code that reads what is in memory."""
        told = self._world.identified()
        marks.at("2 identify")
        bundle = self._current_bundle()
        tool = bundle.inventory.tool(action.server, action.tool)
        if bundle.personal(tool) != (action.personal.marks if action.personal is not None else Marked()):
            raise Unverifiable(Reason.STALE_BUNDLE, "what is personal was changed while this was asked; ask again")
        if delegated is not None and tool.manifest.category != "protocol":
            delegated.authority.require(action.name, action.arguments)
        self._require_fresh(tool)
        if tool.manifest.risk >= RISK_HIGH:
            self._world.require_witnessed()
        self._require_closed(told, action.server)
        facts = self._recall(action, told, tool, delegated)
        marks.at("3 recall")
        finding = judge.evaluate(bundle, tool, action.arguments, facts, action.server, approved=approval is not None)
        marks.at("4 evaluate")
        mandate = facts.mandate
        digest = action.digest(told.agent.name, mandate.principal, mandate.tokens, tool.digest)
        return Judged(action, caller, bundle, tool, facts, digest, finding, approval, place)

    async def require_identified(self, caller: Caller) -> None:
        """Step 2 alone, for what answers without acting again."""
        self._world.identified()
        if caller.chain:
            await self._chains.open(caller.chain)

    # 3 recall

    def _current_bundle(self) -> Compiled:
        bundle = self._world.bundle
        if bundle is None:
            raise Unverifiable(Reason.NO_BUNDLE, "no bundle has been received and verified")
        if self._clock.now() >= bundle.content.not_after:
            raise Unverifiable(Reason.STALE_BUNDLE, f"version {bundle.content.version} ended at its not_after")
        return bundle

    def _require_fresh(self, tool: Tool) -> None:
        age = self._world.age_s()
        limit = feed.ALL_STALE_S if tool.manifest.effect == "read" else feed.SIDE_EFFECTS_STALE_S
        if age > limit:
            raise Unverifiable(
                Reason.STALE_FACTS, f"the gateway was last heard {age:.1f} s ago; the limit is {limit:.0f} s"
            )

    def _require_closed(self, told: feed.Facts, server: str) -> None:
        """No circuit breaker is open for this agent or this server."""
        now = self._clock.now()
        for target in (f"agent:{told.agent.name}", f"server:{server}"):
            until = told.breakers.get(target, 0)
            if now < until:
                detail = f"{target} is stopped for {until - now:.0f} s more"
                raise Unverifiable(Reason.CIRCUIT_OPEN, detail, int(until - now) + 1)

    def _recall(self, action: Action, told: feed.Facts, tool: Tool, delegated: Opened | None) -> Facts:
        now = self._clock.now()
        standings = [told.standing] if delegated is None else [told.standing, delegated.standing]
        return Facts(
            agent=told.agent,
            standing=lowest(standings),
            run=self._recalled.run(action.run, now),
            rate=self._recalled.rate(action.name, now),
            mandate=Mandate(told.agent.owner) if delegated is None else delegated.mandate,
            now_s=int(now),
            risk=tool.manifest.risk,
        )

    # 6 record

    async def _refuse(self, action: Action, no: Refusal, caller: Caller, judged: Judged | None) -> Refused:
        """Durable before the agent hears it."""
        self._count(action, no)
        known: dict[str, Any] = {"approval": judged.approval if judged else None, "caller": caller.authn}
        known["deed"] = await self._deed(action, caller, judged)
        if judged is not None:
            known["judgement"] = self._judgement(judged, "deny")
        refused = await self.refuse_with(no, action.decision_id, **known)
        if refused.audit is not None:
            self._reports.note(refused.audit.index, str(no.reason), action.server, no.policies)
        return refused

    def _count(self, action: Action, no: Refusal) -> None:
        """As the agent's own, if *no* says something of whoever asked: an outage must lock nobody out."""
        if no.reason in COUNTED:
            self._recalled.denied(action.run, self._clock.now())

    async def refuse_with(self, no: Refusal, decision_id: str, **known: Any) -> Refused:
        """Record *no* with what is *known*, then say it."""
        try:
            stamp = await self._ledger.append(report.refusal(no, decision_id, **known))
        except LedgerUnavailable as fault:
            return Refused(
                decision_id, None, msgspec.structs.replace(no, reason=Reason.LEDGER_UNAVAILABLE, detail=str(fault))
            )
        return Refused(decision_id, Audit(self._ledger.origin, stamp.seq), no)

    async def _deed(self, action: Action, caller: Caller, judged: Judged | None) -> entries.Deed:
        agent = self._world.facts.agent if self._world.facts else None
        if judged is not None:
            mandate = judged.mandate
        elif caller.chain:
            mandate = self._chains.claimed(caller.chain)
        else:
            mandate = Mandate(agent.owner if agent else "")
        beside = report.kept_beside(action)
        if beside is not None:
            await self._blobs.add(beside)
        return report.deed(
            action,
            agent=agent.name if agent else self._agent,
            principal=mandate.principal,
            authn=caller.authn,
            authority=mandate.tokens,
            action_digest=judged.action_digest if judged else "",
            valid=judged is not None,
        )

    def _judgement(self, judged: Judged, decision: entries.Decision) -> entries.Judgement:
        personal = judged.action.personal is not None
        return report.judgement(judged.bundle.digest, decision, judged.facts, judged.finding, personal=personal)

    async def _permitted(self, judged: Judged, permit: Permit, marks: Marks) -> Answer:
        """The intent is durable before anything leaves."""
        action = judged.action
        try:
            stamp = await self._ledger.append(
                entries.Intent(
                    await self._deed(action, judged.caller, judged),
                    self._judgement(judged, "allow"),
                    approval=judged.approval,
                    labels=list(judged.tool.manifest.labels),
                    cents=judged.tool.manifest.cents,
                )
            )
        except LedgerUnavailable as fault:
            self._recalled.ended()
            return Refused(action.decision_id, None, Refusal(6, Reason.LEDGER_UNAVAILABLE, str(fault)))
        except EntryTooLarge as bad:
            self._recalled.ended()
            return await self._refuse(action, Refusal(6, Reason.BODY_TOO_LARGE, str(bad)), judged.caller, None)
        marks.at("6 record")
        answer = await self._route(judged, permit, Audit(self._ledger.origin, stamp.seq))
        marks.at("8 route")
        return answer

    # 7 hold

    async def _hold(self, judged: Judged, hold: Hold) -> Answer:
        """The hold is recorded, then the request stands in the gateway's queue: a new one, or the same as before."""
        action = judged.action
        terms = hold.terms.to_json()
        try:
            stamp = await self._ledger.append(
                entries.Hold(await self._deed(action, judged.caller, judged), self._judgement(judged, "hold"), terms)
            )
        except LedgerUnavailable as fault:
            return Refused(action.decision_id, None, Refusal(6, Reason.LEDGER_UNAVAILABLE, str(fault)))
        audit = Audit(self._ledger.origin, stamp.seq)
        state = await self.approvals.ask(self._dispatch(judged, audit), action.payload.body)
        if isinstance(state, Refusal):
            return await self._refuse(action, state, judged.caller, None)
        match state["state"]:
            case "approved":
                # The stored bytes run, not these: they are what people saw.
                return await self.claim(state["id"], judged.caller, action.idempotency_key)
            case "denied":
                no = Refusal(7, Reason.APPROVAL_DENIED, state["reason"], hold.policies)
                return await self._refuse(action, no, judged.caller, None)
        self.on_held(state["id"])
        return Held(
            action.decision_id,
            audit,
            state["id"],
            state["state"],
            judged.action_digest,
            state["expires_at"],
            hold.sentences,
        )

    async def claim(self, approval: str, caller: Caller, key: str = "") -> Answer:
        """Run the stored action of *approval*: identify, recall, evaluate, decide again, then consume and route.
        *key*: the idempotency key of the request that found it approved; else it is that of the one that asked."""
        decision_id = new_id("dec")
        try:
            stored = await self.approvals.stored(approval)
            if isinstance(stored, Refusal):
                return await self.refuse_with(stored, decision_id, approval=approval)
            asked = stored.dispatch
            if caller.chain and caller.chain != asked.chain:
                raise Unverifiable(Reason.NOT_YOURS, "this was asked for under another authority")
            fresh = msgspec.structs.replace(asked, action_id=new_id("act"), decision_id=decision_id)
            made, _ = wire.action_of(fresh, stored.body)
            action = msgspec.structs.replace(
                made, idempotency_key=key or asked.idempotency_key, trace=new_span(made.trace)
            )
        except Unverifiable as bad:
            return await self.refuse_with(Refusal.of(7, bad), decision_id, approval=approval)
        # Under the authority under which it was asked for, whoever comes for it.
        as_asked = msgspec.structs.replace(caller, chain=asked.chain, proof=asked.proof)
        answered = await self.act(action, as_asked, asked.place, approval=approval)
        return msgspec.structs.replace(answered, edited=stored.edited) if isinstance(answered, Allowed) else answered

    # 8 route, 9 execute, 10 answer

    def _dispatch(self, judged: Judged, audit: Audit) -> Dispatch:
        action, facts = judged.action, judged.facts
        return Dispatch(
            action_id=action.id,
            decision_id=action.decision_id,
            run=action.run,
            agent=facts.agent.name,
            principal=facts.mandate.principal,
            protocol=action.protocol,
            server=action.server,
            tool=action.tool,
            method=action.payload.method,
            headers=list(action.payload.headers),
            action_digest=judged.action_digest,
            facts=judge.recorded_facts(facts),
            intent=str(audit),
            bundle=judged.bundle.digest,
            authority=facts.mandate.tokens,
            chain=judged.caller.chain,
            proof=judged.caller.proof,
            approval=judged.approval,
            subject=action.personal.key.id if action.personal is not None else "",
            place=judged.place,
            trace_id=action.trace.trace_id,
            span_id=action.trace.span_id,
            idempotency_key=action.idempotency_key,
        )

    async def _route(self, judged: Judged, permit: Permit, audit: Audit) -> Answer:
        action = judged.action
        started = self._clock.mono_ns()
        try:
            strong = judged.tool.manifest.risk >= RISK_HIGH
            came = await forward(self._identity, action, permit, self._dispatch(judged, audit), strong=strong)
        except Unverifiable as bad:
            self._outcome(action, "unknown", started, bad.reason, bad.detail)
            return Refused(action.decision_id, audit, Refusal.of(8, bad))
        except Exception as bug:
            _log.error("forwarding failed:\n%s", traceback.format_exc())
            no = Refusal(8, Reason.INTERNAL_ERROR, type(bug).__name__)
            self._outcome(action, "unknown", started, no.reason, no.detail)
            return Refused(action.decision_id, audit, no)
        except BaseException:
            # The agent went away; what it asked for may have happened.
            self._outcome(action, "unknown", started, Reason.OUTCOME_UNKNOWN, "the caller went away")
            raise
        if isinstance(came, Behind):
            known = self._learn(judged, came)
            self._not_sent(judged, came.refusal, started)
            kind = answers.Behind if known else Refused
            return kind(action.decision_id, audit, came.refusal)
        if isinstance(came, Refusal) and came.reason is Reason.STALE_FACTS:
            if action.personal is not None:
                self._subjects.forget()
            self._not_sent(judged, came, started)
            return Refused(action.decision_id, audit, came)
        if isinstance(came, Refusal):
            if action.personal is not None and came.reason is Reason.PERMIT_INVALID:
                self._subjects.forget()
            self._count(action, came)
            status: Status = "refused" if came.reason in NOTHING_HAPPENED else "unknown"
            self._outcome(action, status, started, came.reason, came.detail)
            return Refused(action.decision_id, audit, came)
        stream = self._stream(action, came, started)
        if stream is None:
            digest = sha256_hex(action.salt + came.body)
            self._done(action, came, started, End("complete", digest, len(came.body), came.body))
        return Allowed(
            action.decision_id,
            audit,
            came.node,
            came.status,
            came.headers,
            came.body,
            stream,
            approved=judged.approval is not None,
            trace=came.trace,
        )

    def _learn(self, judged: Judged, came: Behind) -> bool:
        """Whether what the gateway counted is known here now, for as long as deciding again takes."""
        action, now = judged.action, self._clock.now()
        holds_s = TOLD_S if judged.caller.proof is None else TOLD_AGENTS_S
        try:
            self._recalled.told(action.run, action.name, came.recalled, now, now + holds_s)
        except Unverifiable as bad:
            _log.error("what the gateway counted could not be kept: %s", bad)
            return False
        return True

    def _not_sent(self, judged: Judged, no: Refusal, started: int) -> None:
        """A gateway that knew more, or too little, sent nothing: so it does not count as a call."""
        action = judged.action
        self._recalled.took_back(action.name, judged.permitted_at, judged.tool.manifest.cents)
        self._outcome(action, "refused", started, no.reason, no.detail)

    def _stream(self, action: Action, came: Forwarded, started: int) -> Stream | None:
        """The answer as a stream whose end, whichever it is, is the outcome."""

        def on_end(end: End) -> None:
            if end.how == "complete":
                self._done(action, came, started, end)
            else:
                self._outcome(action, "unknown", started, Reason.OUTCOME_UNKNOWN, f"the stream was {end.how}")

        return None if came.reply is None else Stream(came.reply, on_end, action.salt)

    def _done(self, action: Action, came: Forwarded, started: int, end: End) -> None:
        status: Status = "failed"
        if came.status < 400:
            wrong = mcp.went_wrong(came.headers.get("Content-Type", ""), end.tail)
            status = "tool_error" if wrong else "done"
        self._outcome(action, status, started, came=came, digest=end.digest, size=end.size)

    def _outcome(
        self,
        action: Action,
        status: Status,
        started: int,
        reason: Reason | None = None,
        detail: str = "",
        *,
        came: Forwarded | None = None,
        digest: str = "",
        size: int = 0,
    ) -> None:
        """Follows the effect, so nobody waits for it; if it cannot be written the ledger is poisoned anyway."""
        self._recalled.ended()
        entry = entries.Outcome(
            action_id=action.id,
            decision_id=action.decision_id,
            run=action.run,
            status=status,
            reason=str(reason or ""),
            detail=report.detail(Refusal(10, reason, detail), personal=action.personal is not None)
            if reason
            else detail,
            node=came.node if came else "",
            upstream_status=came.status if came else 0,
            duration_us=(self._clock.mono_ns() - started) // 1000,
            response_sha256=digest,
            response_bytes=size if action.personal is None else padded(size),
        )
        try:
            self._ledger.append_later(entry)
        except LedgerUnavailable as fault:
            _log.error("an outcome could not be recorded: %s", fault)


_AT_IDENTIFY: Final = frozenset(
    {Reason.KILLED, Reason.REVOKED, Reason.NOT_YOURS, Reason.DELEGATION_INVALID, Reason.AUTHORITY_EXCEEDED}
)


def _step_of(reason: Reason) -> Any:
    """At which step a fact was found missing or an action unknown."""
    if reason in _AT_IDENTIFY:
        return 2
    return 4 if reason is Reason.ARGUMENTS_INVALID else 3
