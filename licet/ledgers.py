"""The ledgers of one home, read without disturbing who writes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trust.ledger import entries
from trust.ledger.disk import Disk
from trust.ledger.entries import Line
from trust.ledger.segments import SEGMENT_BYTES, Segments


def roots(home: Path) -> list[Path]:
    """Every ledger directory below *home*: those of gateway, sidecars and nodes."""
    return sorted(path.parent for path in home.glob("*/ledger/vkey"))


def lines(root: Path, start: int = 0) -> Iterator[tuple[int, Line]]:
    """Every entry of one ledger as far as it is durable now."""
    for index, data in Segments(root / "wal", Disk(), SEGMENT_BYTES).frames(start):
        yield index, entries.decode(data)


def decision_of(entry: object) -> str:
    """The decision id that an entry is about, or an empty string."""
    deed = getattr(entry, "deed", None)
    return str(getattr(entry, "decision_id", "") or getattr(deed, "decision_id", ""))


def action_of(entry: object) -> str:
    """The action id that an entry is about, or an empty string."""
    deed = getattr(entry, "deed", None)
    return str(getattr(entry, "action_id", "") or getattr(deed, "action_id", ""))


def find_decision(home: Path, decision: str) -> list[tuple[Path, int, Line]]:
    """Every entry about *decision*, in all ledgers of *home*. A node knows the action, not the decision."""
    all_lines = [(root, index, line) for root in roots(home) for index, line in lines(root)]
    actions = {action_of(line.entry) for _, _, line in all_lines if decision_of(line.entry) == decision} - {""}
    return [
        found for found in all_lines if decision_of(found[2].entry) == decision or action_of(found[2].entry) in actions
    ]
