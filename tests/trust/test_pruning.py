"""Pruning: old entries are gone, what follows them is proved as before, and a hole is never without its reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.index import Index
from gateway.ledgers import Sealed
from gateway.questions import Filter
from tests.mesh import Mesh
from tests.stories.test_agents_cli import as_json, fine, licet
from tests.stories.test_asking import settled
from tests.trust.test_ledger import KEY, ORIGIN, fill, flip
from trust.ledger import checkpoint, proofs
from trust.ledger.entries import Pruned
from trust.ledger.pruning import MARK, drop, first_kept, first_to_keep
from trust.ledger.verify import verify
from trust.reasons import Unverifiable

LATER_US = 10**17


def prune(root: Path, size: int, before_us: int) -> int:
    """As a gateway prunes its copy of a log."""
    first = first_to_keep(root, size, before_us)
    drop(root, first)
    return first


@pytest.fixture
def log(tmp_path: Path) -> Path:
    fill(tmp_path / "log", 700)
    return tmp_path / "log"


def test_whole_tiles_go_and_the_last_stays(log: Path) -> None:
    assert prune(log, 700, 0) == 0
    assert not (log / MARK).exists()
    assert prune(log, 700, LATER_US) == 512
    assert first_kept(log) == 512
    assert prune(log, 700, LATER_US) == 512
    assert sorted(path.name for path in (log / "tile/entries").glob("[0-9]*")) == ["002.p"]
    with pytest.raises(Unverifiable, match="was pruned; only its hash is kept"):
        Sealed.at(log).entry(511)


def test_what_follows_is_proved_as_before(log: Path) -> None:
    before = {index: Sealed.at(log).proof(index) for index in (512, 600, 699)}
    prune(log, 700, LATER_US)
    report = verify(log, key=KEY.public, origin=ORIGIN, copy=True)
    assert report.holds
    assert "the entries below 512 were pruned: only their hashes are here" in report.words()
    sealed = Sealed.at(log)
    for index, proof in before.items():
        assert sealed.proof(index) == proof
        proofs.require_proved(proof, sealed.entry(index), ORIGIN, KEY.public)
    assert verify(log, copy=True).holds


def test_a_log_goes_on_after_pruning(log: Path) -> None:
    prune(log, 700, LATER_US)
    fill(log, 400, boot="b2")
    report = verify(log, copy=True)
    assert (report.faults, report.sealed, report.pruned) == ([], 1100, 512)


@pytest.mark.parametrize("text", ["513\n", "-256\n", "", "256", "0x100\n", "99999999999999999999\n"])
def test_a_mark_that_is_none_is_a_fault(log: Path, text: str) -> None:
    (log / MARK).write_text(text)
    assert not verify(log).holds


def test_pruning_hides_no_tampering(log: Path) -> None:
    """Whoever claims that entries were pruned still needs their hashes, and what is left must fit them."""
    (log / MARK).write_text("256\n")
    (log / "tile/entries/000").unlink()
    assert verify(log, copy=True).holds  # seen for what it is: pruned, and said so
    assert verify(log, copy=True).pruned == 256
    flip(log / "tile/0/000", 40)
    assert not verify(log, copy=True).holds
    flip(log / "tile/0/000", 40)
    (log / MARK).unlink()
    assert not verify(log, copy=True).holds  # gone, and nobody said that they were pruned
    (log / MARK).write_text("1024\n")
    assert not verify(log, copy=True).holds


async def test_the_index_forgets_what_its_copy_has_not_any_more(log: Path, tmp_path: Path) -> None:
    """Whoever pruned it."""
    index = Index(tmp_path / "index.sqlite", lambda: [Sealed.at(log)])
    assert await index.follow() == 700
    generation = index.generation
    prune(log, 700, LATER_US)
    await index.follow()
    assert len((await index.find(Filter(limit=1000))).rows) == 188
    assert index.generation > generation, "what was copied from it is read again"
    index.close()


async def test_the_index_made_anew_after_pruning_has_the_same_content(log: Path, tmp_path: Path) -> None:
    index = Index(tmp_path / "index.sqlite", lambda: [Sealed.at(log)])
    assert await index.follow() == 700
    first = prune(log, 700, LATER_US)
    await index.prune(ORIGIN, first)
    again = Index(tmp_path / "other.sqlite", lambda: [Sealed.at(log)])
    assert await again.follow() == 188
    assert await index.dump() == await again.dump()
    assert await index.reach() == await again.reach() == {ORIGIN: 700}
    assert len((await index.find(Filter(limit=1000))).rows) == 188
    index.close()
    again.close()


@pytest.mark.slow
async def test_the_gateway_prunes_copies_says_so_and_goes_on(mesh: Mesh) -> None:
    for _ in range(140):
        await mesh.call("workbench/read_file", {"path": "server.pem"})
        await mesh.call("workbench/read_file", {"path": "other.pem"})
    await settled(mesh)
    held = await licet(mesh, "audit", "prune", "--before", "1d")
    assert (held[0], "nothing was pruned" in held[1]) == (0, True)
    told = await as_json(mesh, "audit", "prune", "--before", "0s")
    origin = mesh.sidecar.ledger.origin
    assert told == {origin: 256}
    (recorded,) = [e for e in mesh.entries("gateway") if isinstance(e, Pruned)]
    assert (recorded.origin, recorded.first, recorded.by) == (origin, 256, "operator")
    answer = await mesh.admin("GET", f"/v1/ledger/entry?origin={origin}&index=3")
    assert (answer.status, "was pruned" in answer.json["detail"]) == (404, True)
    await mesh.call("workbench/read_file", {"path": "notes.txt"})
    await settled(mesh)
    copy = mesh.gateway.witness.path(origin)
    said = await fine(mesh, "audit", "verify", str(copy), "--copy")
    assert "the entries below 256 were pruned" in said
    assert "NOT" not in said
    await mesh.stop("gateway")
    await mesh.start_gateway()
    await mesh.ready()
    await mesh.call("workbench/read_file", {"path": "notes.txt"})
    await settled(mesh)
    assert verify(copy, copy=True).holds
    assert (await mesh.admin("POST", "/v1/ledger/prune", {"before_us": 1}, who="approver-1")).status == 403
    name, key = checkpoint.parse_witness_vkey(mesh.gateway.witness.vkey)
    assert checkpoint.cosigned_at((copy / "checkpoint").read_bytes(), name, key)


@pytest.mark.slow
async def test_old_entries_are_pruned_when_their_days_are_over(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(270):
        await mesh.call("workbench/read_file", {"path": "server.pem"})
    await settled(mesh)
    ledgers = mesh.gateway.ledgers
    monkeypatch.setattr(ledgers, "_keep_days", 1)
    ledgers._prune_at = 0.0
    await ledgers._prune_when_due()
    assert not [e for e in mesh.entries("gateway") if isinstance(e, Pruned)]
    monkeypatch.setattr("gateway.ledgers.DAY_US", -1_000_000)  # as if it were tomorrow
    ledgers._prune_at = 0.0
    await ledgers._prune_when_due()
    assert [e.by for e in mesh.entries("gateway") if isinstance(e, Pruned)] == ["gateway"]
