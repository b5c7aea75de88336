"""Several workers of one sidecar: one agent, whichever of them it reaches, and when one of them is gone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import psutil
import pytest

from licet.client import Credentials, delegate, enroll
from loadtests.servers import free_port
from sidecar.app import Sidecar
from sidecar.config import SidecarConfig
from sidecar.journal import Recall
from sidecar.memories import Permitted
from tests.mesh import REPOSITORY, SEGMENT, Answer, Mesh, policy_files
from trust.facts import Rate, Run
from trust.ledger import entries
from trust.ledger.verify import verify

pytestmark = pytest.mark.slow
READ, DELETE = "workbench/read_file", "workbench/delete_file"
FIVE = """
@id("five-a-day") @reason("five a day") @owner("tests")
forbid (principal, action == Action::"workbench/read_file", resource)
when { context.run.id == "limited" && context.rate.tool_day >= 5 };
"""


class Team:
    """The workers of a sidecar, each at a port of its own, so that a test says whom it asks."""

    def __init__(self, mesh: Mesh, family: Path) -> None:
        self.mesh = mesh
        self.family = family
        self.workers: dict[int, Sidecar] = {}

    def config(self) -> SidecarConfig:
        mesh = self.mesh
        return SidecarConfig(
            home=mesh.home / "sidecar",
            port=0,
            gateway_url=mesh.gateway_url,
            segment_bytes=SEGMENT,
            hold_wait_s=2.0,
            guests=("guest",),
        )

    async def start(self, number: int, of: int = 2) -> Sidecar:
        made = self.workers[number] = Sidecar(self.config().as_worker(number, of, self.family))
        await made.start()
        return made

    async def stop(self) -> None:
        for one in self.workers.values():
            await one.stop()
        self.workers = {}

    async def act(self, number: int, tool: str, args: dict[str, Any], *, token: str = "", **more: Any) -> Answer:
        return await self.mesh.act(self.workers[number], tool, args, token=token or self.workers[1].token, **more)


@pytest.fixture
async def team(tmp_path: Path) -> AsyncIterator[Team]:
    async with Mesh(tmp_path) as mesh:
        for name in ("notes.txt", "other.txt"):
            (mesh.sandbox / name).write_text("hello")
        await mesh.stop("sidecar")
        with tempfile.TemporaryDirectory() as family:
            made = Team(mesh, Path(family))
            await made.start(1)
            await made.start(2)
            yield made
            await made.stop()


def known(worker: Sidecar) -> tuple[Run, Rate]:
    """What a decision of *worker* would be told now."""
    recall, now = Recall("demo", worker._journal), time.time()
    with recall.turn:
        return recall.run("another", now), recall.rate(READ, now)


def same(known: tuple[Run, Rate], before: tuple[Run, Rate]) -> bool:
    """Whether both say the same but for the time that has gone by."""
    return (msgspec.structs.replace(known[0], seconds=0), known[1]) == (
        msgspec.structs.replace(before[0], seconds=0),
        before[1],
    )


def origin(answer: Answer) -> str:
    return answer.headers["Licet-Audit"].partition("#")[0]


async def test_each_has_a_log_of_its_own_and_the_gateway_witnesses_both(team: Team) -> None:
    answers = [await team.act(number, READ, {"path": "notes.txt"}) for number in (1, 2)]
    assert [answer.status for answer in answers] == [200, 200]
    logs = [origin(answer) for answer in answers]
    assert logs == ["licet.local/sidecar/demo", "licet.local/sidecar/demo/w2"]
    async with asyncio.timeout(30):
        for log in logs:
            while not any(one.origin == log and one.size for one in team.mesh.gateway.witness.logs()):
                await asyncio.sleep(0.05)
    assert {line.entry.deed.agent for _, line in team.workers[2].ledger.lines() if hasattr(line.entry, "deed")} == {
        "demo"
    }


async def limited(team: Team) -> None:
    answer = await team.mesh.activate({**policy_files(), "five.cedar": FIVE})
    assert answer.status == 200, answer.body
    active = team.mesh.gateway.bundles.sealed
    async with asyncio.timeout(30):
        while any(w.world.bundle is None or w.world.bundle.digest != active.digest for w in team.workers.values()):
            await asyncio.sleep(0.02)


async def test_what_another_permits_meanwhile_is_reckoned_with(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other's fifth call comes between what was read and the turn in which this one would be the fifth."""
    await limited(team)
    for _ in range(4):
        assert (await team.act(1, READ, {"path": "notes.txt"}, run="limited")).status == 200
    first, second = (team.workers[number]._journal for number in (1, 2))
    look = first.look

    def looks_first() -> int:
        known = look()
        second.tell(Permitted(2, "demo", "limited", READ, (), time.time(), 0))
        return known

    monkeypatch.setattr(first, "look", looks_first)
    answer = await team.act(1, READ, {"path": "notes.txt"}, run="limited")
    assert (answer.status, answer.json["policy_ids"]) == (403, ["five-a-day"])


