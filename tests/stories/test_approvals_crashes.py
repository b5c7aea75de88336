"""kill -9 of gateway and sidecar between request, vote, claim, consume and route: nothing runs twice, nothing is lost."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from edge.judging import Judge
from licet import ledgers
from tests.mesh import REPOSITORY, Mesh
from tests.stories.test_approvals import bank_mesh, done, files
from trust.ledger.entries import Approval, Outcome
from trust.ledger.verify import verify

WORKERS = 6
NEEDED = {"bank/refund": ("fay",), "bank/pay": ("fay", "finn")}


class Process:
    """A gateway or a sidecar of the mesh as a process of its own, that can be killed and started again."""

    def __init__(self, mesh: Mesh, name: str, port: int) -> None:
        self._name = name
        self._said = mesh.home / f"{name}.said"
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("LICET_")}
        part = f"LICET_{name.upper()}__"
        self._env = {
            **inherited,
            "LICET_HOME": str(mesh.home),
            f"{part}HOME": str(mesh.home / name),
            f"{part}PORT": str(port),
            f"{part}SEGMENT_BYTES": str(1 << 20),
            "LICET_SIDECAR__GATEWAY_URL": mesh.gateway_url,
        }

    async def start(self) -> None:
        with self._said.open("ab") as said:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "licet", self._name, cwd=REPOSITORY, env=self._env,
                stdout=asyncio.subprocess.PIPE, stderr=said,
            )  # fmt: skip
        assert self._process.stdout is not None
        async with asyncio.timeout(60):
            while b"listens" not in await self._process.stdout.readline():
                assert self._process.returncode is None, f"{self._name} did not start"

    async def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        self._process.send_signal(how)
        await self._process.wait()


class Story:
    """What everybody was answered while processes died."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._token = (mesh.home / "sidecar" / "agent.token").read_text().strip()
        self._url = mesh.url
        self._numbers = iter(range(1, 1_000_000))
        self.requests: dict[str, int] = {}
        self.votes: set[tuple[str, str]] = set()
        self.ran: set[str] = set()
        self.spent: set[str] = set()
        self.refused: Counter[str] = Counter()
        self.closing = False

    async def _as_agent(self, path: str, body: Any = None) -> dict[str, Any]:
        answer = await self._mesh.request("POST", self._url + path, token=self._token, json=body)
        return {"status": answer.status, **answer.json}

    async def _until(self, asking: Any, *wanted: Any) -> dict[str, Any]:
        """Ask until somebody is there to answer what is wanted: a status or a reason."""
        while True:
            try:
                told: dict[str, Any] = await asking()
                if told["status"] in wanted or told.get("reason") in wanted:
                    return told
                self.refused[f"{told['status']} {told.get('reason')}: {told.get('detail')}"] += 1
            except (aiohttp.ClientError, ConnectionError, ValueError):
                pass
            await asyncio.sleep(0.05)

    async def work(self, chance: random.Random) -> None:
        """Whole stories, one after the other."""
        while not self.closing:
            tool, number = chance.choice(list(NEEDED)), next(self._numbers)
            call = {"tool": tool, "args": {"to": "landlord", "cents": number}, "run": f"r{number}"}
            told = await self._until(lambda call=call: self._as_agent("/v1/actions", call), 202)
            approval = str(told["approval"])
            self.requests[approval] = number
            for who in NEEDED[tool]:
                await self._vote(approval, who)
            told = await self._until(
                lambda approval=approval: self._as_agent(f"/v1/approvals/{approval}/claim"), 200, "approval_consumed"
            )
            (self.ran if told["status"] == 200 else self.spent).add(approval)

    async def _vote(self, approval: str, who: str) -> None:
        async def vote() -> dict[str, Any]:
            shown = (await self._mesh.admin("GET", f"/v1/approvals/{approval}", who=who)).json
            if any(one["by"] == who for one in shown["votes"]):
                return {"status": 200}
            ballot = {"decision": "approve", "presented": shown["presented"]}
            answer = await self._mesh.admin("POST", f"/v1/approvals/{approval}/votes", ballot, who)
            return {"status": answer.status}

        await self._until(vote, 200)
        self.votes.add((approval, who))


async def deaths(mesh: Mesh, count: int, seed: int) -> None:
    chance = random.Random(seed)
    sidecar_port, gateway_port = mesh.sidecar.port, mesh.gateway_port
    kept = {name: text for name, text in files().items() if not name.startswith("rings")}  # without its rates
    assert (await mesh.activate(kept)).status == 200
    await mesh.ready()
    story = Story(mesh)
    await mesh.stop("sidecar")
    await mesh.stop("gateway")
    gateway, sidecar = Process(mesh, "gateway", gateway_port), Process(mesh, "sidecar", sidecar_port)
    await gateway.start()
    await sidecar.start()
    workers = [asyncio.create_task(story.work(random.Random(seed + i))) for i in range(WORKERS)]
    for _ in range(count):
        await asyncio.sleep(0.3 + chance.random() * 0.7)
        dying = chance.choice((gateway, sidecar))
        await dying.kill()
        await dying.start()
    story.closing = True
    story.refused.clear()
    _, stuck = await asyncio.wait(workers, timeout=120)
    assert not stuck, "\n".join(map(str, story.refused.most_common(8)))
    await sidecar.kill(signal.SIGTERM)
    await gateway.kill(signal.SIGTERM)
    look(mesh, story)


def look(mesh: Mesh, story: Story) -> None:
    """At everything, from outside."""
    for part in ("gateway", "sidecar"):
        root = mesh.home / part / "ledger"
        report = verify(root, judge=Judge(root.parent))
        assert report.faults == []
        assert report.holds
    ran = Counter(args["cents"] for _, args in done(mesh))
    assert max(ran.values()) == 1, "an approved action ran twice"
    told = [line.entry for _, line in ledgers.lines(mesh.home / "gateway" / "ledger")]
    steps = [entry for entry in told if isinstance(entry, Approval)]
    voted = {(one.approval, one.by) for one in steps if one.event == "vote"}
    assert story.votes <= voted, "a vote that was answered was lost"
    assert len(voted) == sum(one.event == "vote" for one in steps), "somebody voted twice"
    claims = [one for one in steps if one.event == "claimed"]
    assert len({one.approval for one in claims}) == len(claims), "an approval was used twice"
    assert {one.approval for one in claims} >= story.ran | story.spent == set(story.requests)
    assert {story.requests[one] for one in story.ran} <= set(ran), "an answered action did not run"
    outcomes = {
        line.entry.action_id: line.entry.status
        for _, line in ledgers.lines(mesh.home / "sidecar" / "ledger")
        if isinstance(line.entry, Outcome)
    }
    for one in claims:
        number = story.requests[one.approval]
        how = outcomes[one.claim]
        assert how == "unknown" or (number in ran) == (how == "done"), f"{one.approval} ended {how}"
    unknown = sum(outcomes[one.claim] == "unknown" for one in claims)
    print(f"{len(claims)} approvals used, {len(story.spent)} of them with an answer that was lost, {unknown} unknown")
    assert len(story.ran) > len(story.spent), "most must come through"


@pytest.fixture
async def bank(tmp_path: Path) -> Any:
    async with bank_mesh(tmp_path) as running:
        yield running


@pytest.mark.slow
async def test_gateway_and_sidecar_die_four_times_while_people_decide(bank: Mesh) -> None:
    await deaths(bank, 4, seed=1)


@pytest.mark.soak
async def test_gateway_and_sidecar_die_a_hundred_times_while_people_decide(bank: Mesh) -> None:
    await deaths(bank, 100, seed=2)
