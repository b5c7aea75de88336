"""Real processes: `licet up` from nothing, Ctrl-C, and kill -9 of the sidecar under load."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from edge.judging import Judge
from licet import ledgers
from loadtests.servers import free_port
from tests import zygote
from tests.mesh import REPOSITORY
from trust.ledger.entries import Dispatch, Intent, Outcome
from trust.ledger.verify import verify

pytestmark = pytest.mark.slow


def environment(home: Path) -> dict[str, str]:
    ports = {f"LICET_{part}__PORT": str(free_port()) for part in ("GATEWAY", "SIDECAR", "NODE")}
    segments = {f"LICET_{part}__SEGMENT_BYTES": str(4 << 20) for part in ("GATEWAY", "SIDECAR", "NODE")}
    kept = {k: v for k, v in os.environ.items() if not k.startswith("LICET_")}
    return {**kept, **ports, **segments, "LICET_HOME": str(home), "PYTHONUNBUFFERED": "1"}


@contextmanager
def up(home: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    env = environment(home)
    process = subprocess.Popen(
        [sys.executable, "-m", "licet", "up", *options],
        env=env,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process, env
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait(15)


def until(process: subprocess.Popen[str], text: str) -> str:
    said = ""
    for line in process.stdout or ():
        said += line
        if text in line:
            return said
    raise AssertionError(f"never said {text!r}:\n{said}")


def licet(env: dict[str, str], *arguments: str, code: int = 0) -> str:
    ended, out, err = zygote.licet([*arguments], env, REPOSITORY)
    assert ended == code, out + err
    return out


def test_up_works_from_nothing_and_every_command_of_its_text_does_what_it_says(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with up(home) as (process, env):
        said = until(process, "Ctrl-C stops everything")
        assert "Licet is up" in said
        for name in ("agent.env", "approver-1.token", "approver-2.token"):
            assert (home / "dev" / name).stat().st_mode & 0o077 == 0
        settings = dict(line.split("=", 1) for line in (home / "dev" / "agent.env").read_text().splitlines())
        assert set(settings) == {"LICET_URL", "LICET_TOKEN", "LICET_MCP_URL", "LICET_CONSOLE_URL"}
        answers = {}
        for arguments, call in ((a, json.loads(a)) for a in re.findall(r"act '(\{.*?\})'", said)):
            done = subprocess.run(
                ["bash", "-c", f"set -a; . {home}/dev/agent.env; set +a; " + re.search(r"  (act\(\) \{.*\})", said)[1] + f"; act '{arguments}'"],  # type: ignore[index]
                capture_output=True, text=True, timeout=30,
            )  # fmt: skip
            answers[call["args"]["path"]] = json.loads(done.stdout)
        assert answers["notes.txt"]["decision"] == "allow"
        assert answers["server.pem"]["reason"] == "policy_forbids"
        held = answers["old-draft.txt"]
        assert held["decision"] == "hold"

        assert held["approval"] in licet(env, "approvals", "list")
        assert "old-draft.txt" in licet(env, "approvals", "show", held["approval"])
        approver = str(home / "dev" / "approver-1.token")
        assert "is approved" in licet(env, "approvals", "approve", held["approval"], "--as", approver)
        assert json.loads(licet(env, "approvals", "list", "--state", "all", "--json"))[0]["state"] == "approved"
        assert "delete_file" in licet(env, "audit", "tail")
        explained = licet(env, "policy", "explain", answers["server.pem"]["decision_id"])
        assert "no-key-files" in explained
        assert "like" in explained
        assert "is true" in explained
        assert "intent" in licet(env, "audit", "show", answers["notes.txt"]["decision_id"])
        assert "verified to checkpoint" in licet(env, "audit", "verify")
        assert "all is well" in licet(env, "check")
        assert "demo" in licet(env, "agents", "list")
        assert "workbench/read_file" in licet(env, "servers", "list")
        assert "node-1" in licet(env, "nodes", "list")
        assert "version" in licet(env, "policy", "status")
        child = licet(
            env,
            "run",
            "--",
            sys.executable,
            "-c",
            "import os; print(os.environ['LICET_MCP_URL'], os.environ['HTTPS_PROXY'])",
        )
        assert "/mcp/workbench" in child
        assert "licet-person" not in child
        os.kill(process.pid, signal.SIGINT)
        process.wait(10)
    assert not list(_children(home)), "everything that was started has ended"
    again = json.loads(licet(env, "check", "--json", code=1))
    assert {c["group"] for c in again if not c["fine"]} == {"gateway", "sidecar", "node"}
    assert all(c["hint"] for c in again if not c["fine"])


def _children(home: Path) -> Iterator[str]:
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"LICET_HOME={home}".encode() in path.read_bytes():
                yield path.parent.name
        except OSError:
            continue


def test_the_demo_plays_and_a_second_start_finds_everything_again(tmp_path: Path) -> None:
    home = tmp_path / "home"
    for _ in range(2):
        with up(home, "--demo") as (process, _env):
            said = process.communicate(timeout=60)[0]
        assert process.returncode == 0, said
        for expected in (
            "allowed: read_file",
            "Buy milk",
            "refused: read_file",
            "policy no-key-files",
            "held, then approved",
            "deleted draft-",
            "approval apr_",
        ):
            assert expected in said


def test_a_part_that_dies_ends_up_with_its_last_words(tmp_path: Path) -> None:
    with up(tmp_path / "home") as (process, _env):
        until(process, "Ctrl-C stops everything")
        victim = next(
            p for p in _children(tmp_path / "home") if b"node\0" in (Path("/proc") / p / "cmdline").read_bytes()
        )
        os.kill(int(victim), signal.SIGKILL)
        said = process.communicate(timeout=60)[0]
    assert process.returncode == 1
    assert "node ended with code -9" in said


async def load(url: str, token: str, until_time: float, answered: list[str]) -> None:
    """Calls one after the other; every decision that was answered is kept."""
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as http:
        while time.monotonic() < until_time:
            try:
                async with http.post(
                    url + "/v1/actions", json={"tool": "workbench/list_directory", "args": {"path": "."}}
                ) as reply:
                    told: dict[str, Any] = await reply.json(content_type=None)
                    answered.append(told["decision_id"])
            except (aiohttp.ClientError, ConnectionError, KeyError):
                await asyncio.sleep(0.02)


def crash_once(tmp_path: Path, after: float) -> None:
    """kill -9 the sidecar under load, start it again, and look at everything from outside."""
    home = tmp_path / "home"
    with up(home) as (process, env):
        until(process, "Ctrl-C stops everything")
        settings = dict(line.split("=", 1) for line in (home / "dev" / "agent.env").read_text().splitlines())
        victim = next(int(p) for p in _children(home) if b"sidecar\0" in (Path("/proc") / p / "cmdline").read_bytes())
        answered: list[str] = []

        async def under_load() -> None:
            tasks = [
                asyncio.create_task(load(settings["LICET_URL"], settings["LICET_TOKEN"], math.inf, answered))
                for _ in range(12)
            ]
            await asyncio.sleep(after)
            while len(answered) <= 10:
                await asyncio.sleep(0.01)
            os.kill(victim, signal.SIGKILL)
            await asyncio.sleep(0.3)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run(under_load())
        process.wait(15)  # `up` ends when a part dies
    root = home / "sidecar" / "ledger"
    restart = subprocess.Popen(
        [sys.executable, "-m", "licet", "gateway"], env=env, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert "listens" in (restart.stdout.readline() if restart.stdout else "")
    recovered = subprocess.Popen(
        [sys.executable, "-m", "licet", "sidecar"], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True,
        env={**env, "LICET_SIDECAR__GATEWAY_URL": f"http://127.0.0.1:{env['LICET_GATEWAY__PORT']}"},
    )  # fmt: skip
    assert "listens" in (recovered.stdout.readline() if recovered.stdout else "")
    for part in (recovered, restart):
        part.send_signal(signal.SIGTERM)
        part.wait(10)
    assert len(answered) > 10
    report = verify(root, judge=Judge(root.parent))
    assert report.faults == []
    found = [line.entry for _, line in ledgers.lines(root)]
    decided = {ledgers.decision_of(entry) for entry in found}
    assert set(answered) <= decided, "an answered decision was lost"
    intents = [e for e in found if isinstance(e, Intent)]
    outcomes = [e.action_id for e in found if isinstance(e, Outcome)]
    assert sorted(outcomes) == sorted(i.deed.action_id for i in intents), "exactly one outcome for each intent"
    known = {i.deed.action_id for i in intents}
    executed = [line.entry for _, line in ledgers.lines(home / "node" / "ledger") if isinstance(line.entry, Dispatch)]
    assert {e.action_id for e in executed if e.agent == "demo"} <= known, "an action ran without an intent"


@pytest.mark.parametrize("after", [0.4, 1.1])
def test_kill_9_under_load_loses_no_answer_and_leaves_no_action_without_intent(tmp_path: Path, after: float) -> None:
    crash_once(tmp_path, after)
