"""The gateway witnesses every log: what was sealed and seen can be neither changed nor taken back unnoticed."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from gateway.witness import ASIDE
from sidecar.app import Sidecar
from sidecar.config import SidecarConfig
from sidecar.shipping import COSIGNED
from tests.mesh import Mesh
from trust.identity.keys import SecretKey
from trust.ledger import checkpoint, shipment
from trust.ledger.checkpoint import Checkpoint
from trust.ledger.entries import Log, Reported, Witness
from trust.ledger.merkle import leaf_hash
from trust.ledger.proofs import Tree
from trust.ledger.shipment import Received, Shipment
from trust.ledger.tiles import TileWriter, read_entries
from trust.reasons import Reason, Unverifiable

pytestmark = pytest.mark.slow
READ, NOTES = "workbench/read_file", {"path": "notes.txt"}
ORIGIN = "licet.local/sidecar/demo"


async def witnessed(mesh: Mesh, part: str = "sidecar") -> Checkpoint:
    """Wait until the part's log is cosigned to its end; what was cosigned."""
    process = getattr(mesh, part)
    async with asyncio.timeout(30):
        while process.shipper.cosigned < process.ledger.size:
            await asyncio.sleep(0.05)
    note = (process.ledger.root / COSIGNED).read_bytes()
    witness, key = checkpoint.parse_witness_vkey(mesh.gateway.witness.vkey)
    assert checkpoint.cosigned_at(note, witness, key)
    origin, own = checkpoint.parse_vkey((process.ledger.root / "vkey").read_text())
    return checkpoint.open_checkpoint(note, origin, own)


async def test_every_log_is_copied_cosigned_and_logged(mesh: Mesh) -> None:
    for _ in range(5):
        assert (await mesh.call(READ, NOTES)).status == 200
    for part in ("sidecar", "node"):
        sealed = await witnessed(mesh, part)
        copy = mesh.gateway.witness.path(sealed.origin)
        assert Tree(copy, sealed.size).root() == sealed.root
        logged = [e for e in mesh.entries("gateway") if isinstance(e, Witness) and e.origin == sealed.origin]
        assert logged[-1].size == sealed.size
    assert mesh.sidecar.shipper.unwitnessed_s() < 10


async def test_the_copy_goes_on_after_a_restart_of_either_and_after_it_was_lost(mesh: Mesh) -> None:
    first = await witnessed(mesh)
    await mesh.stop("gateway")
    await mesh.start_gateway()
    await mesh.ready()
    await mesh.call(READ, NOTES)
    second = await witnessed(mesh)
    assert second.size > first.size
    await mesh.stop("sidecar")
    await mesh.stop("gateway")
    shutil.rmtree(mesh.home / "gateway" / "logs")
    await mesh.start_gateway()
    await mesh.start_sidecar()
    third = await witnessed(mesh)
    assert Tree(mesh.gateway.witness.path(ORIGIN), third.size).root() == third.root


async def test_more_than_one_shipment_takes(mesh: Mesh, monkeypatch: Any) -> None:
    monkeypatch.setattr("trust.ledger.shipment.MAX_BYTES", 4000)
    for _ in range(8):
        await mesh.call(READ, NOTES)
    sealed = await witnessed(mesh)
    assert Tree(mesh.gateway.witness.path(ORIGIN), sealed.size).root() == sealed.root


async def shipped(mesh: Mesh, first: int, note: bytes, entries: list[bytes], vkey: str = "") -> Any:
    own = (mesh.sidecar.ledger.root / "vkey").read_text().strip()
    body = shipment.pack(Shipment(vkey or own, first, note.decode()), entries)
    headers = {"Content-Type": shipment.SHIPMENT_TYPE}
    async with mesh.sidecar.identity.send("POST", "/v1/ledger", body, headers) as reply:
        return reply.status, await reply.read()


