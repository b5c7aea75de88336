"""A whole mesh on one machine: gateway, node and sidecar as processes, with two approvers and a sandbox."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from gateway.candidate import read_directory, to_request
from licet.cli.run import agent_environment
from licet.client import Api, ApiError, Unavailable
from licet.settings import Settings, read_token
from licet.workbench import MANIFEST
from trust.ledger.tiles import write_atomically

AGENT: Final = "demo"
NODE: Final = "node-1"
APPROVERS: Final = ("approver-1", "approver-2")
READY_WITHIN_S: Final = 30.0
STOP_WITHIN_S: Final = 2.0
SAMPLES: Final = {
    "notes.txt": "Buy milk. Call Ada about the ledger.\n",
    "old-draft.txt": "This draft may go.\n",
    "server.pem": "-----BEGIN PRIVATE KEY-----\nnot a real key\n-----END PRIVATE KEY-----\n",
}


class NotStarted(Exception):
    """A part did not become ready; the text holds its last words."""


@dataclass
class Launcher:
    """``start`` returns when all parts are ready; ``stop`` ends them all within two seconds."""

    settings: Settings
    parts: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def dev(self) -> Path:
        return self.settings.home / "dev"

    @property
    def sandbox(self) -> Path:
        return self.settings.home / "sandbox"

    @property
    def gateway(self) -> Api:
        return self.settings.api("gateway", read_token(self.settings.gateway.home / "operator.token", "operator"))

    @property
    def sidecar(self) -> Api:
        return self.settings.api("sidecar", read_token(self.settings.sidecar.home / "agent.token", "the agent"))

    def start(self) -> None:
        self._require_free_ports()
        self.settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._fill_sandbox()
        self._spawn("gateway", {})
        self._wait("gateway", "/livez")
        self._register_people()
        self._activate_policies()
        self._spawn("node", self._node_environment())
        self._spawn("sidecar", {**self._gateway_url("SIDECAR"), **self._enrolment("SIDECAR", "agents", AGENT)})
        self._wait("node", "/readyz")
        self._wait("sidecar", "/readyz")
        self._wait_for_servers()
        self._write_agent_env()

    def _require_free_ports(self) -> None:
        for name in ("gateway", "sidecar", "node"):
            part = getattr(self.settings, name)
            with socket.socket() as probe:
                if probe.connect_ex((part.host, part.port)) == 0:
                    raise NotStarted(
                        f"something listens on {part.host}:{part.port} already: is Licet running? "
                        f"(another port: LICET_{name.upper()}__PORT)"
                    )

    def _fill_sandbox(self) -> None:
        """The samples that the printed commands name are there at each start; what is there stays as it is."""
        self.sandbox.mkdir(parents=True, exist_ok=True)
        for name, text in SAMPLES.items():
            if not (self.sandbox / name).exists():
                (self.sandbox / name).write_text(text)

    def _spawn(self, name: str, extra: dict[str, str]) -> None:
        settings = self.settings
        home = {f"LICET_{name.upper()}__HOME": str(getattr(settings, name).home.resolve())}
        log = (settings.home / f"{name}.log").open("ab")
        self.parts[name] = subprocess.Popen(
            [sys.executable, "-m", "licet", name],
            env={**os.environ, **home, **extra},
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _gateway_url(self, section: str) -> dict[str, str]:
        gateway = self.settings.gateway
        found = {f"LICET_{section}__GATEWAY_URL": gateway.url}
        if gateway.authority is not None:
            found[f"LICET_{section}__GATEWAY_CA"] = str(gateway.authority.resolve())
        return found

    def _node_environment(self) -> dict[str, str]:
        """The demo node: the workbench over the sandbox, unless the configuration names servers."""
        extra = {**self._gateway_url("NODE"), **self._enrolment("NODE", "nodes", NODE)}
        if not self.settings.node.servers:
            command = [sys.executable, "-m", "licet.workbench", "--root", str(self.sandbox.resolve())]
            server = {"name": "workbench", "command": command, "manifest": str(MANIFEST)}
            extra["LICET_NODE__SERVERS"] = json.dumps([server])
        return extra

    def _enrolment(self, section: str, kind: str, name: str) -> dict[str, str]:
        """A one-time token, if the part has not enrolled yet."""
        if (getattr(self.settings, section.lower()).home / "enrolment.json").exists():
            return {}
        body: dict[str, Any] = {"name": name}
        if kind == "agents":
            body |= {"owner": "ada", "purpose": "try Licet", "teams": ["demo"]}
        else:
            body |= {"servers": [server.name for server in self.settings.node.servers] or ["workbench"]}
        try:
            token = self.gateway.call("POST", f"/v1/{kind}", body).body["enrolment_token"]
        except ApiError as bad:
            raise NotStarted(
                f"{name} is registered, but its home has no enrolment ({bad}); "
                f"remove {self.settings.home} to begin anew"
            ) from None
        return {f"LICET_{section}__ENROLMENT_TOKEN": token}

    def _register_people(self) -> None:
        known = {p["name"] for p in self.gateway.call("GET", "/v1/people").body["people"]}
        for name in APPROVERS:
            if name not in known:
                body = {"name": name, "roles": ["operations", "finance"]}
                token = self.gateway.call("POST", "/v1/people", body).body["token"]
                write_atomically(self.dev / f"{name}.token", token.encode() + b"\n")

    def _activate_policies(self) -> None:
        """Once; from then on what `licet policy activate` made active stays."""
        if self.gateway.call("GET", "/v1/bundles").body["active"] is None:
            files = read_directory(self.settings.gateway.policies)
            self.gateway.call("POST", "/v1/bundles", to_request(files))

    def _wait(self, name: str, path: str) -> None:
        deadline = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < deadline:
            if self.parts[name].poll() is not None:
                raise NotStarted(f"{name} ended at once:\n{self._last_words(name)}")
            try:
                self.settings.api(name, timeout_s=1.0).call("GET", path)
                return
            except (ApiError, Unavailable, FileNotFoundError):  # the last: its authority is made when it starts
                time.sleep(0.03)
        raise NotStarted(f"{name} did not become ready within {READY_WITHIN_S:.0f} s:\n{self._last_words(name)}")

    def _wait_for_servers(self) -> None:
        """Until the sidecar decides by a bundle that knows what the node offers."""
        deadline = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < deadline:
            if self.gateway.call("GET", "/v1/bundles").body["active"] == self._sidecar_bundle():
                return
            time.sleep(0.03)
        raise NotStarted("the sidecar did not get the active bundle")

    def _sidecar_bundle(self) -> str:
        told = self.settings.api("sidecar", timeout_s=1.0).call("GET", "/readyz").body
        return str(told.get("bundle", ""))

    def _last_words(self, name: str) -> str:
        log = self.settings.home / f"{name}.log"
        return "\n".join(log.read_text("utf-8", "replace").splitlines()[-8:]) or "(it said nothing)"

    def _write_agent_env(self) -> None:
        found = agent_environment(self.settings)
        names = ("LICET_URL", "LICET_TOKEN", "LICET_MCP_URL", "LICET_CONSOLE_URL")
        write_atomically(self.dev / "agent.env", "".join(f"{name}={found[name]}\n" for name in names).encode())

    def fallen(self) -> str | None:
        """A part that ended by itself, with its last words."""
        for name, process in self.parts.items():
            if process.poll() is not None:
                return f"{name} ended with code {process.returncode}:\n{self._last_words(name)}"
        return None

    def stop(self) -> None:
        for process in self.parts.values():
            _signal(process, signal.SIGTERM)
        deadline = time.monotonic() + STOP_WITHIN_S
        for process in self.parts.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _signal(process, signal.SIGKILL)
                process.wait()


def _signal(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    if process.poll() is None:
        process.send_signal(how)


def sandboxed() -> bool:
    """Whether the workbench can put programs into a sandbox."""
    return shutil.which("bwrap") is not None