async def test_a_limit_is_of_all_of_them(team: Team) -> None:
    await limited(team)
    calls = [team.act(1 + n % 2, READ, {"path": "notes.txt"}, run="limited") for n in range(30)]
    told = Counter(answer.status for answer in await asyncio.gather(*calls))
    assert told == {200: 5, 403: 25}


async def test_what_one_let_the_agent_see_the_other_knows(team: Team) -> None:
    seen = await team.act(1, READ, {"path": "notes.txt"}, run="r1")
    assert seen.status == 200
    async with asyncio.timeout(30):
        await team.act(2, READ, {"path": "notes.txt"}, run="r2")
    intent = [line.entry for _, line in team.workers[2].ledger.lines() if isinstance(line.entry, entries.Intent)][-1]
    context = intent.judgement.facts["context"]
    assert context["run"]["labels"], "the label that the first brought"
    assert (context["run"]["calls"], context["rate"]["tool_day"]) == (1, 1)
    assert (await team.act(1, DELETE, {"path": "../x"})).status in (202, 403)


async def test_a_key_is_in_one_hand_whoever_is_asked(team: Team) -> None:
    for number in range(6):  # keys of both workers
        more: dict[str, Any] = {"idempotency_key": f"key-{number}"}
        calls = [team.act(1 + n % 2, READ, {"path": "notes.txt"}, **more) for n in range(8)]
        answers = await asyncio.gather(*calls)
        assert {answer.status for answer in answers} == {200}
        assert len({answer.headers["Licet-Decision-Id"] for answer in answers}) == 1
        assert len({answer.body for answer in answers}) == 1
        other = await team.act(1 + number % 2, READ, {"path": "other.txt"}, **more)
        assert (other.status, other.json["reason"]) == (401, "replayed")
    intents = [
        line.entry.deed.idempotency_key
        for worker in team.workers.values()
        for _, line in worker.ledger.lines()
        if isinstance(line.entry, entries.Intent)
    ]
    assert sorted(intents) == [f"key-{number}" for number in range(6)]
    assert {
        origin(a)
        for a in [await team.act(1, READ, {"path": "notes.txt"}, idempotency_key=f"key-{n}") for n in range(6)]
    } == {
        "licet.local/sidecar/demo",
        "licet.local/sidecar/demo/w2",
    }


async def test_while_its_worker_is_away_a_key_is_of_nobody(team: Team) -> None:
    await team.workers.pop(2).stop()
    told = Counter()
    for number in range(12):
        answer = await team.act(1, READ, {"path": "notes.txt"}, idempotency_key=f"key-{number}")
        told[answer.status] += 1
        if answer.status != 200:
            assert (answer.status, answer.json["reason"]) == (503, "overloaded")
            assert "worker 2" in answer.json["detail"]
    assert set(told) == {200, 503}


async def test_a_worker_that_starts_again_knows_everything(team: Team) -> None:
    for number in (1, 2):
        await team.act(number, READ, {"path": "notes.txt"}, idempotency_key=f"k{number}")
        await team.act(number, DELETE, {"path": "/etc/passwd"})
    for number in (1, 2):
        before = known(team.workers[1])
        await team.workers.pop(number).stop()
        assert same(known(await team.start(number)), before)
        for key in ("k1", "k2"):
            repeated = await team.act(number, READ, {"path": "notes.txt"}, idempotency_key=key)
            assert repeated.status in (200, 401)
    intents = [
        line.entry
        for worker in team.workers.values()
        for _, line in worker.ledger.lines()
        if isinstance(line.entry, entries.Intent)
    ]
    assert len(intents) == 2, "no key was used again"