async def test_a_fork_a_rollback_and_a_new_key_are_refused_and_recorded(mesh: Mesh) -> None:
    sealed = await witnessed(mesh)
    mesh.sidecar._tasks[3].cancel()
    from trust.identity.keys import SecretKey

    key = SecretKey.load(mesh.home / "sidecar" / "ledger.key")
    forged = [
        (Checkpoint(ORIGIN, sealed.size, leaf_hash(b"other"), sealed.time_ms), b"seals another root"),
        (Checkpoint(ORIGIN, sealed.size - 1, sealed.root, sealed.time_ms), b"now seals"),
    ]
    for claim, says in forged:
        status, told = await shipped(mesh, sealed.size, checkpoint.seal(claim, key), [])
        assert (status, says in told) == (409, True), told
    stranger = SecretKey.generate()
    vkey = checkpoint.vkey(ORIGIN, stranger.public)
    status, told = await shipped(mesh, 0, b"", [], vkey)
    assert (status, b"another key than before" in told) == (409, True)
    alarms = [e.detail for e in mesh.entries("gateway") if isinstance(e, Log) and e.event == "forked"]
    assert len(alarms) == 3
    assert (await shipped(mesh, 0, b"", [], checkpoint.vkey("licet.local/sidecar/other", stranger.public)))[0] == 403
    status, told = await shipped(mesh, 0, b"", [])
    assert (status, Received(sealed.size).size) == (200, sealed.size), "who is behind is told where to go on"


async def test_what_is_no_log_changes_nothing(mesh: Mesh) -> None:
    sealed = await witnessed(mesh)
    mesh.sidecar._tasks[3].cancel()
    from trust.ledger.entries import Gap, Stamp, encode, stamped

    def entry(seq: int, origin: str = ORIGIN) -> bytes:
        return stamped(Stamp(origin, seq, "b", 1, 1), encode(Gap("x", "y")))

    for bad in ([b"{}"], [b""], [entry(sealed.size + 1)], [entry(sealed.size, "licet.local/sidecar/other")]):
        assert (await shipped(mesh, sealed.size, b"", bad))[0] == 400
    from trust.identity.keys import SecretKey

    stranger = checkpoint.seal(Checkpoint(ORIGIN, sealed.size + 1, sealed.root, 1), SecretKey.generate())
    assert (await shipped(mesh, sealed.size, stranger, [entry(sealed.size)]))[0] == 400
    headers = {"Content-Type": shipment.SHIPMENT_TYPE}
    async with mesh.sidecar.identity.send("POST", "/v1/ledger", b"\0\0\0\xff{}", headers) as reply:
        assert reply.status == 400
    async with mesh.sidecar.identity.send("POST", "/v1/ledger", b"{}", {"Content-Type": "text/plain"}) as reply:
        assert reply.status == 415
    await mesh.sidecar.shipper.ship()
    assert (await witnessed(mesh)).size >= sealed.size


async def test_a_sidecar_that_begins_anew_waits_for_a_person(mesh: Mesh) -> None:
    """Its home was lost: the ledger of before is kept, and nobody can pass off another one as it."""
    sealed = await witnessed(mesh)
    await mesh.stop("sidecar")
    shutil.rmtree(mesh.home / "sidecar" / "ledger")
    (mesh.home / "sidecar" / "ledger.key").unlink()
    await mesh.start_sidecar()
    async with asyncio.timeout(30):
        while "another key than before" not in mesh.sidecar.shipper.fault:
            await asyncio.sleep(0.05)
    assert mesh.sidecar.shipper.unwitnessed_s() > 0
    with pytest.raises(Unverifiable, match="say why"):
        await mesh.gateway.witness.renew(ORIGIN, "op", " ")
    with pytest.raises(Unverifiable, match=f"witnessed: .*{ORIGIN}"):
        await mesh.gateway.witness.renew("nobody", "op", "x")
    await mesh.gateway.witness.renew(ORIGIN, "op", "the disk was replaced")
    await witnessed(mesh)
    kept = [*(mesh.home / "gateway" / "logs" / ASIDE).iterdir()]
    assert len(kept) == 1
    assert Tree(Path(kept[0]), sealed.size).root() == sealed.root


