"""Why a recorded decision came out as it did: its policies with their text, each clause asked again."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, Final

import msgspec

from edge.judging import Judge, KeyOf
from trust.ledger.entries import Hold, Judgement, Line
from trust.ledger.verify import Undecidable
from trust.policy import explain
from trust.reasons import Unverifiable

MAX_STORIES: Final = 8


class Clause(msgspec.Struct, frozen=True):
    """One condition of a policy: ``holds``, and what it came to, as (depth, text)."""

    kind: str
    holds: bool
    lines: list[tuple[int, str]]


class Told(msgspec.Struct, frozen=True):
    """One policy: where it stands, what it says, and whether it decided."""

    policy: str
    effect: str
    place: str
    text: str
    decided: bool
    applies: bool
    clauses: list[Clause]


class Why(msgspec.Struct, frozen=True):
    """``missing`` says what is not here, where the decision cannot be made again; ``facts``: as they were recorded."""

    decision: str
    bundle: str
    policies: list[str]
    stories: list[Told]
    facts: str
    missing: str = ""


class Whys:
    """Decides again with the bundles that lie in the gateway's home."""

    def __init__(self, home: Path, key_of: KeyOf) -> None:
        self._judge = Judge(home, key_of)

    async def of(self, line: Line) -> Why | None:
        """Of one entry; None if nothing was decided in it."""
        entry: Any = line.entry
        judgement = getattr(entry, "judgement", None)
        if judgement is None or getattr(entry, "deed", None) is None:
            return None
        return await asyncio.to_thread(self._of, entry, judgement)

    async def waiting(self, hold: Hold) -> Why:
        """Of a request as it waits."""
        return await asyncio.to_thread(self._of, hold, hold.judgement)

    def _of(self, entry: Any, judgement: Judgement) -> Why:
        facts = json.dumps(judgement.facts, indent=2, ensure_ascii=False, sort_keys=True)
        stories: list[Told] = []
        missing = ""
        try:
            bundle, request, world = self._judge.request(entry.deed, judgement)
            approved = getattr(entry, "approval", None) is not None
            _, found = explain.explain(bundle, request, world, approved=approved)
            for story in found[:MAX_STORIES]:
                decided = story.policy in judgement.policies
                if decided or story.applies:
                    text = bundle.read.sources[story.policy].statement.text.strip()
                    clauses = [Clause(c.kind, c.holds, list(explain.lines(c.part))) for c in story.conditions]
                    place = f"{story.file}:{story.line}"
                    stories.append(Told(story.policy, story.effect, place, text, decided, story.applies, clauses))
        except Undecidable as bad:
            missing = str(bad)
        except Unverifiable as bad:
            missing = bad.detail
        return Why(judgement.decision, judgement.bundle, list(judgement.policies), stories, facts, missing)
