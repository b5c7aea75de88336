"""A million entries: how fast they are verified and found, and whether reading them takes memory."""

from __future__ import annotations

import asyncio
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import psutil

from edge.clock import SystemClock
from gateway.index import Index
from gateway.ledgers import Sealed
from gateway.questions import Filter
from licet import ledgers
from trust.identity.keys import SecretKey
from trust.ledger.entries import AnyEntry, Deed, Dispatch, Intent, Judgement, Outcome, Refusal
from trust.ledger.log import Ledger
from trust.ledger.verify import verify

AGENTS: Final = 40
ACTIONS_A_RUN: Final = 50
ASKED: Final = 30
"""Questions of each kind; the median of them counts."""
COMMIT_EVERY: Final = 64


def actions(count: int, seed: int = 7) -> Iterator[tuple[AnyEntry, AnyEntry, AnyEntry, AnyEntry]]:
    """For each action two entries of a sidecar and two of a gateway, in sizes and shares as a real mesh writes them."""
    chance = random.Random(seed)
    for number in range(count):
        agent, run = f"agent-{number % AGENTS}", f"run_{number // ACTIONS_A_RUN:020d}"
        tool = ("read_file", "write_file", "delete_file", "list_directory")[chance.randrange(4)]
        action, decision = f"act_{number:026d}", f"dec_{number:026d}"
        arguments = {"path": f"reports/{number}.txt", "content": "x" * chance.randrange(200)}
        deed = Deed(
            action, decision, run, agent, f"owner-{number % 7}", "bound", "mcp", "workbench", tool,
            f"{number:064x}", f"{number:064x}", f"{number:064x}", arguments,
        )  # fmt: skip
        facts = {
            "context": {"trust": {"score": 600, "ring": 2}, "run": {"calls": number % 50, "labels": ["internal"]}},
            "agent": {"name": agent, "owner": f"owner-{number % 7}", "teams": ["demo"]},
        }
        refused = chance.random() < 0.1
        judgement = Judgement("b" * 64, "deny" if refused else "allow", facts, ["fs-read"])
        first: AnyEntry = (
            Refusal(5, "policy_forbids", "key files are never for agents", decision, deed, judgement)
            if refused
            else Intent(deed, judgement)
        )
        how = "done" if chance.random() < 0.999 else "unknown"
        dispatch = Dispatch(
            action, decision, run, agent, f"owner-{number % 7}", "workbench", tool, f"node-{number % 3}", "c" * 64,
            "d" * 64, f"licet.local/sidecar/demo#{number}", f"tkt_{number:026d}",
        )  # fmt: skip
        yield (
            first,
            Outcome(action, decision, run, how, node="node-1", duration_us=900),
            dispatch,
            Outcome(action, decision, run, how, step=8, node="node-1", agent=agent),
        )


def build(root: Path, count: int) -> list[Path]:
    """Two logs of together *count* entries."""
    clock, logs = SystemClock(), []
    for name in ("sidecar/demo", "gateway/main"):
        logs.append(
            Ledger.open(
                root / name,
                origin=f"licet.local/{name}",
                key=SecretKey.generate(),
                clock=clock,
                boot="boot",
                on_durable=lambda *_: None,
                own_thread=False,
            )
        )
    for number, (first, second, third, fourth) in enumerate(actions(count // 4)):
        for log, one in ((logs[0], first), (logs[0], second), (logs[1], third), (logs[1], fourth)):
            log.append(one)
        if number % COMMIT_EVERY == 0:
            for log in logs:
                log.commit()
    for log in logs:
        log.commit()
        log.close()
    return [root / "sidecar/demo", root / "gateway/main"]


def resident_mb() -> float:
    return float(psutil.Process().memory_info().rss) / 1e6


async def ask(index: Index, questions: list[Filter]) -> float:
    """The median time of one question, in milliseconds."""
    took = []
    for asked in questions:
        begin = time.perf_counter()
        page = await index.find(asked)
        took.append((time.perf_counter() - begin) * 1000)
        if not page.rows:
            raise SystemExit(f"nothing was found: {asked}")
    return statistics.median(took)


async def measure_index(roots: list[Path], home: Path, count: int) -> dict[str, Any]:
    """Filling it, and asking it as the security team does."""
    index = Index(home / "index.sqlite", lambda: [Sealed.at(root) for root in roots])
    begin = time.perf_counter()
    found = await index.follow()
    filled = time.perf_counter() - begin
    if found != count:
        raise SystemExit(f"{found} of {count} entries are in the index")
    chance = random.Random(11)
    rows = (await index.find(Filter(limit=1000))).rows
    first, last = rows[-1].wall_us, rows[0].wall_us
    oldest = (await index.find(Filter(limit=1, oldest_first=True))).rows[0].wall_us
    spans = [chance.randrange(oldest, last - 1_000_000) for _ in range(ASKED)]
    runs = count // 4 // ACTIONS_A_RUN
    told = {
        "fill_per_s": count / filled,
        "by_agent_ms": await ask(index, [Filter(agent=f"agent-{n % AGENTS}") for n in range(ASKED)]),
        "by_run_ms": await ask(index, [Filter(run=f"run_{chance.randrange(runs):020d}") for _ in range(ASKED)]),
        "by_decision_ms": await ask(
            index, [Filter(decision=("deny", "allow", "unknown")[n % 3], limit=100) for n in range(ASKED)]
        ),
        "by_time_ms": await ask(index, [Filter(since_us=at, until_us=at + 1_000_000) for at in spans]),
        "refused_deletions_of_one_owner_ms": await ask(
            index,
            [
                Filter(owner=f"owner-{n % 7}", tool="delete_file", decision="deny", since_us=first - 86_400_000_000)
                for n in range(ASKED)
            ],
        ),
    }
    index.close()
    return told


def measure_tailing(root: Path) -> dict[str, float]:
    """Reading a whole log entry by entry: resident memory before, and the most while."""
    before = most = resident_mb()
    for number, _ in enumerate(ledgers.lines(root)):
        if number % 20_000 == 0:
            most = max(most, resident_mb())
    return {"before_mb": before, "grown_mb": most - before}


def measure(count: int = 1_000_000) -> dict[str, Any]:
    """Everything, in a directory that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="licet-million-") as directory:
        home = Path(directory)
        begin = time.perf_counter()
        roots = build(home, count)
        built = time.perf_counter() - begin
        tailing = measure_tailing(roots[0])
        begin = time.perf_counter()
        reports = [verify(root) for root in roots]
        verified = time.perf_counter() - begin
        if not all(report.holds for report in reports) or sum(report.entries for report in reports) != count:
            raise SystemExit(f"the log does not verify: {[report.faults[:2] for report in reports]}")
        return {
            "entries": count,
            "bytes": sum(
                path.stat().st_size for root in roots for path in root.rglob("tile/entries/**/*") if path.is_file()
            ),
            "written_per_s": count / built,
            "verify_per_s": count / verified,
            "tailing": tailing,
            **asyncio.run(measure_index(roots, home, count)),
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
        }


if __name__ == "__main__":
    for name, value in measure().items():
        print(f"{name:<36} {value if not isinstance(value, float) else round(value, 2)}")