@pytest.mark.parametrize("of", [1, 3])
async def test_fewer_or_more_workers_know_what_all_did(team: Team, of: int) -> None:
    for number in (1, 2):
        await team.act(number, READ, {"path": "notes.txt"}, idempotency_key=f"k{number}")
    before = known(team.workers[1])
    size = team.workers[2].ledger.size
    await team.stop()
    with tempfile.TemporaryDirectory() as family:
        team.family = Path(family)
        if of == 1:
            team.workers[1] = Sidecar(team.config())
            await team.workers[1].start()
            async with asyncio.timeout(30):
                while not all(team.workers[1].checks().values()):
                    await asyncio.sleep(0.02)
            await team.mesh.act(team.workers[1], READ, {"path": "notes.txt"})
        else:
            for number in range(1, of + 1):
                await team.start(number, of)
        run, rate = known(team.workers[1])
        more = 1 if of == 1 else 0
        assert (run.calls, rate.tool_day) == (before[0].calls + more, before[1].tool_day + more)
        assert (run.labels, run.denied) == (before[0].labels, before[0].denied)
        if of == 3:
            for number in (1, 2, 3):
                for key in ("k1", "k2"):
                    again = await team.act(number, READ, {"path": "notes.txt"}, idempotency_key=key)
                    assert (again.status, again.json["reason"]) == (401, "replayed")
        else:  # the log of the second is looked after by who is left
            async with asyncio.timeout(30):
                while not any(
                    one.origin == "licet.local/sidecar/demo/w2" and one.size >= size
                    for one in team.mesh.gateway.witness.logs()
                ):
                    await asyncio.sleep(0.05)
        await team.stop()


async def test_a_token_for_a_chain_is_good_at_each(team: Team) -> None:
    first = team.workers[1]
    credentials = Credentials.load(team.mesh.home / "sidecar")
    chain = await asyncio.to_thread(delegate, credentials, team.mesh.gateway_url, {READ: {}})
    url = f"http://127.0.0.1:{first.port}/v1/mandates"
    token = (await team.mesh.request("POST", url, token=first.token, json={"chain": chain})).json["token"]
    answers = [await team.act(number, READ, {"path": "notes.txt"}, token=token) for number in (1, 2, 1)]
    assert [answer.status for answer in answers] == [200] * 3
    assert (await team.act(2, DELETE, {"path": "notes.txt"}, token=token)).json["reason"] == "authority_exceeded"


async def test_a_key_that_is_replaced_is_replaced_for_all(team: Team) -> None:
    credentials = Credentials.load(team.mesh.home / "sidecar")
    chain = await asyncio.to_thread(delegate, credentials, team.mesh.gateway_url, {READ: {}})
    url = f"http://127.0.0.1:{team.workers[1].port}/v1/mandates"
    token = (await team.mesh.request("POST", url, token=team.workers[1].token, json={"chain": chain})).json["token"]
    before = team.workers[1].identity.key.public
    assert (await team.mesh.admin("POST", "/v1/agents/demo/rotate", {})).status == 202
    async with asyncio.timeout(30):
        while len({one.identity.key.public.raw for one in team.workers.values()} | {before.raw}) != 2 or (
            team.workers[2].identity.key.public == before
        ):
            await asyncio.sleep(0.05)
    for number in (1, 2):
        assert (await team.act(number, READ, {"path": "notes.txt"})).status == 200
        assert (await team.act(number, READ, {"path": "notes.txt"}, token=token)).status == 200


