"""DIDs of workloads: ``did:web`` names under the trust domain, and the documents that list their keys.

Source: W3C DID 1.0, the did:web method, and Multikey of "Controlled Identifiers". The document of
``did:web:example.com:agents:a1`` lies at ``https://example.com/agents/a1/did.json``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from trust.identity.keys import PublicKey
from trust.identity.wit import WorkloadKind

CONTEXT: Final = ["https://www.w3.org/ns/did/v1", "https://w3id.org/security/multikey/v1"]


def of(trust_domain: str, kind: WorkloadKind, name: str) -> str:
    """The DID of a workload; a colon of a port is escaped, as the method asks."""
    return f"{domain(trust_domain)}:{kind}s:{name}"


def domain(trust_domain: str) -> str:
    """The DID of the trust domain itself."""
    return f"did:web:{trust_domain.replace(':', '%3A')}"


def multibase(key: PublicKey) -> str:
    """The key as Multikey has it: what follows ``did:key:`` in its did:key."""
    return key.did.removeprefix("did:key:")


def document(did: str, keys: Sequence[PublicKey], *, delegates: bool) -> dict[str, Any]:
    """The DID document with *keys*, the current one first. What signs requests (``authentication``) and what hands
    authority on (``capabilityDelegation``) are listed apart; only an agent *delegates*. Without keys it is
    deactivated."""
    methods = [
        {"id": f"{did}#{multibase(key)}", "type": "Multikey", "controller": did, "publicKeyMultibase": multibase(key)}
        for key in keys
    ]
    names = [method["id"] for method in methods]
    return {
        "@context": CONTEXT,
        "id": did,
        "verificationMethod": methods,
        "authentication": names,
        "assertionMethod": names,
        "capabilityDelegation": names if delegates else [],
    }
