"""``licet agents`` as an operator types it, against a running mesh: what it does, what it records, what it says."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests import zygote
from tests.mesh import REPOSITORY, Mesh
from trust.ledger.entries import Admin, Intent, Kill, Revocation

pytestmark = pytest.mark.slow
READ, NOTES = "workbench/read_file", {"path": "notes.txt"}
WAITING = ThreadPoolExecutor(16)
"""For commands that run; the mesh beside them has threads of its own."""


async def licet(mesh: Mesh, *words: str, **environ: str) -> tuple[int, str, str]:
    """(exit code, output, errors) of one command, on the machine of the gateway and of demo's sidecar."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LICET_")}
    settings = {
        "LICET_HOME": str(mesh.home),
        "LICET_GATEWAY_URL": mesh.gateway_url,
        "LICET_SIDECAR__GATEWAY_URL": mesh.gateway_url,
        "LICET_SIDECAR__PORT": str(mesh.sidecar.port),
        "COLUMNS": "200",
    }
    given = {**inherited, **settings, **environ}
    return await asyncio.get_running_loop().run_in_executor(WAITING, zygote.licet, [*words], given, REPOSITORY)


async def fine(mesh: Mesh, *words: str, **environ: str) -> str:
    code, out, err = await licet(mesh, *words, **environ)
    assert code == 0, err
    return out


async def as_json(mesh: Mesh, *words: str) -> Any:
    return json.loads(await fine(mesh, *words, "--json"))


async def test_the_life_of_an_agent(mesh: Mesh) -> None:
    out = await fine(mesh, "agents", "register", "helper", "--owner", "bob", "--team", "ops", "--purpose", "to help")
    token = out.partition("ENROLMENT_TOKEN=")[2].split()[0]
    from sidecar.app import Sidecar
    from sidecar.config import SidecarConfig

    config = SidecarConfig(home=mesh.home / "helper", port=0, gateway_url=mesh.gateway_url, enrolment_token=token)
    mesh.others["helper"] = helper = Sidecar(config)
    await helper.start()
    async with asyncio.timeout(30):
        while not all(helper.checks().values()):
            await asyncio.sleep(0.02)
    assert "probation" in await fine(mesh, "agents", "list")
    shown = await fine(mesh, "agents", "show", "helper")
    assert "did:web:licet.local:agents:helper" in shown
    assert "acts for bob, in ops; development; to help" in shown

    chain = mesh.home / "task.chain"
    only = "workbench/read_file:path=notes.txt"
    out = await fine(mesh, "agents", "delegate", "helper", "--only", only, "--expires", "600", "-o", str(chain))
    assert "demo lets helper do this for ada until" in out
    beside = {"LICET_SIDECAR__HOME": str(mesh.home / "helper"), "LICET_SIDECAR__PORT": str(helper.port)}
    program = (
        "import os, json, urllib.request as u; r = u.Request(os.environ['LICET_URL'] + '/v1/actions', "
        "json.dumps({'tool': 'workbench/read_file', 'args': {'path': 'notes.txt'}}).encode(), "
        "{'Content-Type': 'application/json', 'Authorization': 'Bearer ' + os.environ['LICET_TOKEN']}); "
        "print(u.build_opener(u.ProxyHandler({})).open(r).read().decode())"
    )
    out = await fine(mesh, "run", "--delegation", str(chain), "--", sys.executable, "-c", program, **beside)
    assert json.loads(out)["decision"] == "allow"
    intent = [line.entry for _, line in helper.ledger.lines() if isinstance(line.entry, Intent)][-1]
    assert (intent.deed.agent, intent.deed.principal, len(intent.deed.authority)) == ("helper", "ada", 2)

    key = helper.identity.key.public
    assert "replaces the key" in await fine(mesh, "agents", "rotate", "helper")
    async with asyncio.timeout(30):
        while helper.identity.key.public == key:
            await asyncio.sleep(0.05)
    assert "drains until" in await fine(mesh, "agents", "show", "helper")
    third = await fine(
        mesh, "agents", "delegate", "did:key:z6MkiTBz1ymuepAQ4HEHYSF1H8quG5GLVVQR3djdX3mDooWp", "--only", only,
        "--home", str(mesh.home / "sidecar"),
    )  # fmt: skip
    assert "~" in third

    told = await as_json(mesh, "agents", "explain", "helper")
    assert [m["rule"] for m in told["moved"]] == ["registered", "outcome"]
    assert "a confirmed outcome of risk class 0" in await fine(mesh, "agents", "explain", "helper")
    assert "the same, bit for bit" in await fine(mesh, "agents", "replay")

    assert "is stopped" in await fine(mesh, "agents", "kill", "ops", "--reason", "a drill")
    assert (await as_json(mesh, "agents", "show", "helper"))["state"] == "killed"
    assert "is not stopped any more" in await fine(mesh, "agents", "unkill", "ops", "--reason", "over")
    assert "is revoked" in await fine(mesh, "agents", "revoke", "helper", "--reason", "retired")
    assert "revoked: agent helper: retired" in await fine(mesh, "agents", "show", "helper")

    entries = mesh.entries("gateway")
    assert [(e.target, e.by, e.reason) for e in entries if isinstance(e, Kill)] == [
        ("team:ops", "operator", "a drill"),
        ("team:ops", "operator", "over"),
    ]
    assert [(e.what, e.id, e.by) for e in entries if isinstance(e, Revocation)] == [("agent", "helper", "operator")]
    acts = [(e.event, e.by, e.role) for e in entries if isinstance(e, Admin)]
    assert ("POST /v1/revocations", "operator", "operator") in acts
    assert ("POST /v1/agents/helper/rotate", "operator", "operator") in acts


