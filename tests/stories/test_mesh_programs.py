"""`licet up --mesh` and the four programs of the tutorial, as a new user runs them: only their imports are Licet's."""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.mesh import REPOSITORY
from tests.stories.test_processes import licet, until, up

PROGRAMS = REPOSITORY / "docs" / "mesh"
pytestmark = pytest.mark.slow


def test_the_programs_take_nothing_but_their_imports_from_licet() -> None:
    """They name the published classes, and no node."""
    for program in PROGRAMS.glob("*.py"):
        tree = ast.parse(program.read_text())
        ours = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and "licet" in (n.module or "")}
        assert ours == {"licet.mesh"}, program
        agents = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "ChatAgent"]
        for node in ("office", "gpu-1", "cloud-1"):
            assert not [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and n.value == node and agents]


def environment_of(home: Path, env: dict[str, str]) -> dict[str, str]:
    """What a user's shell has after the two lines that are printed."""
    told = "".join((home / "dev" / name).read_text() for name in ("agent.env", "operator.env"))
    return env | dict(line.split("=", 1) for line in told.splitlines())


def program(env: dict[str, str], name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(PROGRAMS / name), *arguments],
        env=env,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_run_over_three_nodes_then_with_one_drained_and_one_killed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with up(home, "--mesh") as (process, env):
        said = until(process, "Ctrl-C stops everything")
        assert "gpu-1" in said
        mine = environment_of(home, env)
        assert "2026-11-payments.log" in program(mine, "first_agent.py")
        assert re.search(r"plant-edge +edge +pending +gpu, region=eu-west", program(mine, "register_nodes.py"))
        told = program(mine, "routing_test.py")
        assert re.search(r"analysis/classify_risk +-> gpu-1 .* gpu_match=True", told)

        told = program(mine, "compliance_run.py")
        assert "filed compliance-november-2026.md" in told
        assert '"risk": "high"' in told
        hops = re.findall(r"^  (did:\S+) +(\S+) +on (\S+)", told, re.M)
        assert {who for who, _, _ in hops} == {"did:web:licet.local:agents:demo"}
        assert [(what, where) for _, what, where in hops if "models" not in what] == [
            ("records/read_audit_log", "office"),
            ("analysis/classify_risk", "gpu-1"),
            ("desk/file_report", "cloud-1"),
        ]
        assert ": one identity" in told
        assert (home / "lab" / "desk" / "compliance-november-2026.md").exists()
        [run] = re.findall(r"run_\w+", told)[:1]
        trail = licet(env, "audit", "trail", run)
        assert all(name in trail for name in ("office", "gpu-1", "cloud-1"))

        licet(env, "nodes", "drain", "gpu-1", "--reason", "new driver")
        told = program(mine, "compliance_run.py")
        assert "no_eligible_node" in told
        assert "1 draining" in told
        assert "gpu-1 is draining" in " ".join(licet(env, "check").split())
        licet(env, "nodes", "resume", "gpu-1")
        told = program(mine, "compliance_run.py")
        assert '"risk": "high"' in told, told

        killed = node_process(home, "cloud-1")
        killed.send_signal(signal.SIGKILL)
        told = until(process, "the others go on")
        assert "cloud-1 ended" in told
        told = program(mine, "compliance_run.py")
        assert "no_eligible_node" in told or "node_unreachable" in told, "no other desk is there"
        assert {where for _, what, where in re.findall(r"^  (did:\S+) +(\S+) +on (\S+)", told, re.M)} >= {
            "office",
            "gpu-1",
        }
        sealed = program(mine, "compliance_run.py", "about", "the", "hearing")
        assert "no_eligible_node" in sealed, "what has seen it does not leave the premises"
        assert {where for _, _, where in re.findall(r"^  (did:\S+) +(\S+) +on (\S+)", sealed, re.M)[1:]} == {"office"}
        again = program(mine, "compliance_run.py")
        assert "placement_policy" in again, "nor does it in another run: labels stay with the agent for a day"

        used = licet(env, "usage", "--by", "node")
        assert all(name in used for name in ("office", "gpu-1", "cloud-1"))
        verified = licet(env, "audit", "verify")
        assert all(f"node/{name}" in verified for name in ("office", "gpu-1", "cloud-1"))


def node_process(home: Path, name: str) -> Any:
    """The process of one node: the one whose home it is."""
    wanted = str((home / f"node-{name}").resolve())
    for one in psutil.process_iter(["environ", "cmdline"]):
        environ = one.info["environ"] or {}
        if environ.get("LICET_NODE__HOME") == wanted and one.info["cmdline"][-1:] == ["node"]:
            return one
    raise AssertionError(f"no process of {name}; {os.listdir(home)}")
