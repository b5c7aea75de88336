"""A minute of a company: a fleet under locust, a gateway killed in the middle of it, every ledger verified at its end.

``python -m loadtests.company`` writes ``build/company.json``, ``docs/fleet.png`` and its part of ``docs/scale.md``.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from loadtests.fleet import REPOSITORY, Fleet, described
from loadtests.page import put
from trust.ledger.verify import verify

BUILD: Final = REPOSITORY / "build"
PAGE: Final = REPOSITORY / "docs" / "scale.md"
BEGIN, END = "<!-- fleet: written by `python -m loadtests.company` -->", "<!-- end of fleet -->"


def run(seconds: int, users: int, balanced: bool) -> dict[str, Any]:
    """Everything that was seen."""
    BUILD.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="licet-company-") as directory:
        home = Path(directory)
        with Fleet(home, sidecars=4, nodes=3, balanced=balanced) as fleet:
            (home / "fleet.json").write_text(json.dumps(described(fleet)))
            locust = _locust(home, seconds, users)
            time.sleep(seconds / 3)
            fleet.parts["gateway-b"].kill()
            killed = time.monotonic()
            time.sleep(seconds / 6)
            fleet.parts["gateway-b"].start()
            fleet.parts["gateway-b"].ready()
            back_s = time.monotonic() - killed
            code = locust.wait(seconds + 120)
            found = _stats(home) | {"seconds": seconds, "users": users, "locust": code, "back_s": back_s}
            found["reasons"] = json.loads((home / "reasons.json").read_text())
            for part in fleet.parts.values():
                part.stop()
            for part in fleet.parts.values():
                if part.process is not None:
                    part.process.wait(30)
            found["ledgers"] = {name: _verified(home / name) for name in sorted(fleet.parts)}
    return found


def _locust(home: Path, seconds: int, users: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "locust", "-f", str(REPOSITORY / "loadtests" / "locustfile.py"), "--headless"]
    command += ["-u", str(users), "-r", str(users), "-t", f"{seconds}s", "--csv", str(home / "locust")]
    command += ["--csv-full-history", "--only-summary", "--stop-timeout", "15"]
    environment = {**os.environ, "LICET_FLEET": str(home / "fleet.json")}
    with (BUILD / "locust.log").open("wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=REPOSITORY)


def _stats(home: Path) -> dict[str, Any]:
    with (home / "locust_stats.csv").open() as file:
        rows = list(csv.DictReader(file))
    with (home / "locust_stats_history.csv").open() as file:
        history = [row for row in csv.DictReader(file) if row["Name"] == "Aggregated"]
    failures = []
    with (home / "locust_failures.csv").open() as file:
        failures = [f"{row['Name']}: {row['Error']} ({row['Occurrences']})" for row in csv.DictReader(file)]
    return {
        "requests": [
            {
                "name": row["Name"],
                "count": int(row["Request Count"]),
                "failed": int(row["Failure Count"]),
                "p50_ms": float(row["50%"] or 0),
                "p99_ms": float(row["99%"] or 0),
                "per_s": float(row["Requests/s"]),
            }
            for row in rows
        ],
        "history": [
            [int(row["Timestamp"]), float(row["Requests/s"]), _number(row["50%"]), _number(row["99%"])]
            for row in history
        ],
        "failures": failures,
    }


def _number(text: str) -> float:
    return 0.0 if text in ("", "N/A") else float(text)


def _verified(home: Path) -> dict[str, Any]:
    report = verify(home / "ledger")
    return {"entries": report.entries, "faults": report.faults}


def draw(found: dict[str, Any], path: Path) -> None:
    """Requests per second and their times, with the moment in which a gateway was gone."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    begin = found["history"][0][0]
    found["history"] = [row for row in found["history"] if row[0] - begin <= found["seconds"]]
    seconds = [row[0] - begin for row in found["history"]]
    figure, (rates, times) = plt.subplots(2, 1, figsize=(9, 5), sharex=True)
    rates.plot(seconds, [row[1] for row in found["history"]], color="#0b6e4f")
    rates.set_ylabel("requests per s (10 s mean)")
    times.plot(seconds, [row[2] for row in found["history"]], label="p50", color="#0b6e4f")
    times.plot(seconds, [row[3] for row in found["history"]], label="p99", color="#c1443c")
    times.set_ylabel("ms (last 10 s)")
    times.set_xlabel("s")
    times.legend(frameon=False)
    third = found["seconds"] / 3
    for axes in (rates, times):
        axes.axvspan(third, third + found["back_s"], color="#c1443c", alpha=0.15, lw=0)
        axes.spines[["top", "right"]].set_visible(False)
    rates.set_title(
        "A fleet under load; in the red time one of two gateways was killed and came back", loc="left", fontsize=10
    )
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def written(found: dict[str, Any]) -> str:
    """The part of the page."""
    lines = [
        BEGIN,
        f"`python -m loadtests.company`: {found['users']} users for {found['seconds']} s against 2 gateways, 4 sidecars "
        f"and 3 nodes on one machine of {os.cpu_count()} cores, which locust, PostgreSQL and Redis shared. Gateway b was "
        f"killed (kill -9) after a third of it and was back {found['back_s']:.1f} s later.",
        "",
        "| what | requests | failed without a reason | per s | p50 | p99 |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["requests"]:
        lines.append(
            f"| {row['name']} | {row['count']:,} | {row['failed']} | {row['per_s']:.1f} | {row['p50_ms']:.0f} ms "
            f"| {row['p99_ms']:.0f} ms |"
        )
    reasons = ", ".join(f"{name} {count}" for name, count in sorted(found["reasons"].items(), key=lambda one: -one[1]))
    entries = sum(one["entries"] for one in found["ledgers"].values())
    faults = sum(len(one["faults"]) for one in found["ledgers"].values())
    lines += [
        "",
        f"Refusals, all with a reason: {reasons or 'none'}. At its end the ledgers of all {len(found['ledgers'])} writers "
        f"were verified: {entries:,} entries, {faults} faults.",
        END,
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--users", type=int, default=24)
    parser.add_argument("--balanced", action="store_true", help="behind HAProxy")
    parser.add_argument("--dry", action="store_true", help="write nothing to docs/")
    asked = parser.parse_args()
    found = run(asked.seconds, asked.users, asked.balanced)
    (BUILD / "company.json").write_text(json.dumps(found, indent=1))
    text = written(found)
    print(text)
    for failure in found["failures"]:
        print("failed:", failure)
    if not asked.dry:
        draw(found, REPOSITORY / "docs" / "fleet.png")
        put(PAGE, BEGIN, text, END)
    if found["failures"] or any(one["faults"] for one in found["ledgers"].values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
