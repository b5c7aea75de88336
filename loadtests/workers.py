"""How throughput grows with workers: ``python -m loadtests.workers`` writes its part of ``docs/scale.md``.

One sidecar as ``licet sidecar --workers N`` with a next hop that answers at once; and one gateway as ``licet gateway
--workers N`` over PostgreSQL and Redis, behind a sidecar and before a node. Everything together, load and what is around
included, has one core, then all of them. Rounds alternate and medians are taken.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psutil

from loadtests.bench import BODY, MANIFEST, REPOSITORY, REST, http, part, prepare, wait_ready
from loadtests.page import put
from loadtests.servers import Postgres, Redis, free_port, free_ports
from trust.identity.keys import SecretKey

BUILD: Final = REPOSITORY / "build"
PAGE: Final = REPOSITORY / "docs" / "scale.md"
BEGIN, END = "<!-- workers: written by `python -m loadtests.workers` -->", "<!-- end of workers -->"
STEPS: Final = ((1, 1), (2, 1), (2, 2), (2, 3))
"""(cores of everything, workers)"""
CONNECTIONS: Final = 32
ROUNDS: Final = 3
SECONDS: Final = 3.0


Running = tuple[int, list[psutil.Process]]
"""Its port, and its processes."""


@contextmanager
def running(what: str, settings: dict[str, str], port: int, workers: int, log: Path) -> Iterator[Running]:
    """``licet WHAT --workers N``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LICET_")}
    settings = {f"LICET_{what.upper()}__{name}": value for name, value in {**settings, "PORT": str(port)}.items()}
    command = [sys.executable, "-m", "licet", what, "--workers", str(workers)]
    with log.open("ab") as out:
        process = subprocess.Popen(command, env=kept | settings, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=out)
    try:
        if process.stdout is None or b"listens on" not in process.stdout.readline():
            raise SystemExit(f"the {what} did not start:\n{log.read_text()[-2000:]}")
        own = psutil.Process(process.pid)
        yield port, own.children() if workers > 1 else [own]
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def sidecar(home: Path, gateway: str, token: str, workers: int, log: Path) -> Iterator[Running]:
    settings = {"HOME": str(home), "GATEWAY_URL": gateway, "ENROLMENT_TOKEN": token}
    with running("sidecar", settings, free_port(), workers, log) as made:
        yield made


@contextmanager
def servers(home: Path) -> Iterator[dict[str, str]]:
    """PostgreSQL and Redis, as settings of a gateway that shares them."""
    postgres, redis = Postgres(), Redis(home)
    SecretKey.load_or_create(home / "gateway.key")
    try:
        postgres.start()
        redis.start("--appendonly", "yes")
        yield {"DATABASE": postgres.database("licet"), "REDIS": redis.url, "KEY_FILE": str(home / "gateway.key")}
    finally:
        redis.remove()
        postgres.remove()


@contextmanager
def gateway(home: Path, shared: dict[str, str], workers: int, log: Path) -> Iterator[Running]:
    port = free_ports(1 + workers)
    # One agent that asks the same without a pause is what breakers are for.
    open_to_all = {"BREAKER": json.dumps({"loop": 0, "burst": 0, "failures": 0})}
    settings = {"HOME": str(home), "PEER_URL": f"http://127.0.0.1:{port}", **open_to_all, **shared}
    with running("gateway", settings, port, workers, log) as made:
        yield made


def load(port: int, token: str) -> dict[str, float]:
    """What :mod:`loadtests.parts` measures, on any core."""
    given = {"port": port, "request": http(port, "/v1/actions", BODY, token).hex(), "connections": CONNECTIONS}
    given["seconds"] = SECONDS
    command = [sys.executable, "-m", "loadtests.parts", "load", "any", json.dumps(given)]
    made = subprocess.run(command, capture_output=True, cwd=REPOSITORY, check=True, timeout=SECONDS + 60)
    found: dict[str, float] = json.loads(made.stdout)
    if found["bad"]:
        raise SystemExit(f"{found['bad']} of {found['count']} requests were not answered with 200")
    return found


def _confine(cores: int) -> None:
    """This process and all that it started, and will start, to so many cores."""
    own = psutil.Process()
    for one in (own, *own.children(recursive=True)):
        one.cpu_affinity(list(range(cores)))


def _cpu_s(processes: list[psutil.Process]) -> float:
    return sum(sum(one.cpu_times()[:2]) for one in processes)


