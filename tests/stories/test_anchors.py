"""The gateway's own log, held fast where whoever rewrites the gateway's disk does not reach."""

from __future__ import annotations

import asyncio
import base64
import shutil
from pathlib import Path

import pytest
from aiohttp import web

from edge.client import Client
from gateway.anchors import Anchors, keep
from tests.mesh import Mesh
from tests.stories.test_agents_cli import fine, licet
from tests.trust.test_ledger import KEY, ORIGIN, fill
from trust.identity.keys import SecretKey
from trust.ledger import checkpoint
from trust.ledger.checkpoint import Checkpoint
from trust.ledger.proofs import require_consistent
from trust.ledger.verify import verify
from trust.reasons import Unverifiable

NAME = "witness.example/w1"


class Witness:
    """An outside witness after C2SP tlog-witness: it knows one log, and signs only what continues what it signed."""

    def __init__(self) -> None:
        self.key = SecretKey.generate()
        self.seen = Checkpoint(ORIGIN, 0, b"", 0)
        self.asked = 0

    @property
    def vkey(self) -> str:
        return checkpoint.witness_vkey(NAME, self.key.public)

    async def add(self, request: web.BaseRequest) -> web.Response:
        self.asked += 1
        if request.path != "/add-checkpoint" or request.method != "POST":
            return web.Response(status=404)
        head, _, note = (await request.read()).partition(b"\n\n")
        old, *hashes = head.decode().split("\n")
        try:
            claim = checkpoint.open_checkpoint(note, ORIGIN, KEY.public)
        except Unverifiable:
            return web.Response(status=403)
        if int(old.removeprefix("old ")) != self.seen.size:
            return web.Response(status=409, body=f"{self.seen.size}\n".encode(), content_type="text/x.tlog.size")
        if self.seen.size:
            try:
                proof = [base64.b64decode(one) for one in hashes]
                require_consistent(proof, self.seen.size, self.seen.root, claim.size, claim.root)
            except Unverifiable:
                return web.Response(status=422)
        self.seen = claim
        return web.Response(body=checkpoint.cosign(note, NAME, self.key, 1_700_000_000))


@pytest.fixture
async def witness(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    made = Witness()
    runner = web.ServerRunner(web.Server(made.add))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"  # type: ignore[attr-defined]
    yield made
    await runner.cleanup()


def anchors(root: Path, client: Client, witness: Witness | None = None, directory: Path | None = None) -> Anchors:
    url, vkey = (witness.url, witness.vkey) if witness is not None else ("", "")  # type: ignore[attr-defined]
    return Anchors(root, directory, url, vkey, client)


@pytest.mark.slow
async def test_a_witness_cosigns_what_continues_and_nothing_else(tmp_path: Path, witness: Witness) -> None:
    client = Client()
    log = tmp_path / "log"
    fill(log, 20)
    await anchors(log, client, witness).hold()
    assert witness.seen.size == 20
    assert checkpoint.cosigned_at((log / "checkpoint.cosigned").read_bytes(), NAME, witness.key.public) == 1_700_000_000
    shutil.copytree(log, tmp_path / "old")
    fill(log, 300, boot="b2")
    await anchors(log, client, witness).hold()  # a new process does not know how far the witness is, and asks
    assert witness.seen.size == 320
    asked = witness.asked
    held = anchors(log, client, witness)
    await held.hold()
    await held.hold()  # nothing grew
    assert (held.size, witness.asked) == (320, asked + 2)
    with pytest.raises(Unverifiable, match="has seen 320 entries, and 20 are here"):
        await anchors(tmp_path / "old", client, witness).hold()
    fill(tmp_path / "old", 310, boot="b3")  # as long again, with other entries
    with pytest.raises(Unverifiable, match="the witness answers 422"):
        await anchors(tmp_path / "old", client, witness).hold()
    other = SecretKey.generate()
    fill(log, 1, boot="b4")
    wrong = Anchors(log, None, witness.url, checkpoint.witness_vkey(NAME, other.public), client)  # type: ignore[attr-defined]
    with pytest.raises(Unverifiable, match="no cosignature"):
        await wrong.hold()
    await client.close()


@pytest.mark.slow
async def test_checkpoints_that_were_kept_find_a_log_that_was_written_anew(tmp_path: Path) -> None:
    client, log, kept = Client(), tmp_path / "log", tmp_path / "kept"
    for boot in range(4):
        fill(log, 50, boot=f"b{boot}")
        await anchors(log, client, directory=kept).hold()
    notes = [path.read_bytes() for path in sorted(kept.iterdir())]
    assert len(notes) == 4
    report = verify(log, kept=notes)
    assert report.holds
    assert "4 checkpoints that were kept elsewhere are of this very log" in report.words()
    forged = tmp_path / "forged"
    fill(forged, 210)  # by whoever has the key
    report = verify(forged, kept=notes)
    assert not report.holds
    assert sum("are not those that were seen before" in fault for fault in report.faults) == 4
    short = tmp_path / "short"
    fill(short, 60)
    assert "100 entries were sealed once, and now there are 60" in verify(short, kept=notes).faults
    with pytest.raises(Unverifiable, match="kept with another root"):
        keep(kept, notes[0], Checkpoint(ORIGIN, 50, bytes(32), 1))
    assert [path.read_bytes() for path in sorted(kept.iterdir())] == notes
    await client.close()


@pytest.mark.slow
async def test_a_gateway_keeps_its_checkpoints_and_the_command_line_compares(
    mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept"
    monkeypatch.setattr("gateway.anchors.INTERVAL_S", 0.1)
    monkeypatch.setattr(mesh.gateway.anchors, "_directory", kept)
    task = asyncio.create_task(mesh.gateway.anchors.work())
    for _ in range(3):
        await mesh.call("workbench/read_file", {"path": "notes.txt"})
        await asyncio.sleep(1.1)
    task.cancel()
    root = str(mesh.gateway.ledger.root)
    assert "checkpoints that were kept elsewhere are of this very log" in await fine(
        mesh, "audit", "verify", root, "--against", str(kept)
    )
    refused = await licet(mesh, "audit", "verify", "--against", str(kept))
    assert refused[0] == 2
    (tmp_path / "empty").mkdir()
    refused = await licet(mesh, "audit", "verify", root, "--against", str(tmp_path / "empty"))
    assert refused[0] == 2
    assert "no *.checkpoint is there" in refused[2]
