"""Sidecars and nodes forget what is old and with the gateway; nothing that is needed goes with it."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from edge.blobs import Blobs
from edge.clock import SystemClock
from gateway.questions import Filter
from gateway.state import Lacking, LogRecord
from gateway.witness import ASIDE
from sidecar.app import Sidecar
from sidecar.config import NodeConfig, SidecarConfig
from sidecar.forgetting import DAY_US, Forgetting
from sidecar.node.app import Node
from tests.mesh import Mesh
from tests.stories.test_agents_cli import fine
from tests.stories.test_asking import settled
from tests.stories.test_witness import ORIGIN, READ, witnessed
from trust.ledger import entries, shipment
from trust.ledger.pruning import first_kept
from trust.ledger.shipment import Shipment
from trust.ledger.verify import verify
from trust.reasons import Unverifiable

LATER_US = 10**17


def forgetting(part: Sidecar | Node, **more: int) -> Forgetting:
    keep = {"keep": part.world.tell_again, "blobs": part._blobs} if isinstance(part, Sidecar) else {}
    return Forgetting(part.ledger, part.shipper, SystemClock(), **{"keep_days": 2, **more}, **keep)


@pytest.fixture
async def talked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Mesh]:
    """A sidecar and a node that have said more than one tile and one segment hold."""
    monkeypatch.setattr("tests.mesh.SEGMENT", 1 << 16)
    async with Mesh(tmp_path) as mesh:
        (mesh.sandbox / "notes.txt").write_text("hello")
        for _ in range(140):
            assert (await mesh.call(READ, {"path": "notes.txt"})).status == 200
        await settled(mesh)
        yield mesh


@pytest.mark.slow
async def test_a_sidecar_and_a_node_forget_and_go_on(talked: Mesh) -> None:
    copy = talked.gateway.witness.path(ORIGIN)
    for part in (talked.sidecar, talked.node):
        assert await forgetting(part).forget(0) == 0
        assert await forgetting(part).forget(LATER_US) == 256
        assert next(index for index, _ in part.ledger.lines()) > 100, "whole segments went too"
        said = [line.entry for _, line in part.ledger.lines() if isinstance(line.entry, entries.Pruned)]
        assert [(one.origin, one.first, one.by) for one in said] == [(part.ledger.origin, 256, "keep_days")]
        assert await forgetting(part).forget(LATER_US) == 256
    version = talked.sidecar.world.bundle.content.version
    await talked.stop("sidecar")
    await talked.start_sidecar()
    assert talked.sidecar._own.newest_bundle == version, "an older bundle never comes back"
    assert (await talked.call(READ, {"path": "notes.txt"})).status == 200
    await settled(talked)
    for part in (talked.sidecar, talked.node):
        report = verify(part.ledger.root)
        assert (report.faults, report.pruned) == ([], 256)
    whole = verify(copy, copy=True)
    assert (whole.faults, whole.pruned) == ([], 0)
    said = await fine(talked, "audit", "verify", str(talked.sidecar.ledger.root))
    assert "the entries below 256 were pruned" in said
    answer = await talked.admin("GET", f"/v1/ledger/entry?origin={ORIGIN}&index=3")
    assert answer.status == 200, "the gateway has it"


@pytest.mark.slow
async def test_nothing_goes_that_the_gateway_has_not(talked: Mesh) -> None:
    talked.sidecar.shipper.cosigned = 200
    assert await forgetting(talked.sidecar).forget(LATER_US) == 0
    assert first_kept(talked.sidecar.ledger.root) == 0
    talked.sidecar.shipper.cosigned = 0
    assert await forgetting(talked.sidecar).forget(LATER_US) == 0


@pytest.mark.slow
async def test_a_gateway_that_lost_its_copy_gets_hashes_and_says_so(talked: Mesh) -> None:
    await forgetting(talked.sidecar).forget(LATER_US)
    await talked.stop("sidecar")
    await talked.stop("gateway")
    shutil.rmtree(talked.home / "gateway" / "logs")
    await talked.start_gateway()
    await talked.start_sidecar()
    await witnessed(talked)
    report = verify(talked.gateway.witness.path(ORIGIN), copy=True)
    assert (report.faults, report.pruned) == ([], 256)
    said = [e for e in talked.entries("gateway") if isinstance(e, entries.Pruned)]
    assert [(one.origin, one.first, one.by) for one in said] == [(ORIGIN, 256, "demo")]
    assert (await talked.call(READ, {"path": "notes.txt"})).status == 200
    await settled(talked)
    answer = await talked.admin("GET", f"/v1/ledger/entry?origin={ORIGIN}&index=3")
    assert (answer.status, "was pruned" in answer.json["detail"]) == (404, True)
    assert (await talked.admin("GET", f"/v1/ledger/entry?origin={ORIGIN}&index=256")).status == 200


@pytest.mark.slow
async def test_what_nobody_has_is_given_up_by_a_person(talked: Mesh) -> None:
    """The gateway came back from a backup that is older than what its sidecar keeps."""
    await forgetting(talked.sidecar).forget(LATER_US)
    witness, shipper = talked.gateway.witness, talked.sidecar.shipper
    await witness.renew(ORIGIN, "op", "as if it was restored")
    async with asyncio.timeout(30):
        while f"licet audit renew {ORIGIN} --pruned-below 256" not in shipper.fault:
            await asyncio.sleep(0.05)
    assert "only 0 were ever witnessed here" in talked.gateway.records.store.get(LogRecord, ORIGIN).wrong
    await fine(talked, "audit", "renew", ORIGIN, "--pruned-below", "256", "--reason", "the backup was too old")
    shipper.cosigned = 0
    await witnessed(talked)
    report = verify(witness.path(ORIGIN), copy=True)
    assert (report.faults, report.pruned) == ([], 256)
    renewed = [e for e in talked.entries("gateway") if isinstance(e, entries.Log) and e.event == "renewed"]
    assert (renewed[-1].by, renewed[-1].pruned) == ("operator", 256)
    await witness.renew(ORIGIN, "op", "a new disk")
    assert talked.gateway.records.store.get(Lacking, ORIGIN) is None


@pytest.mark.slow
async def test_a_copy_that_lost_its_end_is_kept_aside_and_that_is_said(talked: Mesh) -> None:
    for _ in range(130):
        await talked.call(READ, {"path": "notes.txt"})
    await settled(talked)
    assert await forgetting(talked.sidecar).forget(LATER_US) == 512
    witness, shipper = talked.gateway.witness, talked.sidecar.shipper
    before, copy = await witnessed(talked), witness.path(ORIGIN)
    witness._mirrors.clear()
    for tile in copy.glob("tile/*/00[1-9]*"):
        shutil.rmtree(tile) if tile.is_dir() else tile.unlink()
    shipper._there = shipper.cosigned = 0
    async with asyncio.timeout(30):
        while not (witness.path(ORIGIN) / "pruned").exists() or (await witnessed(talked)).size < before.size:
            await asyncio.sleep(0.05)
    report = verify(copy, copy=True)
    assert (report.faults, report.pruned) == ([], 512)
    (aside,) = (copy.parent / ASIDE).iterdir()
    assert (aside / "tile/entries/000").exists(), "what it still had is there"
    (gap,) = [e for e in talked.entries("gateway") if isinstance(e, entries.Gap)]
    assert gap.what == "copy_aside"
    assert "it ended at 256, and of what follows only hashes are left" in gap.detail
    assert aside.name in gap.detail
    await settled(talked)
    rows = (await talked.gateway.ledgers.index.find(Filter(origin=ORIGIN, limit=1000, oldest_first=True))).rows
    assert rows[0].index == 512, "what cannot be read any more is not found either"


@pytest.mark.slow
async def test_nothing_goes_while_the_gateway_is_away(talked: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may come back with less."""
    monkeypatch.setattr("sidecar.forgetting.WITNESSED_WITHIN_S", 1.0)
    monkeypatch.setattr("sidecar.shipping.IDLE_S", 0.1)
    await talked.stop("gateway")
    await asyncio.sleep(2.5)
    assert await forgetting(talked.sidecar).forget(LATER_US) == 0
    await talked.start_gateway()


