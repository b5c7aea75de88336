"""A question to the ledger as a page asks it: the fields of its form, and the links that change one of them."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlencode

from gateway.questions import MAX_ROWS, Filter
from gateway.state import Person
from trust.ledger import moments
from trust.reasons import Reason, Unverifiable, visible

PAGE: Final = 50
TEXTS: Final = (
    "agent",
    "tool",
    "decision",
    "reason",
    "policy",
    "run",
    "owner",
    "subject",
    "principal",
    "server",
    "node",
    "approval",
    "decision_id",
    "action_id",
    "kind",
    "by",
    "origin",
)
"""Of :class:`gateway.questions.Filter`, in the order in which the form shows them."""
_OTHERS: Final = ("since", "until", "after", "oldest_first", "limit")


class Asked:
    """What a page was asked, as it was asked (``since`` may be ``7d``), and as the index understands it; who is of a
    namespace asks about its agents."""

    def __init__(self, fields: dict[str, str], now_us: int, person: Person) -> None:
        unknown = [name for name in fields if name not in (*TEXTS, *_OTHERS)]
        if unknown:
            known = ", ".join((*TEXTS, *_OTHERS))
            raise Unverifiable(Reason.MALFORMED_REQUEST, f"{visible(unknown[0])}: expected one of {known}")
        self.fields = fields
        given: dict[str, Any] = {name: fields[name] for name in TEXTS if name in fields}
        limit = fields.get("limit", str(PAGE))
        if not limit.isdecimal() or not 1 <= int(limit) <= MAX_ROWS:
            raise Unverifiable(Reason.MALFORMED_REQUEST, f"limit: expected 1 to {MAX_ROWS}")
        try:
            since, until = (moments.parse(fields[n], now_us) if n in fields else 0 for n in ("since", "until"))
        except ValueError as bad:
            raise Unverifiable(Reason.MALFORMED_REQUEST, visible(str(bad))) from None
        self.filter = Filter(
            **given,
            namespace=person.namespace,
            since_us=since,
            until_us=until,
            after=fields.get("after", ""),
            oldest_first=fields.get("oldest_first") == "true",
            limit=int(limit),
        )

    def get(self, name: str) -> str:
        return self.fields.get(name, "")

    def query(self, **changed: str) -> str:
        """The same question with some fields changed (empty: left out), from its first page."""
        kept = {name: value for name, value in self.fields.items() if name != "after"} | changed
        return urlencode({name: value for name, value in kept.items() if value})

    def chosen(self) -> list[tuple[str, str]]:
        """What narrows the question."""
        return [(name, self.fields[name]) for name in (*TEXTS, "since", "until") if name in self.fields]
