"""What agents and approvers of a fleet do all day, for locust: ``LICET_FLEET`` names what :mod:`loadtests.fleet` wrote.

Reads, writes, refusals, actions that wait for a person and are claimed, long streams, and delegated actions. An answer
counts as failed if it is neither what was asked for nor a refusal that says why.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import time
from pathlib import Path
from typing import Any, Final

import gevent
from locust import HttpUser, between, events, task
from locust.env import Environment

FLEET: Final[dict[str, Any]] = json.loads(Path(os.environ["LICET_FLEET"]).read_text())
PATIENCE_S: Final = 60.0
_AGENTS: Final = itertools.cycle(FLEET["agents"])
REASONS: Final[dict[str, int]] = {}
"""How often each reason was told."""


class Agent(HttpUser):
    """A program beside one of the sidecars."""

    weight = 20
    wait_time = between(0.01, 0.1)
    host = "http://127.0.0.1"

    def on_start(self) -> None:
        own = next(_AGENTS)
        self.url, self.chain = own["url"], own["chain"]
        self.client.headers["Authorization"] = f"Bearer {own['token']}"
        self.name = own["name"]

    def _act(self, what: str, tool: str, args: dict[str, Any], expected: tuple[int, ...], **more: Any) -> Any:
        headers = more.pop("headers", {})
        body = {"tool": tool, "args": args, **more}
        url = self.url + "/v1/actions"
        with self.client.post(url, json=body, headers=headers, name=what, catch_response=True, timeout=60) as reply:
            return _judged(reply, expected)

    @task(50)
    def read(self) -> None:
        self._act("read", "workbench/read_file", {"path": "notes.txt"}, (200,))

    @task(15)
    def write(self) -> None:
        path = f"{self.name}-{random.randrange(50)}.txt"
        self._act("write", "workbench/write_file", {"path": path, "content": "x" * 200}, (200,))

    @task(10)
    def refused(self) -> None:
        self._act("refused", "workbench/read_file", {"path": "notes.txt"}, (403,), place={"pin": "nowhere"})

    @task(10)
    def delegated(self) -> None:
        headers = {"Licet-Delegation": self.chain} if self.chain else {}
        self._act("delegated", "workbench/read_file", {"path": "notes.txt"}, (200,), headers=headers)

    @task(3)
    def held(self) -> None:
        """Something that a person decides, waited for, and done."""
        path = f"old-{self.name}-{time.monotonic_ns()}.txt"
        self._act("write", "workbench/write_file", {"path": path, "content": "x"}, (200,))
        asked = self._act("held", "workbench/delete_file", {"path": path}, (202,))
        if not asked or "approval" not in asked:
            return
        url = f"{self.url}/v1/approvals/{asked['approval']}"
        if self._listened(url) == "approved":
            with self.client.post(url + "/claim", name="claim", catch_response=True, timeout=60) as reply:
                _judged(reply, (200,))

    def _listened(self, url: str) -> str:
        """How it ended: a stream that lasts until a person has decided, opened again if it breaks."""
        deadline, state = time.monotonic() + PATIENCE_S, "pending"
        while state == "pending" and time.monotonic() < deadline:
            with self.client.get(
                url + "/events", name="stream", stream=True, catch_response=True, timeout=PATIENCE_S
            ) as reply:
                if reply.status_code != 200:
                    _judged(reply, (200,))
                    gevent.sleep(0.5)
                    continue
                reply.success()
                try:
                    for line in reply.iter_lines():
                        if line.startswith(b"data:"):
                            state = json.loads(line[5:]).get("state", state)
                except (OSError, ValueError):
                    gevent.sleep(0.2)
        return state

    @task(10)
    def mcp(self) -> None:
        """What an MCP client does: a hand-shake and a call."""
        hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "load", "version": "1"}}
        headers = {"Accept": "application/json, text/event-stream"}
        called = {"name": "list_directory", "arguments": {"path": "."}}
        for number, (method, params) in enumerate((("initialize", hello), ("tools/call", called))):
            body = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
            url = self.url + "/mcp/workbench"
            with self.client.post(
                url, json=body, headers=headers, name="mcp", catch_response=True, timeout=60
            ) as reply:
                if reply.status_code != 200:
                    _judged(reply, (200,))
                    return
                reply.success()
                session = reply.headers.get("Mcp-Session-Id", "")
                headers |= {"Mcp-Session-Id": session} if session else {}


class Approver(HttpUser):
    """A person with a queue."""

    fixed_count = 1
    wait_time = between(0.2, 0.5)
    host = "http://127.0.0.1"

    def on_start(self) -> None:
        self.client.headers["Authorization"] = f"Bearer {FLEET['approver']}"
        self.gateways = itertools.cycle(FLEET["gateways"])

    @task
    def work(self) -> None:
        """All that waits, at whichever gateway."""
        gateway = next(self.gateways)
        queue = f"{gateway}/v1/approvals?state=pending"
        with self.client.get(queue, name="queue", catch_response=True, timeout=30) as reply:
            waiting = _judged(reply, (200,), people=True) or {"approvals": []}
        for one in waiting["approvals"][:20]:
            if time.time() - one["requested_at"] < random.uniform(1, 8):
                continue  # people take their time, and streams last as long
            ballot = {"decision": "approve", "reason": "", "presented": one["presented"]}
            url = f"{gateway}/v1/approvals/{one['id']}/votes"
            with self.client.post(url, json=ballot, name="vote", catch_response=True, timeout=30) as reply:
                _judged(reply, (200,), people=True)


def _judged(reply: Any, expected: tuple[int, ...], *, people: bool = False) -> Any:
    """The answer, if it is what was asked for; else it has to say why not."""
    try:
        told = reply.json()
    except ValueError:
        told = {}
    if reply.status_code in expected:
        reply.success()
        return told
    reason = told.get("reason", "")
    if reason and told.get("detail") and reason != "internal_error":
        REASONS[reason] = REASONS.get(reason, 0) + 1
        reply.success()
    elif people and reply.status_code == 0:
        REASONS["gateway is down"] = REASONS.get("gateway is down", 0) + 1
        reply.success()
    else:
        reply.failure(f"{reply.status_code} without a reason: {reply.text[:200] if reply.text else reply.error}")
    return None


@events.quitting.add_listener
def _write_reasons(environment: Environment, **_: Any) -> None:
    Path(os.environ["LICET_FLEET"]).with_name("reasons.json").write_text(json.dumps(REASONS))
