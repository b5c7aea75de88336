"""A whole mesh on one machine: gateway, nodes and sidecar as processes, with two approvers and a sandbox."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from gateway.candidate import read_directory, to_request
from licet import lab
from licet.cli.run import agent_environment
from licet.client import Api, ApiError, Unavailable
from licet.lab import NodeSpec
from licet.settings import Settings, free_port, read_token
from licet.workbench import MANIFEST
from trust.ledger.tiles import write_atomically

AGENT: Final = "demo"
NODE: Final = "node-1"
APPROVERS: Final = ("approver-1", "approver-2")
READY_WITHIN_S: Final = 120.0
"""Only so that it ends: a part that ended by itself is said at once."""
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
    """``start`` returns when all parts are ready; ``stop`` ends them all within two seconds, and what they may take to
    finish what they have in hand (``drain_s``). *mesh*: three nodes of three kinds, and a model that plays back a
    script unless *model_url* names another."""

    settings: Settings
    mesh: bool = False
    model_url: str = ""
    parts: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    nodes: dict[str, Api] = field(default_factory=dict)
    """Each node's address, in the order in which they started."""

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
        self._spawn("gateway", "gateway", self._home("gateway", self.settings.gateway.home))
        self._wait("gateway", self.settings.api("gateway", timeout_s=1.0), "/livez")
        self._register_people()
        self._activate_policies()
        for spec in self._specs():
            self._start_node(spec)
        sidecar = {**self._gateway_url("SIDECAR"), **self._agent()}
        self._spawn("sidecar", "sidecar", self._home("sidecar", self.settings.sidecar.home) | sidecar)
        for name, api in self.nodes.items():
            self._wait(name, api, "/readyz")
        self._wait("sidecar", self.settings.api("sidecar", timeout_s=1.0), "/readyz")
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

    def _spawn(self, name: str, command: str, extra: dict[str, str]) -> None:
        self._spawn_program(name, [sys.executable, "-m", "licet", command], extra)

    def _spawn_program(self, name: str, program: list[str], extra: dict[str, str]) -> None:
        log = (self.settings.home / f"{name}.log").open("ab")
        self.parts[name] = subprocess.Popen(
            program,
            env={**os.environ, **extra},
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _home(self, section: str, home: Path) -> dict[str, str]:
        return {f"LICET_{section.upper()}__HOME": str(home.resolve())}

    def _gateway_url(self, section: str) -> dict[str, str]:
        gateway = self.settings.gateway
        found = {f"LICET_{section}__GATEWAY_URL": gateway.url}
        if gateway.authority is not None:
            found[f"LICET_{section}__GATEWAY_CA"] = str(gateway.authority.resolve())
        return found

    def _specs(self) -> list[NodeSpec]:
        """The demo node: the workbench over the sandbox, unless the configuration names servers. Of a mesh: three."""
        if self.mesh:
            lab.fill(self.settings.home)
            return lab.nodes(self.settings.home, self.sandbox, self.model_url or self._scripted_model())
        named = [server.name for server in self.settings.node.servers]
        command = [sys.executable, "-m", "licet.workbench", "--root", str(self.sandbox.resolve())]
        server = {"name": "workbench", "command": command, "manifest": str(MANIFEST)}
        own = [] if named else [server]
        return [NodeSpec(NODE, "on_prem", {}, 16, own)]

    def _scripted_model(self) -> str:
        """A model that plays back a script; its endpoint."""
        port = free_port("127.0.0.1", self.settings.node.port + 80)
        program = [sys.executable, "-m", "licet.mesh.scripted", str(lab.SCRIPT), "--port", str(port)]
        self._spawn_program("model", program, {})
        return f"http://127.0.0.1:{port}/v1"

    def _start_node(self, spec: NodeSpec) -> None:
        """Registered if it is not yet, and started; beside others each has a home and a port of its own."""
        own = self.settings.node
        port = own.port if not self.nodes else free_port(own.host, own.port + len(self.nodes))
        home = self.settings.home / f"node-{spec.name}" if self.mesh else own.home
        api = self.settings.api("node", timeout_s=1.0)
        part = spec.name if self.mesh else "node"
        self.nodes[part] = replace(api, url=f"{api.url.rpartition(':')[0]}:{port}")
        extra = self._home("node", home) | {"LICET_NODE__PORT": str(port)} | self._gateway_url("NODE")
        if spec.servers:
            extra["LICET_NODE__SERVERS"] = json.dumps(spec.servers)
        offered = [server["name"] for server in spec.servers] or [server.name for server in own.servers]
        body = {
            "name": spec.name,
            "kind": spec.kind,
            "capabilities": spec.capabilities,
            "slots": spec.slots,
            "servers": offered,
        }
        self._spawn(part, "node", extra | self._enrolment("NODE", "nodes", home, body))

    def _agent(self) -> dict[str, str]:
        body = {"name": AGENT, "owner": "ada", "purpose": "try Licet", "teams": ["demo"]}
        return self._enrolment("SIDECAR", "agents", self.settings.sidecar.home, body)

    def _enrolment(self, section: str, kind: str, home: Path, body: dict[str, Any]) -> dict[str, str]:
        """A one-time token, if the part has not enrolled yet."""
        if (home / "enrolment.json").exists():
            return {}
        try:
            token = self.gateway.call("POST", f"/v1/{kind}", body).body["enrolment_token"]
        except ApiError as bad:
            raise NotStarted(
                f"{body['name']} is registered, but its home has no enrolment ({bad}); "
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

    def _wait(self, name: str, api: Api, path: str) -> None:
        deadline = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < deadline:
            if self.parts[name].poll() is not None:
                raise NotStarted(f"{name} ended at once:\n{self._last_words(name)}")
            try:
                api.call("GET", path)
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
        operator = {
            "LICET_MANAGEMENT_URL": self.settings.gateway.url,
            "LICET_MANAGEMENT_TOKEN_FILE": str((self.settings.gateway.home / "operator.token").resolve()),
        }
        write_atomically(self.dev / "operator.env", "".join(f"{k}={v}\n" for k, v in operator.items()).encode())

    def fallen(self) -> list[tuple[str, str]]:
        """Parts that ended by themselves since this was asked last, with their last words."""
        ended = [name for name, process in self.parts.items() if process.poll() is not None]
        codes = [self.parts.pop(name).returncode for name in ended]
        return [
            (name, f"{name} ended with code {code}:\n{self._last_words(name)}")
            for name, code in zip(ended, codes, strict=True)
        ]

    def stop(self) -> None:
        for process in self.parts.values():
            _signal(process, signal.SIGTERM)
        parts = (self.settings.gateway, self.settings.sidecar, self.settings.node)
        deadline = time.monotonic() + STOP_WITHIN_S + max(part.drain_s for part in parts)
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