CANNOT: list[tuple[list[str], int, str]] = [
    (["show", "nobody"], 1, 'no agent "nobody" is registered; registered: demo'),
    (["rotate", "nobody"], 1, "registered: demo"),
    (["explain", "nobody"], 1, "registered: demo"),
    (["revoke", "--reason", "x"], 2, "name exactly one thing"),
    (["revoke", "demo", "--key", "x", "--reason", "x"], 2, "name exactly one thing"),
    (["revoke", "nobody", "--reason", "x"], 1, 'no agent "nobody" is registered'),
    (["revoke", "demo", "--reason", " "], 1, "say why"),
    (["kill", "nobody", "--reason", "x"], 1, 'no agent and no team "nobody"'),
    (["unkill", "demo", "--reason", "x"], 1, '"demo" is not stopped'),
    (["delegate", "demo"], 2, "name what is delegated"),
    (["delegate", "demo", "--only", "nonsense"], 2, "expected server/tool:argument=value"),
    (["delegate", "demo", "--tool", "workbench/nothing"], 1, "not in the inventory"),
    (["delegate", "demo", "--only", 'workbench/read_file:path:={"constraint_type":"regex"}'], 1, "tools:"),
    (["delegate", "demo", "--only", "workbench/read_file:path:={bad"], 2, "what follows := is no JSON"),
    (["delegate", "demo", "--tool", "workbench/read_fil"], 1, "near it: workbench/read_file"),
    (["delegate", "demo", "--only", "workbench/read_file:paht=x"], 1, 'has no argument "paht": it has path'),
    (["delegate", "demo", "--only", "workbench/read_file:path:=7"], 1, "expected a string, found 7"),
    (["delegate", "demo", "--only", "workbench/read_file:path=1..5"], 1, "a range says nothing about"),
    (["delegate", "demo", "--tool", "workbench/read_file", "--expires", "0"], 2, "--expires"),
    (["delegate", "did:key:zzz", "--tool", "workbench/read_file"], 1, "did:key:zzz: not an Ed25519 did:key"),
    (["delegate", "demo", "--chain", "README.md"], 1, "README.md holds no delegation chain"),
    (["delegate", "demo", "--chain", "docs"], 1, "docs"),
    (["delegate", "demo", "--chain", "nowhere"], 1, "nowhere"),
    (["revoke", "--key", "demo", "--reason", "x"], 1, "names no key; expected its thumbprint"),
    (["grant", "demo", "--withdraw", "--reason", "x"], 1, "no grant that could be withdrawn"),
    (["delegate", "nobody", "--tool", "workbench/read_file"], 1, 'no agent "nobody"'),
    (["delegate", "did:key:zabc", "--tool", "workbench/read_file"], 1, "did:key"),
    (["vouch", "demo", "demo", "--stake", "1", "--reason", "x"], 1, "same principal"),
    (["clear", "demo", "--reason", "x"], 1, "under no cap"),
    (["grant", "demo", "--reason", "x"], 1, "not attested"),
    (["register", "demo", "--owner", "x"], 1, "already registered"),
    (["register", "x", "--owner", " "], 1, "name its owner"),
]


async def test_what_cannot_be_done_says_why(mesh: Mesh) -> None:
    """One mesh for all of them: each takes a second to start, and none of them changes anything."""
    for words, code, says in CANNOT:
        found, _, err = await licet(mesh, "agents", *words)
        assert (found, says in " ".join(err.split())) == (code, True), (words, err)
