"""What a sidecar asks to be routed: believed as far as it is proved, and decided again.

A sidecar's permit is believed only as far as its signature goes: which agent says so. What the bytes are, for whom and
how far the agent acts, and what policy says of it now, is found out here.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from edge.clock import SystemClock
from edge.http import Incoming
from edge.tracing import UNSEEN, Marks
from gateway.approvals.desk import Desk
from gateway.bundles import Bundles
from gateway.callers import Sender
from gateway.delegations import Delegations, delegated_by
from gateway.proofs import Proofs
from gateway.records import Records
from gateway.registry import Registry
from gateway.standings import Standings
from gateway.stops import Stops
from gateway.subjects import Subjects
from trust import mcp, wire
from trust.action import Action
from trust.canonical import JsonObject
from trust.facts import Agent, Mandate, cedar_time, trust_context
from trust.identity.wit import Workload
from trust.ledger import entries
from trust.ledger.shipment import is_log_of
from trust.personal import Marked, Personal
from trust.policy import judge
from trust.policy.bundle import Compiled
from trust.policy.inventory import Tool
from trust.reasons import Reason, Unverifiable, visible
from trust.recalled import Recalled
from trust.standing.rules import COUNTED
from trust.standing.score import Standing
from trust.trace import NO_TRACE, Trace
from trust.verdict import Hold, Permit, Refusal, decide
from trust.wire import Dispatch


class Asked(msgspec.Struct, frozen=True):
    """One dispatch whose statement agrees with its bytes. ``standing`` and ``delegators`` are those of the moment;
    ``signers`` have the keys that all this rests on: the sidecar's, and that of an agent that holds its own. ``trace``:
    the gateway's own span, if somebody collects spans; ``marks``: when its parts ended; ``recalled``: what its agent
    did, if the sidecar did not know all of that; ``namespace``: of the agent; ``at_home``: that runs the server, whose
    word on risk and outcome it is."""

    dispatch: Dispatch
    action: Action
    agent: Agent
    bundle: Compiled
    sender: Sender
    signers: tuple[Workload, ...]
    mandate: Mandate
    delegators: tuple[Agent, ...]
    standing: Standing
    trace: Trace = NO_TRACE
    marks: Marks = UNSEEN
    recalled: Recalled | None = None
    namespace: str = ""
    at_home: bool = False

    def knowing(self, known: Recalled) -> Asked:
        """With facts in which the agent did at least what is *known* here."""
        context = self.dispatch.facts.get("context")
        if not isinstance(context, dict):
            return self  # which is not decided
        more = known.within(context)
        if more is context:
            return self
        dispatch = msgspec.structs.replace(self.dispatch, facts={**self.dispatch.facts, "context": more})
        return msgspec.structs.replace(self, dispatch=dispatch, recalled=known)

    @property
    def span(self) -> Trace:
        """What the node's own span lies below."""
        return self.trace if self.trace.trace_id else self.action.trace


class Edited(msgspec.Struct, frozen=True):
    """A stored request with other arguments; ``hold``: whom policy asks for that, None if it asks nobody."""

    dispatch: Dispatch
    action: Action
    hold: Hold | None


