"""How cost grows: agents, policies, nodes and entries, measured step by step; beyond the last step it is computed.

``python -m loadtests.growth`` writes ``build/growth.json`` and its part of ``docs/scale.md``. Each step is a process of
its own, so that its memory is its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import psutil

from edge.clock import SystemClock
from gateway.app import Gateway
from gateway.config import GatewayConfig
from gateway.index import Index
from gateway.ledgers import Sealed
from gateway.order import Change
from gateway.postgres import Postgres as Order
from gateway.questions import Filter
from gateway.state import AgentRecord
from loadtests import million
from loadtests.bench import bundle_of, measure_choice, measure_policy
from loadtests.fleet import REPOSITORY
from loadtests.page import put
from loadtests.servers import Postgres
from trust import feed
from trust.identity.keys import SecretKey, b64url
from trust.ledger import entries
from trust.ledger.log import Ledger

BUILD: Final = REPOSITORY / "build"
PAGE: Final = REPOSITORY / "docs" / "scale.md"
BEGIN, END = "<!-- growth: written by `python -m loadtests.growth` -->", "<!-- end of growth -->"
AGENTS: Final = (10, 100, 1_000, 10_000, 100_000)
POLICIES: Final = (10, 100, 1_000, 10_000)
NODES: Final = (3, 10, 100, 1_000)
ENTRIES: Final = (10_000, 100_000, 1_000_000)
GATEWAYS: Final = (1, 2, 4)
TURNS: Final = 1200


def resident_mb() -> float:
    return psutil.Process().memory_info().rss / 1e6


def _size(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def _timed(call: Any, count: int) -> float:
    """The median of *count* calls, in microseconds."""
    took = []
    for number in range(count):
        begin = time.perf_counter()
        call(number)
        took.append(time.perf_counter() - begin)
    return statistics.median(took) * 1e6


async def agents(count: int) -> dict[str, float]:
    """A gateway that knows so many enrolled agents, each of another principal."""
    with tempfile.TemporaryDirectory(prefix="licet-growth-") as directory:
        home = Path(directory)
        key = SecretKey.load_or_create(home / "ledger.key")
        clock = SystemClock()
        ledger = Ledger.open(
            home / "ledger", origin="licet.local/gateway/main", key=key, clock=clock, boot="growth", own_thread=False
        )
        for number in range(count):
            name, own = f"agent-{number}", SecretKey.generate().public
            ledger.append(
                entries.Agent("registered", name, "operator", owner=f"owner-{number}", did=f"did:web:x:agents:{name}")
            )
            ledger.append(entries.Agent("enrolled", name, name, key=b64url(own.raw)))
            if number % 200 == 0:
                ledger.commit()
        ledger.commit()
        ledger.close()
        before = resident_mb()
        begin = time.perf_counter()
        gateway = Gateway(GatewayConfig(home=home, port=0, segment_bytes=4 << 20))
        await gateway.start()
        fold_s = time.perf_counter() - begin
        try:
            assert sum(1 for _ in gateway.records.store.all(AgentRecord)) == count

            def line(number: int) -> None:
                facts = gateway._feed.facts(f"agent-{number % count}", int(time.time() * 1000))
                feed.seal(facts, gateway._feed._key)

            def known(number: int) -> None:
                record = gateway.registry.agent(f"agent-{number * 7919 % count}")
                gateway.stops.require(record.agent)
                gateway.standings.standing(record.agent.name)

            line_us, known_us = _timed(line, 500), _timed(known, 2000)
            tick = time.perf_counter()
            await gateway.registry.end_drained_keys()
            tick_ms = (time.perf_counter() - tick) * 1e3
            kill = time.perf_counter()
            await gateway.stops.kill("agent-1", "operator", "a drill")
            gateway.stops.everyone_stopped()
            kill_ms = (time.perf_counter() - kill) * 1e3
            return {
                "start_s": fold_s,
                "held_mb": resident_mb() - before,
                "state_mb": sum(file.stat().st_size for file in home.glob("state.sqlite*")) / 1e6,
                "feed_us": line_us,
                "lookup_us": known_us,
                "tick_ms": tick_ms,
                "kill_ms": kill_ms,
            }
        finally:
            await gateway.stop()


def policies(count: int) -> dict[str, float]:
    """A sidecar's bundle of so many policies, 20 of them in the slice of a call."""
    before, begin = resident_mb(), time.perf_counter()
    bundle = bundle_of(count)
    compiled_s, held = time.perf_counter() - begin, resident_mb() - before
    del bundle
    found = measure_policy([count], 5_000)
    one = next(iter(found.values()))
    return {"compile_s": compiled_s, "held_mb": held, "p50_us": one["p50_us"], "p99_us": one["p99_us"]}


def nodes(count: int) -> dict[str, float]:
    return {"choice_us": measure_choice(count)}


async def entries_of(count: int) -> dict[str, float]:
    """Logs of so many entries, indexed, and asked."""
    with tempfile.TemporaryDirectory(prefix="licet-growth-") as directory:
        home = Path(directory)
        roots = million.build(home / "logs", count)
        bytes_wal = sum(_size(root / "wal") for root in roots)
        bytes_sealed = sum(_size(root) for root in roots) - bytes_wal
        index = Index(home / "index.sqlite", lambda: iter([Sealed.at(root) for root in roots]))
        begin = time.perf_counter()
        while await index.follow():
            pass
        indexed_s = time.perf_counter() - begin
        asked = []
        for number in range(20):
            begin = time.perf_counter()
            await index.find(Filter(agent=f"agent-{number}"))
            asked.append(time.perf_counter() - begin)
        index.close()
        on_disk = sum(file.stat().st_size for file in home.glob("index.sqlite*"))
        total = sum(Sealed.at(root).size for root in roots)
        return {
            "entries": total,
            "sealed_bytes": bytes_sealed / total,
            "wal_bytes": bytes_wal / total,
            "index_bytes": on_disk / total,
            "indexed_per_s": total / indexed_s,
            "find_ms": sorted(asked)[10] * 1e3,
        }


