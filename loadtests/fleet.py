"""A company on one machine: two gateways over PostgreSQL and Redis, behind HAProxy if asked, with sidecars and nodes.

``python -m loadtests.fleet`` starts it and writes what locust needs; every part is a process of its own that can be
killed and started again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from gateway.candidate import read_directory, to_request
from licet.client import Api, ApiError, Credentials, Unavailable, delegate, narrow
from licet.workbench import MANIFEST
from loadtests.net import INSIDE, Island, Wire
from loadtests.servers import Postgres, Redis, await_port, free_port
from trust.identity.keys import SecretKey

REPOSITORY: Final = Path(__file__).resolve().parent.parent
GATEWAYS: Final = ("a", "b")
READY_S: Final = 60.0
PEOPLE, REDIS, DATABASE, GATEWAY_A, GATEWAY_B = range(1, 6)
"""Whose address outside an island ends so: everybody who only asks, and what is asked from there."""
SEGMENT_BYTES: Final = 4 << 20


@dataclass
class Part:
    """One process of Licet; *settings* are its environment."""

    name: str
    command: str
    port: int
    settings: Mapping[str, str]
    home: Path
    host: str = "127.0.0.1"
    inside: Sequence[str] = ()
    """A program that starts it in another place, such as a network namespace."""
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def start(self) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("LICET_")}
        log = (self.home / f"{self.name}.log").open("ab")
        self.process = subprocess.Popen(
            [*self.inside, sys.executable, "-m", "licet", self.command],
            env={**kept, "LICET_HOME": str(self.home), **self.settings},
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        log.close()

    def ready(self, path: str = "/readyz") -> None:
        """Wait until it is."""
        api, deadline, last = Api(self.url, timeout_s=2.0), time.monotonic() + READY_S, ""
        while time.monotonic() < deadline:
            if self.process is None or self.process.poll() is not None:
                raise AssertionError(f"{self.name} ended:\n{self.said()}")
            try:
                api.call("GET", path)
                return
            except ApiError as bad:
                last = str(bad.problem)
            except Unavailable as bad:
                last = str(bad)
            time.sleep(0.05)
        raise AssertionError(f"{self.name} is not ready: {last}\n{self.said()}")

    def said(self) -> str:
        return "\n".join((self.home / f"{self.name}.log").read_text("utf-8", "replace").splitlines()[-15:])

    def signal(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            os.kill(self.process.pid, number)

    def kill(self) -> None:
        """As by a power failure."""
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait()

    def stop(self) -> None:
        self.signal(signal.SIGTERM)


@dataclass
class Fleet:
    """``with Fleet(home) as fleet``. Without *balanced* sidecars and nodes know both gateways themselves. *remote*: the
    part that is on an island of its own, so that its wires to the others can be cut. *environment*: more for a part."""

    home: Path
    sidecars: int = 2
    nodes: int = 2
    balanced: bool = False
    remote: str = ""
    environment: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    island: Island | None = None
    postgres: Postgres = field(init=False)
    redis: Redis = field(init=False)
    parts: dict[str, Part] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    seen: list[Any] = field(default_factory=list)
    """What whoever makes the load wants to remember of it."""

    def __enter__(self) -> Fleet:
        self.home.mkdir(parents=True, exist_ok=True)
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self) -> None:
        if self.remote:
            self.island = Island()
        self.postgres, self.redis = Postgres(self._host(DATABASE)), Redis(self.home, self._host(REDIS))
        self.postgres.start()
        self.redis.start("--appendonly", "yes")
        self.database = self.postgres.database("licet")
        self.wire = Wire(self.postgres.host, self.postgres.port)
        SecretKey.load_or_create(self.home / "gateway.key")
        ports = {name: free_port() for name in GATEWAYS}
        self._balancer: subprocess.Popen[bytes] | None = None
        self.entrances = [f"http://{self._host_of(f'gateway-{name}')}:{port}" for name, port in ports.items()]
        if self.balanced:
            self.entrances = [self._balance(ports)]
        for name, port in ports.items():
            self._gateway(name, port)
        self.parts["gateway-a"].start()
        self.parts["gateway-a"].ready("/livez")
        self.tokens["operator"] = (self.home / "gateway-a" / "operator.token").read_text().strip()
        self.parts["gateway-b"].start()
        self._people()
        self.call("POST", "/v1/bundles", to_request(policies()))
        self.sandbox = self.home / "sandbox"
        self.sandbox.mkdir(exist_ok=True)
        (self.sandbox / "notes.txt").write_text("Buy milk.\n")
        (self.sandbox / "server.pem").write_text("not a key\n")
        for number in range(1, self.nodes + 1):
            self._node(f"node-{number}")
        for number in range(1, self.sidecars + 1):
            self._sidecar(f"agent-{number}")
        self.parts["gateway-b"].ready()
        for part in self.of("node-"):
            part.ready()
        for part in self.of("agent-"):
            part.start()
        for part in self.of("agent-"):
            part.ready()
            self.tokens[part.name] = (self.home / part.name / "agent.token").read_text().strip()
        self._same_bundle()

    def _gateway(self, name: str, port: int) -> None:
        entrances = [url.partition("://")[2] for url in self.entrances]
        host = self._host_of(f"gateway-{name}")
        settings = {
            "LICET_GATEWAY__NAME": name,
            "LICET_GATEWAY__HOST": host,
            "LICET_GATEWAY__HOME": str(self.home / f"gateway-{name}"),
            "LICET_GATEWAY__PORT": str(port),
            "LICET_GATEWAY__KEY_FILE": str(self.home / "gateway.key"),
            "LICET_GATEWAY__DATABASE": self._database_of(f"gateway-{name}"),
            "LICET_GATEWAY__REDIS": self.redis.url,
            "LICET_GATEWAY__PEER_URL": f"http://{host}:{port}",
            "LICET_GATEWAY__HOSTNAMES": json.dumps(entrances),
            "LICET_GATEWAY__SEGMENT_BYTES": str(SEGMENT_BYTES),
            "LICET_GATEWAY__BREAKER": json.dumps({"loop": 0, "burst": 0, "failures": 0}),
        }
        self._part(f"gateway-{name}", "gateway", port, settings)

    def _balance(self, ports: Mapping[str, int]) -> str:
        """A plain load balancer that knows nothing of Licet but its health."""
        binary, port = shutil.which("haproxy"), free_port()
        assert binary, "make debian installs haproxy"
        servers = "\n".join(
            f"  server {name} 127.0.0.1:{one} check inter 500ms fall 2 rise 1" for name, one in ports.items()
        )
        (self.home / "haproxy.cfg").write_text(_HAPROXY.format(port=port, servers=servers))
        command = [binary, "-f", str(self.home / "haproxy.cfg"), "-db"]
        log = (self.home / "haproxy.log").open("ab")
        self._balancer = subprocess.Popen(command, stdout=log, stderr=log)
        log.close()
        await_port(port, self._balancer, "haproxy")
        return f"http://127.0.0.1:{port}"

    def _people(self) -> None:
        for name in ("approver-1", "approver-2"):
            body = {"name": name, "roles": ["operations", "finance"]}
            self.tokens[name] = self.call("POST", "/v1/people", body)["token"]

    def _workload(self, section: str, home: Path, token: str) -> dict[str, str]:
        return {
            f"LICET_{section}__HOME": str(home),
            f"LICET_{section}__GATEWAY_URL": self.entrances[0],
            f"LICET_{section}__GATEWAY_FALLBACKS": json.dumps(self.entrances[1:]),
            f"LICET_{section}__ENROLMENT_TOKEN": token,
            f"LICET_{section}__SEGMENT_BYTES": str(SEGMENT_BYTES),
        }

    def _node(self, name: str) -> None:
        port, host = free_port(), self._host_of(name)
        url = "" if self.island is None else f"http://{host}:{port}"
        token = self.call("POST", "/v1/nodes", {"name": name, "servers": ["workbench"], "url": url})["enrolment_token"]
        command = [sys.executable, "-m", "licet.workbench", "--root", str(self.sandbox)]
        servers = [{"name": "workbench", "command": command, "manifest": str(MANIFEST)}]
        settings = self._workload("NODE", self.home / name, token) | {
            "LICET_NODE__HOST": host,
            "LICET_NODE__PORT": str(port),
            "LICET_NODE__SERVERS": json.dumps(servers),
        }
        self._part(name, "node", port, settings).start()

    def _sidecar(self, name: str) -> None:
        body = {"name": name, "owner": "ada", "purpose": "load", "teams": ["load"]}
        token, port = self.call("POST", "/v1/agents", body)["enrolment_token"], free_port()
        settings = self._workload("SIDECAR", self.home / name, token) | {"LICET_SIDECAR__PORT": str(port)}
        self._part(name, "sidecar", port, settings | {"LICET_SIDECAR__HOST": self._host_of(name)})

    def _part(self, name: str, command: str, port: int, settings: Mapping[str, str]) -> Part:
        inside = self.island.command if self.island is not None and name == self.remote else ()
        settings = {**settings, **self.environment.get(name, {})}
        self.parts[name] = Part(name, command, port, settings, self.home, self._host_of(name), inside)
        return self.parts[name]

    def _database_of(self, name: str) -> str:
        """The remote one reaches PostgreSQL over the wire."""
        return (
            self.database.replace(f":{self.postgres.port}/", f":{self.wire.port}/")
            if name == self.remote
            else self.database
        )

    def _host(self, last: int) -> str:
        return self.island.address(last) if self.island is not None else "127.0.0.1"

    def _host_of(self, name: str) -> str:
        """Where a part listens: what an island has to reach, at an address of its own."""
        if self.island is None:
            return "127.0.0.1"
        own = {"gateway-a": GATEWAY_A, "gateway-b": GATEWAY_B, self.remote: INSIDE}
        return self.island.address(own.get(name, PEOPLE))

    def _same_bundle(self) -> None:
        deadline = time.monotonic() + READY_S
        active = self.call("GET", "/v1/bundles")["active"]
        while time.monotonic() < deadline:
            told = [Api(part.url).call("GET", "/readyz").body["bundle"] for part in self.of("agent-")]
            if set(told) == {active}:
                return
            active = self.call("GET", "/v1/bundles")["active"]
            time.sleep(0.05)
        raise AssertionError("the sidecars did not get the active bundle")

    def of(self, prefix: str) -> Iterator[Part]:
        return (part for name, part in self.parts.items() if name.startswith(prefix))

    def call(self, method: str, path: str, body: Any = None, *, who: str = "operator", at: str = "gateway-a") -> Any:
        """As a person, of one gateway."""
        return Api(self.parts[at].url, self.tokens.get(who, ""), 30.0).call(method, path, body).body

    def stop(self) -> None:
        for part in self.parts.values():
            part.signal(signal.SIGCONT)
            part.stop()
        for part in self.parts.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                if part.process is not None:
                    part.process.wait(10)
            part.kill()
        if getattr(self, "_balancer", None) is not None:
            self._balancer.kill()  # type: ignore[union-attr]
            self._balancer.wait()  # type: ignore[union-attr]
        for server in ("wire", "redis", "postgres"):
            if hasattr(self, server):
                getattr(self, server).remove()
        if self.island is not None:
            self.island.remove()


def policies() -> dict[str, str]:
    """The default ones without the rates of rings: an agent that makes load is one that they are to slow down."""
    found = read_directory(REPOSITORY / "policies")
    return {name: text for name, text in found.items() if Path(name).stem != "rings"}


_HAPROXY: Final = """
defaults
  mode tcp
  timeout connect 1s
  timeout client 1h
  timeout server 1h
  option httpchk GET /readyz
