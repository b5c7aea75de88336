"""The one door to the Cedar engine (cedarpy).

Traps that this door closes: a ``forbid`` whose condition errors is skipped by Cedar, which then says Allow
with ``errors`` set; a request that cannot be built gives NoDecision without an exception; policy text given
per call is parsed per call. So an answer from here always carries its errors, an answer that is not Allow is
never mistaken for one, and only parsed handles are accepted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import msgspec
from cedarpy import (
    Entities,
    PolicySet,
    Schema,
    _internal,
    format_policies,
    is_authorized_partial,
    pst,
    validate_policies,
)

__all__ = ["Answer", "CedarError", "Entities", "PolicySet", "Schema", "Uid", "ask", "format_policies", "pst"]

_POLICY_IN_ERROR: Final = re.compile(r"policy `([^`]*)`")


class CedarError(ValueError):
    """Cedar could not read a text that it was given."""


class Uid(NamedTuple):
    """An entity: type and id. A tuple, because it is a key on the hot path."""

    type: str
    id: str

    def __str__(self) -> str:
        return f'{self.type}::"{self.id}"'


class Answer(msgspec.Struct, frozen=True):
    """Cedar's answer. ``allowed`` alone is no permission: any error refuses."""

    allowed: bool
    policies: tuple[str, ...]
    errors: tuple[str, ...]

    @property
    def clean_allow(self) -> bool:
        return self.allowed and not self.errors


class _Diagnostics(msgspec.Struct):
    reason: list[str] = []
    errors: list[str] = []


class _Response(msgspec.Struct):
    decision: str | None
    diagnostics: _Diagnostics


_decoder = msgspec.json.Decoder(_Response)


def _answer(raw: str) -> Answer:
    response = _decoder.decode(raw)
    errors = response.diagnostics.errors
    if response.decision not in ("Allow", "Deny") and not errors:
        errors = [f"Cedar gave {response.decision} instead of a decision"]
    return Answer(
        allowed=response.decision == "Allow",
        policies=tuple(sorted(response.diagnostics.reason)),
        errors=tuple(sorted(errors)),
    )


def ask(
    policies: PolicySet,
    entities: Entities,
    principal: Uid,
    action: str,
    resource: Uid,
    context: bytes,
    schema: Schema | None = None,
) -> Answer:
    """Evaluate one request; *context* is Cedar JSON. The ids in the answer are those of *policies*."""
    request = {
        "principal": {"type": principal.type, "id": principal.id},
        "action": {"type": "Action", "id": action},
        "resource": {"type": resource.type, "id": resource.id},
        "context": context.decode("utf-8"),
    }
    return _answer(_internal.is_authorized(request, policies, entities._inner, schema, False))


def may_ever_allow(policies: PolicySet, entities: Entities, principal: Uid, action: str, resource: Uid) -> bool:
    """Whether some context could be allowed: what an agent may be shown. Never a permission."""
    request = {
        "principal": str(principal),
        "action": f'Action::"{action}"',
        "resource": str(resource),
        "context": None,
    }
    return str(is_authorized_partial(request, policies, entities).decision) != "Decision.Deny"


def policy_of_error(error: str) -> str:
    """The id of the policy that *error* is about, or ``""``."""
    match = _POLICY_IN_ERROR.search(error)
    return match[1] if match else ""


def parse_policies(text: str) -> pst.PolicySet:
    """Typed nodes of *text*, or :class:`CedarError`."""
    try:
        return PolicySet.from_str(text).to_pst()
    except ValueError as bad:
        raise CedarError(str(bad)) from None


def policy_set(nodes: pst.PolicySet) -> PolicySet:
    """An engine handle for *nodes*."""
    return PolicySet.from_pst(nodes)


def parse_schema(text: str) -> Schema:
    try:
        return Schema.from_str(text)
    except ValueError as bad:
        raise CedarError(str(bad)) from None


def parse_entities(entities: Sequence[dict[str, Any]], schema: Schema) -> Entities:
    """A handle that holds *entities* and the schema's action groups, checked against *schema*."""
    try:
        return Entities.from_json_str(msgspec.json.encode(entities).decode(), schema)
    except ValueError as bad:
        raise CedarError(str(bad)) from None


@dataclass(frozen=True, slots=True)
class Invalid:
    """One complaint of Cedar's validator: the positional id of the policy in the text, and what is wrong."""

    policy: str
    message: str


def validate(text: str, schema: Schema) -> list[Invalid]:
    """Everything that Cedar's strict validator has against the policies in *text*."""
    result = validate_policies(text, schema)
    return [Invalid(error.policy_id, error.error) for error in result.errors]
