"""Entries as other programs take them: CSV, JSON Lines, CloudEvents and OCSF, one line for each entry."""

from __future__ import annotations

import csv
import io
import json
from typing import Any, Final

import msgspec

from trust.ledger import words
from trust.ledger.entries import Line
from trust.ledger.rows import Row

COLUMNS: Final = tuple(name for name in Row.__struct_fields__ if name != "wall_us")
"""Of a CSV or Parquet file, after ``time`` (RFC 3339, UTC, microseconds)."""
_TIME: Final = "%Y-%m-%dT%H:%M:%S.%fZ"
OCSF_VERSION: Final = "1.3.0"
_FORMULA: Final = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def flat(row: Row) -> dict[str, Any]:
    """One row of a table; lists are joined by spaces."""
    values = {name: getattr(row, name) for name in COLUMNS}
    return {"time": words.moment(row.wall_us, _TIME), **values, "policies": " ".join(row.policies)}


def csv_header() -> bytes:
    return _csv(("time", *COLUMNS))


def csv_line(row: Row) -> bytes:
    """Cells that a spreadsheet would run as a formula begin with an apostrophe (OWASP, CSV injection)."""
    return _csv([_tame(value) for value in flat(row).values()])


def _tame(value: Any) -> Any:
    runs = isinstance(value, str) and (value.lstrip().startswith(_FORMULA) or value.startswith(("\t", "\r", "\n")))
    return f"'{value}" if runs else value


def _csv(cells: Any) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n").writerow(cells)  # RFC 4180
    return out.getvalue().encode()


def jsonl(data: bytes) -> bytes:
    """The exact bytes of an entry: their RFC 6962 leaf hash is the one in the log."""
    return data + b"\n"


def cloudevent(row: Row, data: bytes) -> bytes:
    """A CloudEvent (1.0, structured, JSON): the entry is its ``data``, its place is its id."""
    event = {
        "specversion": "1.0",
        "id": str(row.index),
        "source": f"/{row.origin}",
        "type": f"licet.ledger.{row.kind}",
        "time": words.moment(row.wall_us, _TIME),
        **({"subject": row.agent or row.by} if row.agent or row.by else {}),
        "datacontenttype": "application/json",
        "data": msgspec.Raw(data),
    }
    return msgspec.json.encode(event) + b"\n"


_ALLOWED: Final = {"allow": (1, "Allowed"), "deny": (2, "Denied")}
_STATUS: Final = {"done": 1, "allow": 1, "approved": 1}
_FAILED: Final = frozenset({"deny", "failed", "tool_error", "refused", "denied", "expired", "forked"})
_SEVERE: Final = {"kill": 4, "revocation": 4, "breaker": 3, "gap": 3, "log": 2}


def ocsf(row: Row, line: Line, data: bytes) -> bytes:
    """An OCSF event of the class API Activity (6003), version :data:`OCSF_VERSION`: who (``actor.user``) had what
    (``actor.app_name``, the agent) call which operation; where it was recorded is ``metadata.uid``."""
    status = 2 if row.decision in _FAILED else _STATUS.get(row.decision, 0 if row.decision == "unknown" else 99)
    action = _ALLOWED.get(row.decision)
    severity = 5 if row.decision == "forked" else 3 if row.decision == "unknown" else _SEVERE.get(row.kind, 1)
    user = row.principal or row.by or row.agent or row.origin
    event: dict[str, Any] = {
        "category_uid": 6,
        "category_name": "Application Activity",
        "class_uid": 6003,
        "class_name": "API Activity",
        "activity_id": 99,
        "activity_name": row.kind,
        "type_uid": 600399,
        "time": row.wall_us // 1000,
        "severity_id": severity,
        "status_id": status,
        "message": row.words,
        "metadata": {
            "version": OCSF_VERSION,
            "product": {"name": "Licet", "vendor_name": "Licet"},
            "uid": f"{row.origin}#{row.index}",
            "log_name": row.origin,
            "sequence": row.index,
            **({"correlation_uid": row.run} if row.run else {}),
            **({"profiles": ["security_control"]} if action else {}),
        },
        "actor": {"user": {"name": user}, **({"app_name": row.agent} if row.agent else {})},
        "api": {
            "operation": f"{row.server}/{row.tool}" if row.tool else row.kind,
            **({"service": {"name": row.server}} if row.server else {}),
            **({"request": {"uid": row.decision_id}} if row.decision_id else {}),
        },
        "src_endpoint": {"name": row.origin},
        "raw_data": data.decode("utf-8", "replace"),
    }
    if status == 99:
        event["status"] = row.decision or row.kind
    if row.reason:
        event["status_detail"] = row.reason
    if row.node:
        event["dst_endpoint"] = {"name": row.node}
    if action is not None:
        event |= {"action_id": action[0], "action": action[1], "disposition_id": action[0]}
    took = getattr(line.entry, "duration_us", 0)
    if took:
        event["duration"] = took // 1000
    unmapped = {name: getattr(row, name) for name in ("approval", "action_id", "owner") if getattr(row, name)}
    if row.policies:
        unmapped["policies"] = list(row.policies)
    if unmapped:
        event["unmapped"] = unmapped
    return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
