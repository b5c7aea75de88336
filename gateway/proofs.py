"""What a guest of a shared sidecar signed, checked again: the gateway believes the agent, not the sidecar."""

from __future__ import annotations

from typing import Any

import msgspec

from edge.clock import SystemClock
from edge.shared import Shared
from gateway.registry import Registry
from trust.action import Action
from trust.canonical import jcs, read_object
from trust.identity import httpsig
from trust.identity.httpsig import Signed
from trust.identity.keys import unb64url
from trust.identity.replay import Nonces
from trust.identity.wit import Workload
from trust.reasons import Reason, Unverifiable
from trust.wire import Dispatch, Place, Proof


class Proofs:
    """Of one gateway process. A signature is good for one action, or for the approval that it asked for."""

    def __init__(self, registry: Registry, clock: SystemClock, shared: Shared | None) -> None:
        self._registry = registry
        self._clock = clock
        self._shared = shared
        self._nonces = Nonces()
        self._not_before = clock.now() if shared is None else 0.0

    async def require(self, dispatch: Dispatch, action: Action, sidecar: str, waited: Proof | None) -> Workload:
        """Who signed, if the agent itself asked *sidecar* for *action*; or :class:`Unverifiable`. *waited*: the proof
        with which it asked for the approval that it comes with now; that one was fresh then, and is bound to it."""
        proof = dispatch.proof
        if proof is None:
            raise _refuse(f"{dispatch.agent} shares the sidecar of {sidecar}, so its own signature must come along")
        claim = httpsig.read_base(proof.base.encode("ascii", "replace"))
        now = self._clock.now()
        workload = self._registry.domain_workload(proof.wit, now if waited is None else float(claim.created_at))
        if (workload.kind, workload.name) != ("agent", dispatch.agent):
            raise _refuse("signed by another agent")
        self._registry.require_current(workload)
        workload.key.verify(unb64url(proof.signature), claim.base)
        if claim.audience != f"wimse://{workload.trust_domain}/sidecar/{sidecar}":
            raise _refuse("made for another sidecar")
        _require_same(proof, claim, dispatch, action)
        if waited is None:
            await self._spend(claim, now)
        elif proof != waited:
            raise _refuse("another one than that with which the approval was asked for")
        return workload

    async def _spend(self, claim: Signed, now: float) -> None:
        expires = claim.created_at + httpsig.MAX_LIFE_S
        if not claim.created_at - httpsig.CLOCK_SKEW_S <= now < expires or claim.created_at < int(self._not_before):
            raise _refuse("outside of its time")
        self._nonces.spend(claim.nonce, expires, now)
        if self._shared is not None:
            await self._shared.spend(f"proof:{claim.nonce}", claim.created_at, expires, now)


def _require_same(proof: Proof, claim: Signed, dispatch: Dispatch, action: Action) -> None:
    """What was signed is just this: the address, the delegation chain, and the request with everything that counts."""
    if claim.component("@method") != dispatch.method and action.protocol == "mcp":
        raise _refuse("another method was signed")
    if claim.component("licet-delegation") != dispatch.chain:
        raise _refuse("another delegation chain was signed, or none")
    digest, target = claim.component("content-digest"), claim.component("@request-target")
    if action.protocol == "mcp":
        body = action.payload.body
        if target != f"/mcp/{action.server}" or digest != (httpsig.content_digest(body) if body else ""):
            raise _refuse("another request was signed")
        return
    if target != "/v1/actions" or digest != httpsig.content_digest(proof.body.encode()):
        raise _refuse("another request was signed")
    _require_asked(read_object(proof.body.encode()), dispatch, action)


def _require_asked(asked: dict[str, Any], dispatch: Dispatch, action: Action) -> None:
    """A native request asks for this tool, these arguments, this place, and this run if it names one."""
    arguments, place = asked.get("args", {}), asked.get("place", {})
    if asked.get("tool") != action.name or not isinstance(arguments, dict) or not isinstance(place, dict):
        raise _refuse("another tool was asked for")
    if jcs(arguments) != action.canonical_arguments:
        raise _refuse("other arguments were asked for")
    if asked.get("run") not in (None, dispatch.run):
        raise _refuse("another run was named")
    if {**msgspec.to_builtins(Place()), **place} != msgspec.to_builtins(dispatch.place):
        raise _refuse("another place was asked for")


def _refuse(detail: str) -> Unverifiable:
    return Unverifiable(Reason.PERMIT_INVALID, f"the agent's own signature: {detail}")