async def test_unwitnessed_for_too_long_nothing_of_high_risk_may_happen(mesh: Mesh, monkeypatch: Any) -> None:
    """The gateway answers everything else: only its witness is gone."""
    await witnessed(mesh)

    async def gone(*_: Any) -> None:
        raise Unverifiable(Reason.OVERLOADED, "no room")

    delete = ("workbench/delete_file", {"path": "notes.txt"})
    assert (await mesh.call(*delete)).status == 202
    monkeypatch.setattr(mesh.gateway.witness, "receive", gone)
    mesh.sidecar.world._unwitnessed_s = 3.0
    await mesh.call(READ, NOTES)
    await asyncio.sleep(5)
    answer = await mesh.call(*delete)
    assert (answer.status, answer.json["reason"], answer.json["retryable"]) == (503, "unwitnessed", True)
    assert "no room" in answer.json["detail"]
    assert (await mesh.call(READ, NOTES)).status == 200
    monkeypatch.undo()
    await witnessed(mesh)
    mesh.sidecar.world._unwitnessed_s = 60.0
    assert (await mesh.call(*delete)).status == 202


async def test_whatever_keeps_the_record_from_being_shipped_is_not_taken_for_a_witness(mesh: Mesh) -> None:
    """The file with the checkpoint cannot be read, or nobody ships any more: nothing complains to the pipeline."""
    await witnessed(mesh)
    mesh.sidecar._tasks[3].cancel()
    mesh.sidecar.world._unwitnessed_s = 2.0
    await asyncio.sleep(2.5)
    answer = await mesh.call("workbench/delete_file", {"path": "notes.txt"})
    assert (answer.status, answer.json["reason"]) == (503, "unwitnessed")
    (mesh.sidecar.ledger.root / "checkpoint").rename(mesh.home / "aside")
    with pytest.raises(FileNotFoundError):
        await mesh.sidecar.shipper.ship()
    assert mesh.sidecar.shipper.unwitnessed_s() > 2.0
    (mesh.home / "aside").rename(mesh.sidecar.ledger.root / "checkpoint")


async def test_a_copy_that_could_not_be_written_is_made_whole_again(mesh: Mesh, monkeypatch: Any) -> None:
    """A tile is lost on a full disk: what memory thinks of the copy is thrown away, and it is shipped again."""
    await witnessed(mesh)
    fails = 3
    honest = TileWriter.append

    def full(self: TileWriter, entry: bytes, leaf: bytes) -> None:
        nonlocal fails
        honest(self, entry, leaf)
        if fails and "logs" in str(self._root):
            fails -= 1
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(TileWriter, "append", full)
    for _ in range(100):
        await mesh.call(READ, NOTES)
    async with asyncio.timeout(30):
        while fails:
            await asyncio.sleep(0.1)
    sealed = await witnessed(mesh)
    copy = mesh.gateway.witness.path(ORIGIN)
    assert [*read_entries(copy, sealed.size)] == [*read_entries(mesh.sidecar.ledger.root, sealed.size)]
    assert Tree(copy, sealed.size).root() == sealed.root