async def test_a_guest_is_heard_once_whoever_hears_it(team: Team) -> None:
    mesh = team.mesh
    answer = await mesh.admin("POST", "/v1/agents", {"name": "guest", "owner": "gail", "via": "demo"})
    await asyncio.to_thread(enroll, mesh.gateway_url, answer.json["enrolment_token"], mesh.home / "guest")
    credentials = Credentials.load(mesh.home / "guest", "wimse://licet.local/sidecar/demo")
    host = "localhost:7410"
    for one in team.workers.values():  # as behind one port
        one._listener._server._border.hosts.add(host)  # type: ignore[attr-defined]
    url = f"http://{host}/v1/actions"
    for key in (None, "guests-1", "guests-2", "guests-3"):
        asked = {"tool": READ, "args": {"path": "notes.txt"}, **({"idempotency_key": key} if key else {})}
        body, headers = json.dumps(asked).encode(), {"content-type": "application/json"}
        headers |= credentials.sign("POST", url, headers, body) | {"Host": host}
        told = [
            await mesh.request("POST", f"http://127.0.0.1:{one.port}/v1/actions", data=body, headers=headers)
            for one in team.workers.values()
        ]
        assert [answer.status for answer in told] == [200, 401], told[0].body
        assert told[1].json["reason"] == "replayed"


async def test_one_look_at_the_metrics_shows_all(team: Team) -> None:
    await team.act(1, READ, {"path": "notes.txt"})
    await team.act(2, READ, {"path": "notes.txt"})
    told = (await team.mesh.request("GET", f"http://127.0.0.1:{team.workers[2].port}/metrics")).body.decode()
    for worker in ("1", "2"):
        assert f'licet_actions_total{{decision="allow",reason="",worker="{worker}"}} 1.0' in told
        assert f'licet_ready{{worker="{worker}"}} 1.0' in told
    assert told.count("# TYPE licet_ready gauge") == 1


async def test_real_processes_share_a_port_and_one_that_is_killed_comes_back(tmp_path: Path) -> None:
    async with Mesh(tmp_path) as mesh:
        (mesh.sandbox / "notes.txt").write_text("hello")
        await mesh.stop("sidecar")
        port = free_port()
        kept = {name: value for name, value in os.environ.items() if not name.startswith("LICET_")}
        settings = {
            "LICET_HOME": str(tmp_path),
            "LICET_SIDECAR__HOME": str(tmp_path / "sidecar"),
            "LICET_SIDECAR__PORT": str(port),
            "LICET_SIDECAR__GATEWAY_URL": mesh.gateway_url,
        }
        command = [sys.executable, "-m", "licet", "sidecar", "--workers", "2"]
        process = await asyncio.create_subprocess_exec(
            *command, env=kept | settings, cwd=REPOSITORY, stdout=subprocess.PIPE
        )
        token = (tmp_path / "sidecar" / "agent.token").read_text().strip()
        try:
            assert process.stdout is not None
            line = await process.stdout.readline()
            assert line.decode() == f"sidecar listens on http://127.0.0.1:{port} (2 workers)\n"
            told = await _ask(port, token, 60)
            assert set(told) == {("licet.local/sidecar/demo", 200), ("licet.local/sidecar/demo/w2", 200)}
            workers = psutil.Process(process.pid).children()
            assert len(workers) == 2
            workers[0].kill()
            async with asyncio.timeout(30):
                while set(await _ask(port, token, 20)) != set(told):
                    await asyncio.sleep(0.2)
        finally:
            process.terminate()
            assert await process.wait() == 0
        for home in (tmp_path / "sidecar", tmp_path / "sidecar" / "worker-2"):
            assert not verify(home / "ledger").faults


async def _ask(port: int, token: str, times: int) -> Counter[tuple[str, int]]:
    """So many calls, each with a connection of its own: which log they stand in, and how they were answered."""
    told: Counter[tuple[str, int]] = Counter()
    body = {"tool": READ, "args": {"path": "notes.txt"}}
    for _ in range(times):
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as client:
            with contextlib.suppress(aiohttp.ClientError):
                async with client.post(f"http://127.0.0.1:{port}/v1/actions", json=body) as answer:
                    told[answer.headers["Licet-Audit"].partition("#")[0], answer.status] += 1
    return told


def test_a_port_that_is_taken_is_told_once(tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LICET_")}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "licet", "sidecar", "--workers", "2"],
            env=kept | {"LICET_HOME": str(tmp_path), "LICET_SIDECAR__PORT": port},
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 1
    assert "is something else listening there?" in done.stderr
    assert "Traceback" not in done.stderr
