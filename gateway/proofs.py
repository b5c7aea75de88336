"""What a guest of a shared sidecar signed, checked again: the gateway believes the agent, not the sidecar."""

from __future__ import annotations

from edge.clock import SystemClock
from gateway.registry import Registry
from trust.action import Action
from trust.canonical import digest_of, read_object
from trust.identity import httpsig
from trust.identity.keys import PublicKey, unb64url
from trust.identity.replay import Nonces
from trust.reasons import Reason, Unverifiable
from trust.wire import Dispatch, Proof


class Proofs:
    """Of one gateway process. Each signature is good for one action, and for the approval that it asked for."""

    def __init__(self, registry: Registry, issuer: PublicKey, clock: SystemClock) -> None:
        self._registry = registry
        self._issuer = issuer
        self._clock = clock
        self._nonces = Nonces()

    def require(self, dispatch: Dispatch, action: Action, agent: str, sidecar: str) -> None:
        """Nothing, if *agent* itself asked *sidecar* for *action*; or :class:`Unverifiable`."""
        proof = dispatch.proof
        if proof is None:
            raise _refuse(f"{agent} shares the sidecar of {sidecar}, so its own signature must come along")
        now = self._clock.now()
        claim = httpsig.read_base(proof.base.encode("ascii", "replace"))
        # An approval took long; what was signed then was checked then, and is bound to it by the action's digest.
        at = float(claim.created_at) if dispatch.approval is not None else now
        workload = self._registry.domain_workload(proof.wit, at)
        if (workload.kind, workload.name) != ("agent", agent):
            raise _refuse("signed by another agent")
        self._registry.require_current(workload)
        workload.key.verify(unb64url(proof.signature), claim.base)
        if claim.audience != f"wimse://{workload.trust_domain}/sidecar/{sidecar}":
            raise _refuse("made for another sidecar")
        if not claim.created_at - httpsig.CLOCK_SKEW_S <= at < claim.created_at + httpsig.MAX_LIFE_S:
            raise _refuse("outside of its time")
        _require_same(proof, claim.digest, action)
        if dispatch.approval is None:
            self._nonces.spend(claim.nonce, claim.created_at + httpsig.MAX_LIFE_S, now)


def _require_same(proof: Proof, digest: str, action: Action) -> None:
    """The signed body is the payload itself (MCP), or a native request that asks for just this action."""
    if digest == httpsig.content_digest(action.payload.body):
        return
    body = proof.body.encode()
    if digest != httpsig.content_digest(body):
        raise _refuse("its digest is not that of the request")
    asked = read_object(body)
    arguments = asked.get("args", {})
    if asked.get("tool") != action.name or not isinstance(arguments, dict):
        raise _refuse("another tool was asked for")
    if digest_of(arguments) != action.arguments_digest:
        raise _refuse("other arguments were asked for")


def _refuse(detail: str) -> Unverifiable:
    return Unverifiable(Reason.PERMIT_INVALID, f"the agent's own signature: {detail}")