class Statements:
    """Of one gateway."""

    def __init__(
        self,
        records: Records,
        registry: Registry,
        stops: Stops,
        standings: Standings,
        delegations: Delegations,
        proofs: Proofs,
        subjects: Subjects,
        bundles: Bundles,
        desk: Desk,
        clock: SystemClock,
    ) -> None:
        self._records = records
        self._registry = registry
        self._stops = stops
        self._standings = standings
        self._delegations = delegations
        self._proofs = proofs
        self._subjects = subjects
        self._bundles = bundles
        self._desk = desk
        self._clock = clock

    async def read(self, incoming: Incoming, sender: Sender) -> Asked:
        """The dispatch in *incoming*, or :class:`Unverifiable`. What an agent that is known asked in vain counts."""
        dispatch, body = wire.decode(incoming.body, Dispatch)
        self._records.require_heard()
        try:
            return await self._believed(dispatch, body, sender)
        except Unverifiable as bad:
            await self._in_vain(dispatch, sender, bad)
            bad.personal = self._may_be_personal(dispatch)
            raise

    def _may_be_personal(self, dispatch: Dispatch) -> bool:
        bundle = self._bundles.for_agent(dispatch.agent).compiled
        server = bundle.inventory.servers.get(dispatch.server) if bundle is not None else None
        tool = server.tools.get(dispatch.tool) if server is not None else None
        if bundle is None or tool is None:
            return bundle is None or bundle.any_personal
        return bundle.personal(tool).anything

    async def _in_vain(self, dispatch: Dispatch, sender: Sender, bad: Unverifiable) -> None:
        """Only against who signed this itself: what its sidecar says of a guest proves nothing."""
        bundle = self._bundles.for_agent(dispatch.agent).compiled
        if sender.workload.kind != "agent" or sender.workload.name != dispatch.agent or bundle is None:
            return
        if bad.reason in COUNTED:
            index = self._records.ledger.size
            refused = entries.Refusals(str(bad.reason), visible(dispatch.server, 64), 1, COUNTED[bad.reason] or "minor")
            origin = self._records.ledger.origin
            await self._standings.refused(entries.Reported(dispatch.agent, origin, index, index, [refused]))

    async def _believed(self, dispatch: Dispatch, body: bytes, sender: Sender) -> Asked:
        record = self._registry.require_speaks_for(sender.workload, dispatch.agent)
        bundle = self._bundles.of(record.namespace).compiled
        if bundle is None:
            raise Unverifiable(Reason.NO_BUNDLE, "no bundle is active")
        agent = record.agent
        signers: tuple[Workload, ...] = (sender.workload,)
        if agent.name != sender.workload.name:
            waited = self._desk.proof_of(dispatch)
            signed = self._desk.asked_first(dispatch) or (dispatch, body)
            asked, _ = wire.action_of(*signed)
            signers += (await self._proofs.require(signed[0], asked, sender.workload.name, waited),)
        action, tool, mandate, delegators, standing = self._understood(dispatch, body, agent, bundle)
        log, _, _ = dispatch.intent.partition("#")
        if not is_log_of(log, sender.workload.trust_domain, "sidecar", sender.workload.name):
            raise Unverifiable(Reason.PERMIT_INVALID, "the intent is not in the sender's own ledger")
        if dispatch.principal != mandate.principal:
            raise Unverifiable(Reason.PERMIT_INVALID, "the principal is not the one for whom this agent acts")
        if action.digest(agent.name, mandate.principal, mandate.tokens, tool.digest) != dispatch.action_digest:
            raise Unverifiable(Reason.PERMIT_INVALID, "the action digest is not that of these bytes")
        at_home = self._bundles.runs(record.namespace, action.server)
        return Asked(
            dispatch,
            action,
            agent,
            bundle,
            sender,
            signers,
            mandate,
            delegators,
            standing,
            namespace=record.namespace,
            at_home=at_home,
        )

    def _understood(
        self, dispatch: Dispatch, body: bytes, agent: Agent, bundle: Compiled
    ) -> tuple[Action, Tool, Mandate, tuple[Agent, ...], Standing]:
        """The action that the bytes are, and under whose authority it is."""
        action, message = wire.action_of(dispatch, body)
        tool = bundle.inventory.tool(action.server, action.tool)
        _require_own_headers(action, message, tool)
        mandate, delegators, standing = self._mandate(dispatch, agent, action, tool)
        sealed = self._sealed(action, agent.name, mandate, bundle.personal(tool), dispatch.subject)
        return sealed, tool, mandate, delegators, standing

    async def edited(self, dispatch: Dispatch, body: bytes, arguments: JsonObject) -> Edited:
        """The stored request with other *arguments*, judged as if the agent asked for that now; or
        :class:`Unverifiable` if that is nothing that a person could permit."""
        bundle = self._bundles.for_agent(dispatch.agent).compiled
        if bundle is None:
            raise Unverifiable(Reason.NO_BUNDLE, "no bundle is active")
        agent = self._registry.agent(dispatch.agent).agent
        changed = mcp.with_arguments(body, arguments)
        tool = bundle.inventory.tool(dispatch.server, dispatch.tool)
        payload = mcp.payload(mcp.read_message(changed), changed, _plain(dispatch.headers), tool)
        dispatch = msgspec.structs.replace(dispatch, headers=list(payload.headers))
        subject = await self._key_for(dispatch, changed, agent, bundle)
        dispatch = msgspec.structs.replace(dispatch, subject=subject)
        action, tool, mandate, delegators, standing = self._understood(dispatch, changed, agent, bundle)
        digest = action.digest(agent.name, mandate.principal, mandate.tokens, tool.digest)
        dispatch = msgspec.structs.replace(dispatch, action_digest=digest)
        verdict = self._judged(dispatch, action, bundle, agent, delegators, standing, mandate)
        if isinstance(verdict, Refusal):
            raise Unverifiable(verdict.reason, f"with these arguments nobody could permit it: {verdict.detail}")
        return Edited(dispatch, action, verdict if isinstance(verdict, Hold) else None)

    async def _key_for(self, dispatch: Dispatch, body: bytes, agent: Agent, bundle: Compiled) -> str:
        """What was edited may be about somebody else: who that is has a key before anything of it is kept. Its id."""
        action, _ = wire.action_of(dispatch, body)
        tool = bundle.inventory.tool(action.server, action.tool)
        marks = bundle.personal(tool)
        if not marks.anything:
            return ""
        mandate = self._mandate(dispatch, agent, action, tool)[0]
        return (await self._subjects.obtain(marks.about(action.arguments, mandate.principal), agent.name)).id

    def _sealed(self, action: Action, agent: str, mandate: Mandate, marks: Marked, asked: str) -> Action:
        """Recorded here as by the sidecar: what is personal under the same key, so with the same digests."""
        if not marks.anything:
            return action
        key = self._subjects.known(marks.about(action.arguments, mandate.principal))
        if key is None or key.id != asked:
            raise Unverifiable(
                Reason.STALE_FACTS, "whom this is about was erased, or marked, in this moment; ask again"
            )
        return msgspec.structs.replace(action, personal=Personal(marks, key.of(agent)))

    def _mandate(
        self, dispatch: Dispatch, agent: Agent, action: Action, tool: Tool
    ) -> tuple[Mandate, tuple[Agent, ...], Standing]:
        """For whom the agent acts, through whom, and how far all of them together are trusted."""
        delegated = self._delegations.open(dispatch.chain, agent.name) if dispatch.chain else None
        if dispatch.authority != (delegated.mandate.tokens if delegated else ()):
            raise Unverifiable(Reason.PERMIT_INVALID, "the statement names another delegation chain than it carries")
        if delegated is None:
            return Mandate(agent.owner), (), self._standings.standing(agent.name)
        if tool.manifest.category != "protocol":
            delegated.authority.require(action.name, action.arguments)
        return delegated.mandate, delegated.delegators, delegated.standing

    def judge(self, asked: Asked, *, approved: bool) -> Permit | Hold | Refusal:
        """Policy, now, with the gateway's own word on trust: for whoever asks, and for everybody who delegated."""
        try:
            self.require_believed(asked)
        except Unverifiable as bad:
            return Refusal.of(8, bad)
        return self._judged(
            asked.dispatch,
            asked.action,
            asked.bundle,
            asked.agent,
            asked.delegators,
            asked.standing,
            asked.mandate,
            approved=approved,
        )

    def _judged(
        self,
        dispatch: Dispatch,
        action: Action,
        bundle: Compiled,
        agent: Agent,
        delegators: tuple[Agent, ...],
        standing: Standing,
        mandate: Mandate,
        *,
        approved: bool = False,
    ) -> Permit | Hold | Refusal:
        try:
            context = self._context(dispatch, action, bundle, standing, mandate)
            tool = bundle.inventory.tool(action.server, action.tool)
            finding = judge.together(
                [
                    judge.evaluate_context(bundle, action.server, tool, action.arguments, one, context, approved)
                    for one in (agent, *delegators)
                ]
            )
        except Unverifiable as bad:
            return Refusal.of(8, bad)
        verdict = decide(action, finding, dispatch.approval)
        if isinstance(verdict, Refusal):
            return Refusal(8, verdict.reason, verdict.detail, verdict.policies, verdict.errors)
        return verdict

    def require_believed(self, asked: Asked) -> None:
        """Nobody of the chain was stopped, and nothing that it rests on revoked, in the meantime."""
        for signer in asked.signers:
            self._registry.require_not_cut_off(signer)
        if not asked.sender.strong:
            self._stops.require_believed([("session", asked.sender.claim.session)])
        self._stops.require(asked.agent)
        for agent in asked.delegators:
            self._stops.require(agent, delegated_by(agent))
        if asked.dispatch.chain:
            self._delegations.open(asked.dispatch.chain, asked.agent.name)

    def _context(
        self, dispatch: Dispatch, action: Action, bundle: Compiled, standing: Standing, mandate: Mandate
    ) -> JsonObject:
        """The facts of the sidecar, with the gateway's own word where it has one."""
        context = dispatch.facts.get("context")
        if not isinstance(context, dict):
            raise Unverifiable(Reason.PERMIT_INVALID, "the statement carries no facts")
        tool = bundle.inventory.tool(action.server, action.tool)
        run = context.get("run")
        if not isinstance(run, dict) or run.get("id") != action.run:
            raise Unverifiable(Reason.PERMIT_INVALID, "the facts are those of another run")
        own: JsonObject = {
            "trust": trust_context(standing),
            "risk": tool.manifest.risk,
            "authority": mandate.context,
            "now": cedar_time(int(self._clock.now())),
        }
        return {**context, **own}

    def require_unchanged(self, asked: Asked) -> None:
        """What was awaited may have taken long: a kill, a revocation or another bundle since then ends this attempt."""
        self.require_believed(asked)
        if asked.bundle is not self._bundles.for_agent(asked.agent.name).compiled:
            raise Unverifiable(Reason.PERMIT_INVALID, "policy was changed while this waited; ask again")

    def present_hold(self, asked: Asked) -> Hold | None:
        """Whom policy would ask today, if anybody."""
        verdict = self.judge(asked, approved=False)
        return verdict if isinstance(verdict, Hold) else None

    def stopped(self, asked: Asked) -> str:
        """Why what runs must be ended, if it must."""
        try:
            self.require_believed(asked)
        except Unverifiable as bad:
            return f"{bad.reason}: {bad.detail}"
        return ""


def _plain(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Without those that repeat arguments: they are made anew."""
    return {name: value for name, value in headers if not name.startswith(mcp.PARAM_PREFIX)}


def _require_own_headers(action: Action, message: mcp.Message, tool: Tool) -> None:
    """The headers that go to the server are those that its message makes; nothing rides along."""
    headers = dict(action.payload.headers)
    mcp.require_headers_agree(message, headers)
    if mcp.payload(message, action.payload.body, headers, tool) != action.payload:
        raise Unverifiable(Reason.PERMIT_INVALID, "the headers are not those of the message")