async def test_a_log_that_does_not_grow_is_seen_again_and_again(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that silence means something: a log that nobody ships is told from one in which nothing happens."""
    monkeypatch.setattr("sidecar.shipping.IDLE_S", 0.1)
    witness = mesh.gateway.witness

    def seen() -> dict[str, int]:
        return {log.origin: witness.seen_us(log) for log in witness.logs()}

    async with asyncio.timeout(30):
        sizes = {part.ledger.origin: part.ledger.size for part in (mesh.sidecar, mesh.node)}
        while {log.origin: log.size for log in witness.logs()} != sizes:
            await asyncio.sleep(0.05)
        before = seen()
        while not all(at > before[origin] for origin, at in seen().items()):
            await asyncio.sleep(0.05)
        before = seen()
        while not all(at > before[origin] for origin, at in seen().items()):
            await asyncio.sleep(0.05)
    assert {log.origin: log.size for log in witness.logs()} == sizes


async def test_several_sidecars_of_one_agent_have_a_log_each(mesh: Mesh) -> None:
    """As in the pods of one deployment: the same identity, and each its own record, refusals and claims."""
    made = {}
    for instance in ("pod-a", "pod-b"):
        home = mesh.home / instance
        home.mkdir()
        for name in ("identity.key", "enrolment.json"):
            shutil.copy(mesh.home / "sidecar" / name, home / name)
        config = SidecarConfig(home=home, port=0, gateway_url=mesh.gateway_url, instance=instance)
        made[instance] = Sidecar(config)
        await made[instance].start()
    try:
        for instance, sidecar in made.items():
            async with asyncio.timeout(30):
                while not all(sidecar.checks().values()):
                    await asyncio.sleep(0.01)
            answer = await mesh.act(sidecar, READ, {"path": "notes.txt"})
            assert (answer.status, answer.json["audit"]["origin"]) == (200, f"{ORIGIN}/{instance}")
            assert (await mesh.act(sidecar, "workbench/nothing", {})).status == 403
        async with asyncio.timeout(30):
            while not all(s.shipper.cosigned >= s.ledger.size for s in made.values()):
                await asyncio.sleep(0.05)
            told: set[str] = set()
            while told != {f"{ORIGIN}/pod-a", f"{ORIGIN}/pod-b"}:
                told = {e.origin for e in mesh.entries("gateway") if isinstance(e, Reported)}
                await asyncio.sleep(0.05)
            while any(s.world.facts.heard < 0 for s in made.values()):
                await asyncio.sleep(0.05)
    finally:
        for sidecar in made.values():
            await sidecar.stop()
    for bad in ("UPPER", "a/b", "-a", "x" * 64):
        async with mesh.sidecar.identity.send("GET", f"/v1/feed?instance={bad}") as reply:
            assert reply.status == 400
        stranger = SecretKey.generate()
        vkey = checkpoint.vkey(f"{ORIGIN}/{bad}", stranger.public)
        assert (await shipped(mesh, 0, b"", [], vkey))[0] == 403


async def gaps_of(mesh: Mesh, kind: str) -> list[str]:
    told = (await mesh.admin("GET", "/v1/ledger/gaps?since_us=0")).json["gaps"]
    return [gap["origin"] for gap in told if gap["kind"] == kind]


async def test_a_log_that_ended_in_good_order_is_not_missed(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.gaps.SILENT_US", 0)
    sealed = (await witnessed(mesh)).size
    await mesh.stop("sidecar")
    async with asyncio.timeout(30):
        while ORIGIN in await gaps_of(mesh, "unwitnessed"):
            await asyncio.sleep(0.1)
    [log] = [one for one in (await mesh.admin("GET", "/v1/ledger/logs")).json["logs"] if one["origin"] == ORIGIN]
    assert (log["closed"], log["sealed"] > sealed) == ("in good order", True)
    await mesh.start_sidecar()
    async with asyncio.timeout(30):
        while ORIGIN not in await gaps_of(mesh, "unwitnessed"):
            await asyncio.sleep(0.1)


async def test_a_log_whose_writer_was_lost_is_closed_by_a_person(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    await witnessed(mesh)
    for task in mesh.sidecar._tasks:  # as if it were gone: nothing comes any more, and nothing said so
        task.cancel()
    asked = {"origin": ORIGIN, "reason": "its pod was killed"}
    early = await mesh.admin("POST", "/v1/ledger/close", asked)
    assert (early.status, "is not gone" in early.json["detail"]) == (400, True)
    monkeypatch.setattr("gateway.gaps.SILENT_US", 0)
    monkeypatch.setattr("gateway.witness.SILENT_US", 0)
    assert ORIGIN in await gaps_of(mesh, "unwitnessed")
    assert (await mesh.admin("POST", "/v1/ledger/close", {**asked, "reason": " "})).status == 400
    assert (await mesh.admin("POST", "/v1/ledger/close", {**asked, "origin": "x"})).status == 404
    assert (await mesh.admin("POST", "/v1/ledger/close", asked)).status == 201
    assert ORIGIN not in await gaps_of(mesh, "unwitnessed")
    status, told = await shipped(mesh, 0, b"", [])
    assert (status, b"its pod was killed" in told) == (409, True)
    assert (await mesh.admin("POST", "/v1/ledger/renew", asked)).status == 201
    assert (await shipped(mesh, 0, b"", []))[0] == 200
