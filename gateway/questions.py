"""What can be asked of the index: filters, pages, and what SQL says of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import msgspec

from trust.ledger.rows import Row
from trust.reasons import Reason, Unverifiable

_KEY: Final = re.compile(r"sub_[0-9a-zA-Z]{1,40}")
MAX_ROWS: Final = 1_000
"""In one page."""
TEXTS: Final = (
    "kind", "decision", "reason", "agent", "principal", "owner", "run", "decision_id", "action_id", "approval",
    "server", "tool", "node", "by", "subject",
)  # fmt: skip
COLUMNS: Final = ("place", "wall_us", "step", *TEXTS, "policies", "words")


class Filter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is asked for; what is empty is not asked. ``since_us`` and ``until_us``: Unix microseconds, the latter
    excluded. ``origin``: a log, or all below a name (``licet.local/gateway/*``). ``tool`` is a name, or
    ``server/tool``. ``namespace``: of its agents only. ``after``: the ``next`` of the page before."""

    origin: str = ""
    kind: str = ""
    decision: str = ""
    reason: str = ""
    agent: str = ""
    principal: str = ""
    owner: str = ""
    run: str = ""
    decision_id: str = ""
    action_id: str = ""
    approval: str = ""
    server: str = ""
    tool: str = ""
    node: str = ""
    by: str = ""
    subject: str = ""
    policy: str = ""
    namespace: str = ""
    since_us: int = 0
    until_us: int = 0
    limit: int = 50
    after: str = ""
    oldest_first: bool = False

    def __post_init__(self) -> None:
        """A question is recorded: a name in it would stand there for ever."""
        if self.subject and not _KEY.fullmatch(self.subject):
            wrong = "subject: expected the id of a key (sub_…), as `licet audit subject NAME` tells it"
            raise Unverifiable(Reason.MALFORMED_REQUEST, wrong)


class Page(msgspec.Struct, frozen=True):
    """``next`` continues; empty when there is no more."""

    rows: list[Row]
    next: str = ""


AgentsOf = Callable[[str], list[str]]
"""The agents of a namespace."""


def conditions(asked: Filter, agents_of: AgentsOf) -> tuple[list[str], list[Any]]:
    """What SQL says of *asked*; every value is a parameter."""
    where: list[str] = []
    values: list[Any] = []
    server, slash, tool = asked.tool.partition("/")
    texts = {name: getattr(asked, name) for name in TEXTS}
    if slash:
        texts |= {"server": server, "tool": tool}
    for name, value in texts.items():
        if value:
            where.append(f'e."{name}" = ? AND e."{name}" <> \'\'')  # the indices hold nothing that is empty
            values.append(value)
    below = asked.origin.removesuffix("*") if asked.origin.endswith("/*") else ""
    bounds: tuple[tuple[str, str | int], ...] = (
        ("s.origin = ?", "" if below else asked.origin),
        ("s.origin >= ?", below),
        ("s.origin < ?", below and below + "\U0010ffff"),
        ("e.wall_us >= ?", asked.since_us),
        ("e.wall_us < ?", asked.until_us),
    )
    for bound, value in bounds:
        if value:
            where.append(bound)
            values.append(value)
    if asked.policy:
        where.append("(e.source, e.place) IN (SELECT source, place FROM policy WHERE policy = ?)")
        values.append(asked.policy)
    if asked.namespace:
        where.append("e.agent <> '' AND e.agent IN (SELECT value FROM json_each(?))")
        values.append(among(asked.namespace, agents_of))
    return where, values


def among(namespace: str, agents_of: AgentsOf) -> str:
    """The agents of *namespace*, as a value of ``json_each``."""
    return msgspec.json.encode(agents_of(namespace)).decode()


def page(found: list[tuple[Any, ...]], limit: int) -> Page:
    """At most *limit* of what was found, and where it goes on if there is more."""
    more = found[limit - 1] if len(found) > limit else None
    return Page([row_of(one) for one in found[:limit]], f"{more[3]}.{more[1]}.{more[2]}" if more is not None else "")


def where(conditions: list[str]) -> str:
    """All of them, or nothing."""
    return "WHERE " + " AND ".join(conditions) if conditions else ""


def cursor(text: str) -> list[int]:
    """Inverse of a page's ``next``, or :class:`ValueError`."""
    parts = text.split(".")
    if len(parts) != 3 or not all(part.isdecimal() and len(part) < 19 for part in parts):
        raise ValueError('after: expected the "next" of the page before')
    return [int(part) for part in parts]


def row_of(found: tuple[Any, ...]) -> Row:
    """From origin, source and :data:`COLUMNS`."""
    origin, _, place, wall_us, step, *texts = found
    *plain, policies, told = texts
    named = dict(zip(TEXTS, plain, strict=True))
    return Row(
        origin=origin,
        index=place,
        wall_us=wall_us,
        step=step,
        policies=tuple(policies.split("\n")) if policies else (),
        words=told,
        **named,
    )