@pytest.mark.slow
async def test_what_goes_wrong_once_is_tried_again(talked: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.forgetting.FIRST_AFTER_S", 0.01)
    monkeypatch.setattr("sidecar.forgetting.EVERY_S", 0.01)
    monkeypatch.setattr("sidecar.forgetting.DAY_US", -60_000_000)
    bundle = talked.node.ledger.root / "tile/entries/000"
    whole = bundle.read_bytes()
    bundle.write_bytes(b"")
    task = asyncio.create_task(forgetting(talked.node).work())
    await asyncio.sleep(0.5)
    assert (task.done(), first_kept(talked.node.ledger.root)) == (False, 0)
    bundle.write_bytes(whole)
    async with asyncio.timeout(30):
        while first_kept(talked.node.ledger.root) == 0:
            await asyncio.sleep(0.05)
    task.cancel()


@pytest.mark.slow
async def test_a_tile_that_a_power_failure_emptied_stops_it(talked: Mesh) -> None:
    """Nothing but these hashes would be left."""
    tile = talked.node.ledger.root / "tile/0/000"
    tile.write_bytes(bytes(len(tile.read_bytes())))
    with pytest.raises(Unverifiable, match="tile 0/0 is not the hashes of its entries"):
        await forgetting(talked.node).forget(LATER_US)
    assert first_kept(talked.node.ledger.root) == 0
    assert not [line for _, line in talked.node.ledger.lines() if isinstance(line.entry, entries.Pruned)]


@pytest.mark.slow
async def test_a_sidecar_without_a_bundle_forgets_nothing(talked: Mesh) -> None:
    """Which was the newest stands only in its log."""
    talked.sidecar.world.bundle = None
    with pytest.raises(Unverifiable, match="no bundle decides here"):
        await forgetting(talked.sidecar).forget(LATER_US)
    assert first_kept(talked.sidecar.ledger.root) == 0


@pytest.mark.slow
async def test_a_writer_puts_no_copy_away(talked: Mesh) -> None:
    """It offers hashes for what comes next, of which nobody knows anything."""
    talked.sidecar._tasks[3].cancel()
    sealed = await witnessed(talked)
    count = -sealed.size % 256
    vkey = (talked.sidecar.ledger.root / "vkey").read_text().strip()
    body = shipment.pack(Shipment(vkey, sealed.size, pruned=sealed.size + count), [b"x" * 32] * count)
    headers = {"Content-Type": shipment.SHIPMENT_TYPE}
    async with talked.sidecar.identity.send("POST", "/v1/ledger", body, headers) as reply:
        assert reply.status == 409, await reply.read()
    report = verify(talked.gateway.witness.path(ORIGIN), copy=True)
    assert (report.faults, report.sealed) == ([], sealed.size)
    note = "x" * 2001
    body = shipment.pack(Shipment(vkey, sealed.size, note), [])
    async with talked.sidecar.identity.send("POST", "/v1/ledger", body, headers) as reply:
        assert (reply.status, b"may have 2000" in await reply.read()) == (400, True)


@pytest.mark.slow
async def test_from_whom_a_copy_comes(talked: Mesh) -> None:
    """Hashes are not taken from the writer while another gateway has more."""
    await forgetting(talked.sidecar).forget(LATER_US)
    witness = talked.gateway.witness
    witness._mirrors.clear()
    shutil.rmtree(witness.path(ORIGIN))
    witness.elsewhere = lambda origin, have: origin == ORIGIN and have == 255
    shipper = talked.sidecar.shipper
    shipper._there = shipper.cosigned = 0
    async with asyncio.timeout(30):
        while "the witness stays at 0" not in shipper.fault:
            await asyncio.sleep(0.05)
    witness.elsewhere = lambda _origin, _have: False
    await witnessed(talked)
    assert first_kept(witness.path(ORIGIN)) == 256


@pytest.mark.slow
async def test_it_is_done_once_an_hour_when_days_are_set(talked: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.forgetting.FIRST_AFTER_S", 0.01)
    await asyncio.wait_for(forgetting(talked.node, keep_days=0).work(), 30)
    for days, day_us, first in ((2, DAY_US, 0), (2, -60_000_000, 256)):  # the second: as if it were in two days
        monkeypatch.setattr("sidecar.forgetting.DAY_US", day_us)
        task = asyncio.create_task(forgetting(talked.node, keep_days=days).work())
        await asyncio.sleep(0.5)
        task.cancel()
        assert first_kept(talked.node.ledger.root) == first


async def test_blobs_go_when_nobody_has_added_them_for_so_long(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    old, again, new = [await blobs.add(text) for text in (b"old", b"again", b"new")]
    for digest in (old, again):
        os.utime(tmp_path / digest, (1, 1))
    await blobs.add(b"again")
    await blobs.forget(int(time.time() - 3600) * 1_000_000)
    assert [blobs.holds(digest) for digest in (old, again, new)] == [False, True, True]


@pytest.mark.parametrize("section", [SidecarConfig, NodeConfig])
def test_what_was_done_within_a_day_is_always_kept(section: type[SidecarConfig | NodeConfig]) -> None:
    """It counts, and is read again after a restart."""
    for days in (1, -1):
        with pytest.raises(ValidationError):
            section(keep_days=days)
    assert section(keep_days=2).keep_days == 2