def measure_sidecar() -> list[dict[str, Any]]:
    """A row for each step."""
    found: dict[tuple[int, int], list[dict[str, float]]] = {step: [] for step in STEPS}
    with tempfile.TemporaryDirectory(dir=REPOSITORY) as work:
        home, log = Path(work), Path(work) / "log"
        (home / "bench.toml").write_text(MANIFEST)
        with part("tool", REST, log) as (tool, _), part("instant", "any", log, home=str(home / "g")) as (instant, _):
            _, agent, node = prepare(home / "g", instant, 1000)
            above = f"http://127.0.0.1:{instant}"
            served = {"tool": f"http://127.0.0.1:{tool}/mcp", "manifest": str(home / "bench.toml")}
            with part("node", REST, log, home=str(home / "n"), gateway=above, token=node, **served):
                for _ in range(ROUNDS):
                    for cores, workers in STEPS:
                        _confine(cores)
                        with sidecar(home / "s", above, agent, workers, log) as (port, processes):
                            found[cores, workers].append(_measured(port, home / "s", processes))
    return _rows(found)


def measure_gateway() -> list[dict[str, Any]]:
    """A row for each step."""
    found: dict[tuple[int, int], list[dict[str, float]]] = {step: [] for step in STEPS}
    with tempfile.TemporaryDirectory(dir=REPOSITORY) as work:
        home, log = Path(work), Path(work) / "log"
        (home / "bench.toml").write_text(MANIFEST)
        with part("tool", REST, log) as (tool, _), servers(home) as shared:
            served = {"tool": f"http://127.0.0.1:{tool}/mcp", "manifest": str(home / "bench.toml")}
            agent = node = ""
            for _ in range(ROUNDS):
                for cores, workers in STEPS:
                    _confine(cores)
                    with gateway(home / "g", shared, workers, log) as (port, processes):
                        if not agent:
                            _, agent, node = prepare(home / "g", port, 1000)
                        above = f"http://127.0.0.1:{port}"
                        with (
                            part("node", "any", log, home=str(home / "n"), gateway=above, token=node, **served),
                            sidecar(home / "s", above, agent, 1, log) as (entrance, _),
                        ):
                            found[cores, workers].append(_measured(entrance, home / "s", processes))
    return _rows(found)


def _measured(port: int, home: Path, processes: list[psutil.Process]) -> dict[str, float]:
    """Load at a sidecar, and the processor time of *processes* for each action."""
    token = (home / "agent.token").read_text().strip()
    wait_ready(port, token)
    before = _cpu_s(processes)
    one = load(port, token)
    one["cpu_us"] = (_cpu_s(processes) - before) / one["count"] * 1e6
    return one


def _rows(found: dict[tuple[int, int], list[dict[str, float]]]) -> list[dict[str, Any]]:
    keys = ("rate", "p50_ms", "p99_ms", "cpu_us")
    return [
        {"cores": cores, "workers": workers, **{key: statistics.median(run[key] for run in runs) for key in keys}}
        for (cores, workers), runs in found.items()
    ]


def _table(rows: list[dict[str, Any]], whose: str) -> list[str]:
    first = rows[0]["rate"]
    return [
        f"| cores | workers | actions per s | against the first | p50 | p99 | {whose} processor time of an action |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {row['cores']} | {row['workers']} | {row['rate']:,.0f} | {row['rate'] / first:.2f} | {row['p50_ms']:.1f} ms "
            f"| {row['p99_ms']:.1f} ms | {row['cpu_us']:.0f} µs |"
            for row in rows
        ),
    ]


def written(sidecars: list[dict[str, Any]], gateways: list[dict[str, Any]]) -> str:
    return "\n".join(
        [
            BEGIN,
            f"`python -m loadtests.workers`: {CONNECTIONS} connections, medians of {ROUNDS} rounds; the cores are those of "
            "everything, load and what is around included. What that takes is not there for workers, so two cores are soon "
            "full. Of a sidecar, before a next hop that answers at once:",
            "",
            *_table(sidecars, "the sidecar's"),
            "",
            "Of a gateway over PostgreSQL and Redis, with one sidecar before it, a node behind it, and a tool behind that:",
            "",
            *_table(gateways, "the gateway's"),
            END,
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry", action="store_true", help="write nothing to docs/")
    asked = parser.parse_args()
    sidecars, gateways = measure_sidecar(), measure_gateway()
    BUILD.mkdir(exist_ok=True)
    (BUILD / "workers.json").write_text(json.dumps({"sidecar": sidecars, "gateway": gateways}, indent=1))
    text = written(sidecars, gateways)
    print(text)
    if not asked.dry:
        put(PAGE, BEGIN, text, END)


if __name__ == "__main__":
    main()
