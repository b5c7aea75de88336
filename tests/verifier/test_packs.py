"""Evidence handed to an outsider: verified by a bare Python, and not verified with anything in it changed."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser

from tests.console.conftest import browser, chromium, screen
from tests.mesh import Mesh, policy_files
from tests.stories.test_agents_cli import fine, licet
from tests.stories.test_asking import settled
from trust.identity.keys import SecretKey, b64url
from trust.ledger import checkpoint
from trust.ledger.entries import Query
from trust.verifier.notes import Fault
from trust.verifier.pack import Pack, Report

__all__ = ["browser", "chromium"]
pytestmark = pytest.mark.slow
READ, NOTES = "workbench/read_file", {"path": "notes.txt"}
Files = dict[str, bytes]


@pytest.fixture
async def told(mesh: Mesh) -> Mesh:
    """One run with an allowed, a refused, and an approved action, and one that nobody decided."""
    await mesh.call(READ, NOTES, run="r1")
    await mesh.call(READ, {"path": "server.pem"}, run="r1")
    held = await mesh.call("workbench/delete_file", NOTES, run="r1")
    await mesh.vote(held.json["approval"], reason="fine")
    assert (await mesh.claim(held.json["approval"])).status == 200
    await mesh.call("workbench/delete_file", {"path": "other.txt"}, run="r1")
    await mesh.call(READ, NOTES, run="r2")
    await settled(mesh)
    return mesh


async def pack_of(mesh: Mesh, run: str = "r1") -> bytes:
    answer = await mesh.admin("GET", f"/v1/runs/{run}/evidence")
    assert answer.status == 200, answer.body
    return answer.body


def bare(path: Path, *words: str) -> tuple[int, str]:
    """(exit code, output) of a Python without site packages, environment or this checkout."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(path), *words], cwd=path.parent, capture_output=True, text=True, env={}
    )
    return done.returncode, done.stdout + done.stderr


async def test_an_outsider_verifies_it_with_a_bare_python(told: Mesh, tmp_path: Path) -> None:
    path = tmp_path / "elsewhere" / "evidence.zip"
    said = await fine(told, "audit", "export", "--evidence", "r1", "-o", str(path))
    assert f"python3 {path}" in said
    code, output = await asyncio.to_thread(bare, path)
    assert code == 0, output
    for sentence in (
        "entries stand in the log licet.local/gateway/main, as it was sealed and signed",
        "entries stand in the log licet.local/sidecar/demo, as it was sealed and signed",
        "entries stand in the log licet.local/node/node-1, as it was sealed and signed",
        "5 decisions were made again from their recorded facts and came out the same",
        "approved by approver-1",
        "2 actions were allowed, and everything that was sent on was one of them",
        "VERIFIED by the key licet.local/gateway/main+",
        "which comes from the pack: give the one that you hold",
    ):
        assert sentence in output, output
    keys = ["--witness", told.gateway.witness.vkey]
    for part in ("sidecar", "node", "gateway"):
        keys += ["--key", (getattr(told, part).ledger.root / "vkey").read_text().strip()]
    code, output = await asyncio.to_thread(bare, path, *keys)
    assert code == 0, output
    assert output.splitlines()[-2] == "VERIFIED"
    other = checkpoint.vkey("licet.local/sidecar/demo", SecretKey.generate().public)
    code, output = await asyncio.to_thread(bare, path, "--key", other)
    assert code == 1
    assert "another key for licet.local/sidecar/demo than the one that you gave" in output
    read = [(e.by, e.what, e.asked) for e in told.entries("gateway") if isinstance(e, Query)]
    assert ("operator", "evidence", "r1") in read