async def turns(gateways: int) -> dict[str, float]:
    """Decisions per second that so many gateways make together, each one after the other, over one PostgreSQL here."""
    server = Postgres()
    server.start()
    try:
        url = server.database("turns")
        orders = [Order(url, b"s" * 32) for _ in range(gateways)]
        for order in orders:
            await order.open(lambda: None)

        async def decide(order: Order, name: str) -> None:
            last = 0
            for seq in range(TURNS // gateways):
                told = await order.take(last)
                last = max([last, *(change.turn for change in told)]) + 1
                await order.publish(Change(last, name, seq, b"x" * 600))
                await order.give()

        begin = time.perf_counter()
        await asyncio.gather(*(decide(order, f"g{number}") for number, order in enumerate(orders)))
        took = time.perf_counter() - begin
        for order in orders:
            await order.close()
        return {"turns_per_s": TURNS / took}
    finally:
        server.remove()


def step(kind: str, count: int) -> dict[str, Any]:
    """One step in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "loadtests.growth", "--step", kind, str(count)],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr)
    return {"count": count, **json.loads(done.stdout.splitlines()[-1])}


def written(found: dict[str, list[dict[str, Any]]]) -> str:
    lines = [BEGIN, "`python -m loadtests.growth`, each step in a process of its own:", ""]
    lines += [
        "| agents | gateway starts in | holds | state on disk | facts of one, signed | looked up | each second | a kill |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for row in found["agents"]:
        lines.append(
            f"| {row['count']:,} | {row['start_s']:.1f} s | {row['held_mb']:.0f} MB | {row['state_mb']:.1f} MB "
            f"| {row['feed_us']:.0f} µs | {row['lookup_us']:.1f} µs | {row['tick_ms']:.1f} ms | {row['kill_ms']:.1f} ms |"
        )
    lines += ["", "| policies | compiled in | hold | one check, p50 | p99 |", "|---|---|---|---|---|"]
    for row in found["policies"]:
        lines.append(
            f"| {row['count']:,} | {row['compile_s']:.2f} s | {row['held_mb']:.0f} MB | {row['p50_us']:.0f} µs "
            f"| {row['p99_us']:.0f} µs |"
        )
    lines += ["", "| nodes | one choice |", "|---|---|"]
    lines += [f"| {row['count']:,} | {row['choice_us']:.1f} µs |" for row in found["nodes"]]
    lines += ["", "| gateways | decisions per second, all together |", "|---|---|"]
    lines += [f"| {row['count']} | {row['turns_per_s']:.0f} |" for row in found["turns"]]
    lines += [
        "",
        "| entries | tiles, each | frames, each | index, each | indexed per s | found by agent |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["entries"]:
        lines.append(
            f"| {row['entries']:,} | {row['sealed_bytes']:.0f} B | {row['wal_bytes']:.0f} B | {row['index_bytes']:.0f} B "
            f"| {row['indexed_per_s']:,.0f} | {row['find_ms']:.1f} ms |"
        )
    last = found["entries"][-1]
    copies = last["sealed_bytes"] + last["index_bytes"]
    feed_us = found["agents"][-1]["feed_us"]
    turns_per_s = found["turns"][1]["turns_per_s"]
    hold_kb = found["agents"][-1]["held_mb"] * 1e3 / found["agents"][-1]["count"]
    lines += [
        "",
        "Computed from the last step of each, not measured:",
        "",
        f"- **10⁹ entries** take {last['sealed_bytes']:.0f} GB of tiles and {last['index_bytes']:.0f} GB of index on every "
        f"gateway, and {last['wal_bytes']:.0f} GB of frames where they were written. Indexing them takes "
        f"{1e9 / last['indexed_per_s'] / 3600:.0f} h on one core. The disk of a gateway fills first: "
        f"{copies * 86_400 / 1e9:.1f} GB a day for each entry per second. What to do: `keep_days` (only hashes stay), "
        "exports to cheaper storage before, fewer gateways that keep everything.",
        f"- **100,000 sidecars** that listen want {feed_us * 1e5 / 1e6:.1f} cores of signatures each second, shared by all "
        f"gateways and their workers, and {hold_kb:.1f} kB of memory each. Their logs take a turn twice a minute each: "
        f"{100_000 / 30:,.0f} turns a second, of which this machine's PostgreSQL gives {turns_per_s:.0f}, so that is what ends "
        f"first, at about {turns_per_s * 30:,.0f} active sidecars. What to do: a mesh for each part of a company.",
        END,
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step", nargs=2, metavar=("KIND", "COUNT"))
    parser.add_argument("--dry", action="store_true", help="write nothing to docs/")
    asked = parser.parse_args()
    if asked.step:
        kind, count = asked.step[0], int(asked.step[1])
        made: Any = {"agents": agents, "policies": policies, "nodes": nodes, "entries": entries_of, "turns": turns}[
            kind
        ](count)
        print(json.dumps(asyncio.run(made) if asyncio.iscoroutine(made) else made))
        return
    steps = {"agents": AGENTS, "policies": POLICIES, "nodes": NODES, "turns": GATEWAYS, "entries": ENTRIES}
    found = {kind: [step(kind, count) for count in counts] for kind, counts in steps.items()}
    BUILD.mkdir(exist_ok=True)
    (BUILD / "growth.json").write_text(json.dumps(found, indent=1))
    text = written(found)
    print(text)
    if not asked.dry:
        put(PAGE, BEGIN, text, END)


if __name__ == "__main__":
    main()
