"""How throughput grows with workers: ``python -m loadtests.workers`` writes its part of ``docs/scale.md``.

One sidecar as ``licet sidecar --workers N`` with a next hop that answers at once. Everything together, load and next hop
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
from loadtests.servers import free_port

BUILD: Final = REPOSITORY / "build"
PAGE: Final = REPOSITORY / "docs" / "scale.md"
BEGIN, END = "<!-- workers: written by `python -m loadtests.workers` -->", "<!-- end of workers -->"
STEPS: Final = ((1, 1), (2, 1), (2, 2), (2, 3))
"""(cores of everything, workers)"""
CONNECTIONS: Final = 32
ROUNDS: Final = 5
SECONDS: Final = 3.0


@contextmanager
def sidecar(
    home: Path, gateway: str, token: str, workers: int, log: Path
) -> Iterator[tuple[int, list[psutil.Process]]]:
    """(port, processes) of a sidecar of so many workers."""
    port = free_port()
    settings = {
        "LICET_HOME": str(home),
        "LICET_SIDECAR__HOME": str(home),
        "LICET_SIDECAR__PORT": str(port),
        "LICET_SIDECAR__GATEWAY_URL": gateway,
        "LICET_SIDECAR__ENROLMENT_TOKEN": token,
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LICET_")}
    command = [sys.executable, "-m", "licet", "sidecar", "--workers", str(workers)]
    with log.open("ab") as out:
        process = subprocess.Popen(command, env=kept | settings, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=out)
    try:
        if process.stdout is None or b"listens on" not in process.stdout.readline():
            raise SystemExit(f"the sidecar did not start:\n{log.read_text()[-2000:]}")
        own = psutil.Process(process.pid)
        yield port, own.children() if workers > 1 else [own]
    finally:
        process.terminate()
        process.wait(10)


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


def measure() -> list[dict[str, Any]]:
    """A row for each step."""
    found: dict[tuple[int, int], list[dict[str, float]]] = {step: [] for step in STEPS}
    with tempfile.TemporaryDirectory(dir=REPOSITORY) as work:
        home, log = Path(work), Path(work) / "log"
        (home / "bench.toml").write_text(MANIFEST)
        with part("tool", REST, log) as (tool, _), part("instant", "any", log, home=str(home / "g")) as (instant, _):
            _, agent, node = prepare(home / "g", instant, 1000)
            gateway = f"http://127.0.0.1:{instant}"
            served = {"tool": f"http://127.0.0.1:{tool}/mcp", "manifest": str(home / "bench.toml")}
            with part("node", REST, log, home=str(home / "n"), gateway=gateway, token=node, **served):
                for _ in range(ROUNDS):
                    for cores, workers in STEPS:
                        _confine(cores)
                        with sidecar(home / "s", gateway, agent, workers, log) as (port, processes):
                            token = (home / "s" / "agent.token").read_text().strip()
                            wait_ready(port, token)
                            before = _cpu_s(processes)
                            one = load(port, token)
                            one["cpu_us"] = (_cpu_s(processes) - before) / one["count"] * 1e6
                            found[cores, workers].append(one)
    keys = ("rate", "p50_ms", "p99_ms", "cpu_us")
    return [
        {"cores": cores, "workers": workers, **{key: statistics.median(run[key] for run in runs) for key in keys}}
        for (cores, workers), runs in found.items()
    ]


def written(rows: list[dict[str, Any]]) -> str:
    first = rows[0]["rate"]
    lines = [
        BEGIN,
        f"`python -m loadtests.workers`: {CONNECTIONS} connections, medians of {ROUNDS} rounds; the cores are those of "
        "everything, load and next hop included. What these take is not there for workers, so two cores are soon full.",
        "",
        "| cores | workers | actions per s | against the first | p50 | p99 | the sidecar's processor time of an action |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['cores']} | {row['workers']} | {row['rate']:,.0f} | {row['rate'] / first:.2f} | {row['p50_ms']:.1f} ms "
        f"| {row['p99_ms']:.1f} ms | {row['cpu_us']:.0f} µs |"
        for row in rows
    ]
    return "\n".join([*lines, END])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry", action="store_true", help="write nothing to docs/")
    asked = parser.parse_args()
    rows = measure()
    BUILD.mkdir(exist_ok=True)
    (BUILD / "workers.json").write_text(json.dumps(rows, indent=1))
    text = written(rows)
    print(text)
    if not asked.dry:
        put(PAGE, BEGIN, text, END)


if __name__ == "__main__":
    main()
