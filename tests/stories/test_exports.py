"""The security team takes entries away, asks in SQL, and sees what is missing: by the command line and the console."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from urllib.parse import urlencode

import pyarrow.parquet
import pytest
from playwright.async_api import Browser, expect

from tests.console.conftest import browser, chromium, screen
from tests.mesh import Mesh
from tests.stories.test_agents_cli import as_json, fine, licet
from tests.stories.test_asking import settled
from trust.ledger import entries
from trust.ledger.entries import Query

__all__ = ["browser", "chromium"]
pytestmark = pytest.mark.slow
READ, NOTES = "workbench/read_file", {"path": "notes.txt"}


@pytest.fixture
async def told(mesh: Mesh) -> Mesh:
    for number in range(6):
        await mesh.call(READ, NOTES if number % 2 else {"path": "server.pem"}, run=f"r{number}")
    await settled(mesh)
    return mesh


async def test_each_form_holds_every_entry_that_was_asked_for(told: Mesh, tmp_path: Path) -> None:
    wanted = await as_json(told, "audit", "query", "--agent", "demo", "--kind", "refusal", "-n", "100")
    assert len(wanted) == 3
    asked = ("--agent", "demo", "--kind", "refusal")
    for form in ("csv", "jsonl", "parquet", "ocsf", "cloudevents"):
        out = tmp_path / f"found.{form}"
        await fine(told, "audit", "export", "--format", form, "-o", str(out), *asked)
        assert not list(tmp_path.glob(".*.partial"))
    places = [(one["origin"], one["index"]) for one in wanted]
    with (tmp_path / "found.csv").open(newline="") as file:
        assert [(one["origin"], int(one["index"])) for one in csv.DictReader(file)] == places
    lines = [json.loads(line) for line in (tmp_path / "found.jsonl").read_bytes().splitlines()]
    assert [(one["stamp"]["origin"], one["stamp"]["seq"]) for one in lines] == places
    rows = pyarrow.parquet.read_table(tmp_path / "found.parquet").to_pylist()
    assert [(one["origin"], one["index"]) for one in rows] == places
    assert rows[0]["policies"] == ["no-key-files"]
    assert rows[0]["time"].year >= 2026
    assert [json.loads(line)["metadata"]["uid"] for line in (tmp_path / "found.ocsf").read_text().splitlines()] == [
        f"{origin}#{index}" for origin, index in places
    ]
    assert len((tmp_path / "found.cloudevents").read_text().splitlines()) == 3
    queries = [e for e in told.entries("gateway") if isinstance(e, Query)]
    exports = [(e.by, e.what, e.asked, e.rows) for e in queries if e.what.startswith("export")]
    assert exports[0] == ("operator", "export csv", "kind=refusal agent=demo", 3)
    assert len(exports) == 5


async def test_all_of_every_log_comes_out_once(told: Mesh, tmp_path: Path) -> None:
    out = tmp_path / "all.jsonl"
    await fine(told, "audit", "export", "-o", str(out))
    found = [entries.decode(line) for line in out.read_bytes().splitlines()]
    places = [(line.stamp.origin, line.stamp.seq) for line in found]
    assert len(set(places)) == len(places)
    for part in ("sidecar", "node"):
        ledger = getattr(told, part).ledger
        assert {seq for origin, seq in places if origin == ledger.origin} == set(range(ledger.size))


async def test_what_cannot_be_taken_says_why_and_leaves_what_was_there(told: Mesh, tmp_path: Path) -> None:
    out = tmp_path / "kept.csv"
    out.write_text("precious")
    refused = await licet(told, "audit", "export", "--format", "xml", "-o", str(out))
    assert refused[0] == 1
    assert "expected one of csv, jsonl, parquet, ocsf, cloudevents" in " ".join(refused[2].split())
    assert out.read_text() == "precious"
    answer = await told.admin("GET", f"/v1/ledger/export?{urlencode({'format': 'csv'})}", who="approver-1")
    assert answer.status == 403


async def test_sql_on_the_command_line(told: Mesh) -> None:
    answer = await as_json(
        told, "audit", "sql", "SELECT reason, count(*) FROM entries WHERE decision = 'deny' GROUP BY 1"
    )
    assert answer["rows"] == [["policy_forbids", 3]]
    text = await fine(told, "audit", "sql", "SELECT agent FROM entries WHERE kind = 'refusal'")
    assert "3 rows, over" in text
    refused = await licet(told, "audit", "sql", "DROP TABLE entries")
    assert refused[0] == 1
    assert "expected one that only reads (SELECT)" in " ".join(refused[2].split())
    asked = [e.asked for e in told.entries("gateway") if isinstance(e, Query) and e.what == "sql"]
    assert "DROP TABLE entries" in asked
    body = {"sql": "SELECT 1"}
    assert (await told.admin("POST", "/v1/ledger/sql", body, who="approver-1")).status == 403


async def test_gaps_on_the_command_line(told: Mesh) -> None:
    assert "nothing is missing" in await fine(told, "audit", "gaps")


async def test_the_sql_page_and_the_downloads(told: Mesh, browser: Browser) -> None:
    one = await screen(told, browser)
    page = one.page
    await one.go("/console/sql")
    await page.get_by_role("button", name="Ask").click()
    await expect(page.locator("table")).to_contain_text("policy_forbids")
    assert await one.violations() == []
    await page.get_by_label("Question").fill("SELECT * FROM read_text('/etc/passwd')")
    await page.get_by_role("button", name="Ask").click()
    await expect(page.get_by_role("alert")).to_contain_text("Cannot access file")
    assert await page.get_by_label("Question").input_value() == "SELECT * FROM read_text('/etc/passwd')"
    assert await one.violations() == []
    await one.go("/console/ledger?kind=refusal")
    async with page.expect_download() as coming:
        await page.get_by_role("link", name="csv").click()
    saved = await coming.value
    assert saved.suggested_filename == "licet-ledger.csv"
    assert len((await saved.path()).read_text().splitlines()) == 4


async def test_a_file_that_would_be_too_large_is_refused_before_anything_is_told(
    told: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.sql.MAX_PARQUET_BYTES", 1 << 9)
    answer = await told.admin("GET", "/v1/ledger/export?format=parquet")
    assert (answer.status, answer.json["reason"]) == (413, "body_too_large")
    assert "jsonl or csv, which stream" in answer.json["detail"]
    assert (await told.admin("GET", "/v1/ledger/export?format=jsonl")).status == 200
    monkeypatch.undo()
    assert (await told.admin("GET", "/v1/ledger/export?format=parquet")).status == 200
