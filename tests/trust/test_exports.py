"""Entries as other programs take them: each read back by a program that is not ours."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from hypothesis import example, given
from hypothesis import strategies as st
from py_ocsf_models.objects.api import API
from py_ocsf_models.objects.metadata import Metadata
from py_ocsf_models.objects.user import User

from tests.gateway.test_index import Log, some
from trust.ledger import entries, exports
from trust.ledger.entries import Kill, Outcome
from trust.ledger.entries import Log as LogEntry
from trust.ledger.merkle import leaf_hash
from trust.ledger.rows import Row, row


def all_of() -> list[tuple[Row, entries.Line, bytes]]:
    log = Log("licet.local/sidecar/demo")
    for number in range(8):
        log.add(some(number), 1_795_281_154_606_427 + number)
    log.add(Kill("killed", "all", "ada", "a drill"), 1_795_281_154_700_000)
    log.add(LogEntry("forked", "licet.local/node/n", detail="x"), 1_795_281_154_700_001)
    log.add(Outcome("a", "d", "r", "unknown"), 1_795_281_154_700_002)
    log.add(Outcome("a", "d", "r", "done", duration_us=12_345, node="n1"), 1_795_281_154_700_003)
    lines = [(entries.decode(data), data) for data in log.data]
    return [(row(line), line, data) for line, data in lines]


@given(st.text(), st.text())
@example("\r", "\n=1+1")
@example(" \uff1d1", "\t")
def test_csv_reads_back_and_runs_no_formula(words: str, agent: str) -> None:
    words = words.replace("\0", "").encode("utf-8", "ignore").decode()
    agent = agent.replace("\0", "").encode("utf-8", "ignore").decode()
    made = Row("o", 1, 5, "intent", agent=agent, words=words, policies=("p", "q"))
    text = (exports.csv_header() + exports.csv_line(made)).decode()
    (back,) = csv.DictReader(io.StringIO(text, newline=""))
    for name, value in (("agent", agent), ("words", words)):
        assert back[name] in (value, f"'{value}")
        assert not back[name].lstrip().startswith(("=", "+", "-", "@", "\uff1d"))
        assert not back[name].startswith(("\t", "\r", "\n"))
    assert back["policies"] == "p q"
    assert back["time"] == "1970-01-01T00:00:00.000005Z"


def test_jsonl_holds_the_exact_bytes() -> None:
    for _, _, data in all_of():
        (line, rest) = exports.jsonl(data).split(b"\n")
        assert leaf_hash(line) == leaf_hash(data)
        assert rest == b""


def test_cloudevents_are_read_by_their_sdk() -> None:
    seen = set()
    for found, _, data in all_of():
        event = JSONFormat().read(CloudEvent, exports.cloudevent(found, data))
        assert event.get_source() == "/licet.local/sidecar/demo"
        assert event.get_type() == f"licet.ledger.{found.kind}"
        assert event.get_data() == json.loads(data)
        seen.add((event.get_source(), event.get_id()))
    assert len(seen) == len(all_of())


REQUIRED = {"activity_id", "category_uid", "class_uid", "metadata", "severity_id", "time", "type_uid"}
OF_THE_CLASS = {"actor", "api", "src_endpoint"}
ENUMS: dict[str, set[Any]] = {
    "severity_id": {0, 1, 2, 3, 4, 5, 6, 99},
    "status_id": {0, 1, 2, 99},
    "action_id": {0, 1, 2, 3, 4, 99, None},
    "activity_id": {0, 1, 2, 3, 4, 99},
}


def test_ocsf_events_have_what_their_class_requires() -> None:
    for found, line, data in all_of():
        event = json.loads(exports.ocsf(found, line, data))
        assert set(event) >= REQUIRED | OF_THE_CLASS
        assert event["type_uid"] == event["class_uid"] * 100 + event["activity_id"]
        assert event["class_uid"] // 1000 == event["category_uid"]
        for name, values in ENUMS.items():
            assert event.get(name) in values, name
        if event["status_id"] == 99:
            assert event["status"]
        assert isinstance(event["time"], int)
        assert event["metadata"]["version"] == exports.OCSF_VERSION
        Metadata.model_validate(event["metadata"])
        api = event["api"]
        if "service" in api:  # the model asks for more than the schema does
            api["service"] |= {"uid": "", "version": ""}
        API.model_validate(api)
        user = {"uid": "x", "type_id": 1, "account": {"name": "", "type_id": 99, "type": "", "uid": "", "labels": []}}
        User.model_validate({**user, **event["actor"]["user"]})
        assert event["raw_data"].encode() == data
        assert ("security_control" in event["metadata"].get("profiles", [])) == ("action_id" in event)


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        (0, {"status_id": 1, "action_id": 1, "severity_id": 1}),
        (1, {"status_id": 2, "action_id": 2, "status_detail": "policy_forbids"}),
        (8, {"severity_id": 4, "status_id": 99, "status": "killed"}),
        (9, {"severity_id": 5, "status_id": 2}),
        (10, {"severity_id": 3, "status_id": 0}),
        (11, {"severity_id": 1, "status_id": 1, "duration": 12, "dst_endpoint": {"name": "n1"}}),
    ],
)
def test_ocsf_says_what_came_of_it(which: int, expected: dict[str, Any]) -> None:
    event = json.loads(exports.ocsf(*all_of()[which]))
    assert {name: event.get(name) for name in expected} == expected