async def test_policies_that_became_active_later_are_in_it(
    told: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that is about the run, however long after the first people were registered."""
    monkeypatch.setattr("gateway.evidence.AFTER_US", 0)
    more = '@id("later") permit(principal, action in Action::"fs", resource) when { context.trust.score > 999 };'
    assert (await told.activate({**policy_files(), "later.cedar": more})).status == 200
    await told.ready()
    await told.call(READ, NOTES, run="r3")
    await settled(told)
    (tmp_path / "r3.zip").write_bytes(await pack_of(told, "r3"))
    code, output = await asyncio.to_thread(bare, tmp_path / "r3.zip")
    assert code == 0, output


async def test_the_same_evidence_is_the_same_bytes(told: Mesh) -> None:
    first, second = await pack_of(told), await pack_of(told)
    one, other = (dict(files(data)) for data in (first, second))
    assert set(one) == set(other)
    # Checkpoints are renewed every second, also when nothing happens: only the proofs may differ.
    assert {name for name in one if one[name] != other[name]} <= {n for n in one if n.startswith("proofs/")}


def files(data: bytes) -> Files:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def verified(found: Files) -> Report:
    def read(name: str) -> bytes:
        return found[name]

    return Pack(read).verify()


def entry_of(found: Files, kind: str, which: Callable[[Any], bool] = lambda _: True) -> str:
    """The name of the first entry of a kind."""
    for name in sorted(n for n in found if n.startswith("entries/")):
        body = json.loads(found[name])["entry"]
        if body["kind"] == kind and which(body):
            return name
    raise AssertionError(kind)


async def test_one_changed_byte_anywhere_is_found(told: Mesh, tmp_path: Path) -> None:
    found = files(await pack_of(told))
    assert verified(found).faults == []
    evidence = [n for n in found if n.startswith(("entries/", "proofs/", "bundles/")) or n == "manifest.json"]
    for name in evidence:
        data = found[name]
        for place in {3, len(data) // 2, len(data) - 3}:
            changed = bytearray(data)
            changed[place] ^= 0x01
            report = verified({**found, name: bytes(changed)})
            harmless = name == "manifest.json" and _same_json(data, bytes(changed))
            assert report.faults or harmless, (name, place)


def _same_json(one: bytes, other: bytes) -> bool:
    """Whether a change did not change what the manifest means for the proof: its run's name, or white space."""
    try:
        first, second = json.loads(one), json.loads(other)
    except ValueError:
        return False
    return {**first, "run": ""} == {**second, "run": ""}


async def test_each_lie_is_found_and_named(told: Mesh) -> None:
    """What somebody who can write the pack, and holds the sidecar's log key but not the gateway's, could try."""
    found = files(await pack_of(told))
    manifest = json.loads(found["manifest.json"])

    def with_manifest(**changed: Any) -> Files:
        return {**found, "manifest.json": json.dumps({**manifest, **changed}).encode()}

    intent = entry_of(found, "intent")
    place = next(one for one in manifest["entries"] if one["file"] == intent)
    forged = found[intent].replace(b"notes.txt", b"salary.txt", 1)
    other = SecretKey.generate()
    sidecar = "licet.local/sidecar/demo"
    lies: list[tuple[Files, str]] = [
        ({**found, intent: forged}, "these bytes are not entry"),
        ({**found, place["proof"]: found[manifest["entries"][0]["proof"]]}, "its proof is one of"),
        (with_manifest(entries=[]), "there is no entry in it"),
        (with_manifest(logs={**manifest["logs"], sidecar: checkpoint.vkey(sidecar, other.public)}), "not signed by"),
        (with_manifest(witness=checkpoint.witness_vkey("w", other.public)), "is not the witness's"),
        (
            with_manifest(
                witness=checkpoint.witness_vkey(manifest["gateway"], other.public), gateway_key=b64url(other.public.raw)
            ),
            "is not cosigned by",
        ),
        (with_manifest(gateway=sidecar), "its witness is licet.local/gateway/main"),
        (with_manifest(run="r2"), "is of the run r1, not of r2"),
        (with_manifest(entries=[*manifest["entries"], manifest["entries"][0]]), "stands twice"),
        ({**found, "manifest.json": b"[]"}, "the pack cannot be read"),
        ({**found, "manifest.json": b"[" * 100_000}, "nested too deeply"),
        (with_manifest(format="licet-evidence/9"), "this verifier knows licet-evidence/1"),
        (with_manifest(bundles=[]), "could not be decided again"),
        ({n: d for n, d in found.items() if n != intent}, "the pack cannot be read"),
        (with_manifest(entries=[one for one in manifest["entries"] if one["file"] != intent]), "no log says that it"),
        (
            with_manifest(
                entries=[
                    one for one in manifest["entries"]
                    if json.loads(found[one["file"]])["entry"].get("event") != "vote"
                ]
            ),
            "0 of 1 people of the role operations approved",
        ),
        (
            with_manifest(
                entries=[
                    one for one in manifest["entries"]
                    if json.loads(found[one["file"]])["entry"].get("event") != "requested"
                ]
            ),
            "it was asked for something else, or not at all",
        ),
    ]  # fmt: skip
    for pack, said in lies:
        report = verified(pack)
        told_ = report.faults if said != "could not be decided again" else report.partly
        assert [one for one in told_ if said in one], (said, report.faults, report.open)


async def test_a_decision_that_does_not_follow_is_found_even_if_it_is_sealed(told: Mesh) -> None:
    """The sidecar's own key could seal a lie; its recorded facts would still contradict it."""
    found = files(await pack_of(told))
    pack = Pack(found.__getitem__)
    manifest = json.loads(found["manifest.json"])
    pack._keys(manifest)
    bundles = pack._bundles(manifest)
    pack.report.faults.clear()
    entries = {entry.kind: entry for entry in pack._entries(manifest)}
    for change in (
        lambda body: body["deed"]["arguments"].update(path="server.pem"),
        lambda body: body["judgement"].update(policies=["other"]),
        lambda body: body["judgement"].update(decision="allow", facts={}),
        lambda body: body["deed"].update(arguments_sha256="0" * 64),
    ):
        refusal = next(e for e in pack._entries(manifest) if e.kind == "intent")
        change(refusal.body)
        with pytest.raises((Fault, KeyError)):
            pack._decide(refusal, bundles)
    held = entries["hold"]
    held.kind = "intent"
    with pytest.raises(Fault, match=r"recorded as permit by .* give hold"):
        pack._decide(held, bundles)


async def test_what_there_is_not_cannot_be_taken(told: Mesh, tmp_path: Path) -> None:
    out = tmp_path / "x.zip"
    refused = await licet(told, "audit", "export", "--evidence", "nothing", "-o", str(out))
    assert refused[0] == 1
    assert "no log has a run nothing" in " ".join(refused[2].split())
    both = await licet(told, "audit", "export", "--evidence", "r1", "--agent", "demo", "-o", str(out))
    assert both[0] == 2
    assert not out.exists()
    assert (await told.admin("GET", "/v1/runs/r1/evidence", who="approver-1")).status == 403


async def test_the_run_page_hands_it_out(told: Mesh, browser: Browser, tmp_path: Path) -> None:
    one = await screen(told, browser)
    await one.go("/console/runs/r1")
    async with one.page.expect_download() as coming:
        await one.page.get_by_role("link", name="Evidence pack").click()
    path = tmp_path / "evidence.zip"
    await (await coming.value).save_as(path)
    assert (await asyncio.to_thread(bare, path))[0] == 0


def test_what_is_no_pack_says_so(tmp_path: Path) -> None:
    source = Path(__file__).parent.parent.parent / "trust" / "verifier"
    (tmp_path / "verifier").mkdir()
    for path in source.glob("*.py"):
        (tmp_path / "verifier" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "run.py").write_text(
        "import sys\nfrom verifier.__main__ import main\nsys.exit(main(sys.argv[1:], None))"
    )
    (tmp_path / "no.zip").write_text("no zip")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        archive.writestr("manifest.json", "{}")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("manifest.json", "{}")
    for name, code in (("no.zip", 2), ("missing.zip", 2), ("empty.zip", 1), ("twice.zip", 1)):
        done = subprocess.run(
            [sys.executable, "-S", "run.py", name], cwd=tmp_path, capture_output=True, text=True, env={}
        )
        assert done.returncode == code, (name, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
