"""What an agent did through all its sidecars, as its gateways count it; and how a decision takes that into account.

A sidecar knows what went through itself. Every call goes through a gateway too, which counts it before it decides
again: whichever knows more is believed. So several sidecars of one agent have its limits once, not once each.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from trust.canonical import JsonObject
from trust.facts import Rate, Run
from trust.reasons import Reason, Unverifiable
from trust.window import DAY, HOUR, MINUTE

SPANS: Final = (("minute", MINUTE), ("hour", HOUR), ("day", DAY))
SPENT, DENIED = "spent", "denied"
"""Windows of a day."""
MEMBER: Final = "recalled"
"""Of the problem document by which a gateway says that a sidecar decided without knowing enough."""
MAX_RUNS: Final = 1000
"""Of one agent, whose labels are kept apart; those of further ones stay with the agent for a day."""


class Call(msgspec.Struct, frozen=True):
    """What counts of one action: its tool by its full name, what it costs, and what it brings into its run."""

    agent: str
    run: str
    tool: str
    labels: tuple[str, ...] = ()
    cents: int = 0

    @property
    def counts(self) -> list[tuple[str, int, int]]:
        """The windows in which it counts, of which span, and by how much; those of its tool after those of all, then
        :data:`SPENT`."""
        of_tool = [(f"{name} {self.tool}", span, 1) for name, span in SPANS]
        return [*((name, span, 1) for name, span in SPANS), *of_tool, (SPENT, DAY, self.cents)]


class Recalled(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of one agent, one tool and one run, before the call that is asked for; as ``context.run`` and ``context.rate``
    name it (:class:`trust.facts.Run`, :class:`trust.facts.Rate`)."""

    minute: int = 0
    hour: int = 0
    day: int = 0
    tool_minute: int = 0
    tool_hour: int = 0
    tool_day: int = 0
    spent_cents: int = 0
    denied: int = 0
    in_flight: int = 0
    labels: tuple[str, ...] = ()

    @classmethod
    def of(cls, counts: Iterable[int], in_flight: int, labels: Iterable[str]) -> Recalled:
        """From what the windows of :attr:`Call.counts` had, and after them :data:`DENIED`."""
        named = dict(zip(cls.__struct_fields__, counts, strict=False))
        return msgspec.structs.replace(cls(in_flight=in_flight, labels=tuple(sorted(labels))), **named)

    def within(self, context: JsonObject) -> JsonObject:
        """*context* with at least this; the same object if it says all that already. :class:`Unverifiable` if it says
        nothing of runs and rates that could be compared."""
        try:
            run, rate = msgspec.convert(context.get("run"), Run), msgspec.convert(context.get("rate"), Rate)
        except msgspec.ValidationError as bad:
            raise Unverifiable(Reason.PERMIT_INVALID, f"the facts are not those of a decision: {bad}") from None
        more_run = msgspec.structs.replace(
            run,
            calls=max(run.calls, self.day),
            denied=max(run.denied, self.denied),
            spent_cents=max(run.spent_cents, self.spent_cents),
            labels=run.labels if set(self.labels) <= set(run.labels) else tuple(sorted({*self.labels, *run.labels})),
        )
        more_rate = Rate(*(max(getattr(rate, name), getattr(self, name)) for name in Rate.__struct_fields__))
        if (more_run, more_rate) == (run, rate):
            return context
        return {**context, "run": msgspec.to_builtins(more_run), "rate": msgspec.to_builtins(more_rate)}


class Past(msgspec.Struct):
    """What an agent did before anybody counted: so many in each window (name, span in seconds) and part of it, and its
    labels, until when (Unix seconds), and in which run; ``several``: through more than one sidecar."""

    counts: dict[tuple[str, int, int], int] = {}
    labels: list[tuple[str, float, str]] = []
    several: bool = False

    def add(self, name: str, span_s: int, bucket: int, amount: int) -> None:
        """So many more in one part of a window."""
        if amount:
            key = (name, span_s, bucket)
            self.counts[key] = self.counts.get(key, 0) + amount