frontend gateway
  bind 127.0.0.1:{port}
  default_backend gateways
backend gateways
  balance roundrobin
  http-check expect status 200
{servers}
"""


def described(fleet: Fleet) -> dict[str, Any]:
    """What locust needs: each agent with a chain that another one handed on to it."""
    agents = []
    parts = list(fleet.of("agent-"))
    for part, other in zip(parts, [*parts[1:], parts[0]], strict=True):
        giving, getting = (Credentials.load(fleet.home / one.name) for one in (other, part))
        tools: dict[str, dict[str, Any]] = {"workbench/read_file": {}}
        root = delegate(giving, fleet.parts["gateway-a"].url, tools)
        chain = narrow(giving, root, getting.key.public, tools)
        agents.append({"name": part.name, "url": part.url, "token": fleet.tokens[part.name], "chain": chain})
    gateways = [part.url for part in fleet.of("gateway-")]
    return {"agents": agents, "gateways": gateways, "approver": fleet.tokens["approver-1"]}


def main() -> None:
    """Without arguments: run until Ctrl-C."""
    home = Path(tempfile.mkdtemp(prefix="licet-fleet-"))
    with Fleet(home, sidecars=4, nodes=3) as fleet, contextlib.suppress(KeyboardInterrupt):
        (home / "fleet.json").write_text(json.dumps(described(fleet)))
        for name, part in fleet.parts.items():
            print(f"{name}: {part.url}  (log: {home / name}.log)")
        print(f"LICET_FLEET={home / 'fleet.json'} locust -f loadtests/locustfile.py")
        print("Ctrl-C stops everything", flush=True)
        signal.pause()
    shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
