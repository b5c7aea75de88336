"""A whole mesh for a test: gateway, node with the real workbench, sidecar, on free ports of loopback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from edge import tls
from gateway.app import Gateway
from gateway.config import BreakerConfig, GatewayConfig, GpuConfig, IssuerConfig, NotifyConfig, OidcConfig
from licet.workbench import MANIFEST
from loadtests.servers import free_port
from sidecar.app import Sidecar
from sidecar.config import NodeConfig, SidecarConfig, ToolServer, WebhookConfig
from sidecar.node.app import Node
from tests import zygote
from trust.identity.keys import SecretKey
from trust.ledger.disk import Disk
from trust.policy import bundle
from trust.policy.inventory import Inventory

REPOSITORY = Path(__file__).resolve().parent.parent
SEGMENT = 1 << 20
"""Small segments: filling 64 MiB for each of hundreds of ledgers would only test the disk."""


def policy_files(directory: Path = REPOSITORY / "policies") -> dict[str, str]:
    suffixes = (".cedar", ".cedarschema", ".json", ".yaml")
    return {str(p.relative_to(directory)): p.read_text() for p in directory.rglob("*") if p.suffix in suffixes}


def workbench(root: Path, name: str = "workbench") -> ToolServer:
    return ToolServer(
        name=name,
        command=zygote.command(root),
        cwd=REPOSITORY,
        manifest=MANIFEST,
    )


@cache
def _compiled(sources: bytes, inventory: bytes, validated: bool) -> bundle.Compiled:
    content = bundle.Content(
        1, 0, 0, msgspec.json.decode(sources, type=bundle.Sources), msgspec.json.decode(inventory, type=Inventory)
    )
    return _compile(content, validated=validated)


def _compile_once(content: bundle.Content, digest: str = "", *, validated: bool = False) -> bundle.Compiled:
    """As the real one, which depends on nothing else: hundreds of meshes have the same few bundles."""
    sources, inventory = (msgspec.json.encode(one) for one in (content.sources, content.inventory))
    return _compiled(sources, inventory, validated).dated(content, digest)


_compile, bundle.compile_bundle = bundle.compile_bundle, _compile_once


@dataclass
class Answer:
    """One HTTP answer, read completely."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Mesh:
    """``async with Mesh(tmp_path) as mesh``; every part can be stopped and started alone."""

    home: Path
    servers: Sequence[ToolServer] = ()
    policies: dict[str, str] | None = None
    hold_wait_s: float = 2.0
    recheck_s: float = 30.0
    bundle_ttl_s: int = 86_400
    sidecar_disk: Disk | None = None
    gateway_disk: Disk | None = None
    credentials: tuple[Any, ...] = ()
    redis: str = ""
    database: str = ""
    """With one there are gateways ``a``, which is :attr:`gateway`, and ``b`` in :attr:`replicas`."""
    replicas: dict[str, Gateway] = field(default_factory=dict)
    replica_ports: dict[str, int] = field(default_factory=dict)
    tls: bool = False
    otlp: str | None = None
    breaker: BreakerConfig = field(default_factory=BreakerConfig)
    notify: NotifyConfig = field(default_factory=NotifyConfig)
    oidc: OidcConfig | None = None
    public_url: str = ""
    issuers: tuple[IssuerConfig, ...] = ()
    gpu: GpuConfig | None = None
    webhook: WebhookConfig | None = None
    others: dict[str, Sidecar] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)

    async def __aenter__(self) -> Mesh:
        self.sandbox = self.home / "sandbox"
        self.sandbox.mkdir(parents=True, exist_ok=True)
        self.http = aiohttp.ClientSession(auto_decompress=False)
        await self.start_gateway()
        if self.database:
            await self.start_replica("b")
        self.trusted = tls.client(self.gateway_ca, "gateway") if self.gateway_ca else True
        operator = (self.home / "gateway" / "operator.token").read_text().strip()
        self.tokens["operator"] = operator
        for number in (1, 2):
            name = f"approver-{number}"
            roles = ["operations", "finance"]
            answer = await self.admin("POST", "/v1/people", {"name": name, "roles": roles})
            self.tokens[name] = answer.json["token"]
        answer = await self.activate(self.policies or policy_files())
        assert answer.status == 200, answer.body
        agent = {"name": "demo", "owner": "ada", "purpose": "tests", "teams": ["demo"]}
        self.agent_token = (await self.admin("POST", "/v1/agents", agent)).json["enrolment_token"]
        offers = [server.name for server in self.servers] or ["workbench"]
        node = {"name": "node-1", "kind": "on_prem", "zone": "default", "servers": offers}
        self.node_token = (await self.admin("POST", "/v1/nodes", node)).json["enrolment_token"]
        await self.start_node()
        await self.start_sidecar()
        return self

    async def __aexit__(self, *_: object) -> None:
        for other in self.others.values():
            await other.stop()
        for node in self.nodes.values():
            await node.stop()
        for part in ("sidecar", "node"):
            if getattr(self, part, None) is not None:
                await self.stop(part)
        for name in list(self.replicas):
            await self.stop_replica(name)
        if getattr(self, "gateway", None) is not None:
            await self.stop("gateway")
        await self.http.close()

    async def start_gateway(self) -> None:
        port = self.gateway_port if hasattr(self, "gateway_port") else free_port() if self.database else 0
        self.gateway = Gateway(self._gateway_config("main", self.home / "gateway", port), self.gateway_disk)
        await self.gateway.start()
        self.gateway_port = self.gateway.port
        self.gateway_url = f"{'https' if self.tls else 'http'}://127.0.0.1:{self.gateway.port}"
        self.gateway_ca = self.home / "gateway" / "ca.pem" if self.tls else None

    async def start_replica(self, name: str) -> Gateway:
        """Another gateway over the same database."""
        port = self.replica_ports.get(name) or free_port()
        config = self._gateway_config(name, self.home / f"gateway-{name}", port)
        made = self.replicas[name] = Gateway(config)
        await made.start()
        self.replica_ports[name] = made.port
        return made

    async def stop_replica(self, name: str) -> None:
        await self.replicas.pop(name).stop()

    @property
    def fallbacks(self) -> tuple[str, ...]:
        return tuple(f"http://127.0.0.1:{port}" for port in self.replica_ports.values())

    def _gateway_config(self, name: str, home: Path, port: int) -> GatewayConfig:
        key_file = None
        if self.database:
            key_file = self.home / "gateway.key"
            SecretKey.load_or_create(key_file)
        return GatewayConfig(
            name=name,
            home=home,
            port=port,
            key_file=key_file,
            database=self.database,
            peer_url=f"http://127.0.0.1:{port}" if self.database else None,
            segment_bytes=SEGMENT,
            bundle_ttl_s=self.bundle_ttl_s,
            credentials=self.credentials,
            redis=self.redis,
            tls="own" if self.tls else "off",
            otlp=self.otlp,
            breaker=self.breaker,
            notify=self.notify,
            oidc=self.oidc,
            public_url=self.public_url or None,
            issuers=self.issuers,
            gpu=self.gpu,
        )

    async def start_node(self) -> None:
        self.node = Node(
            NodeConfig(
                home=self.home / "node",
                port=0,
                gateway_url=self.gateway_url,
                gateway_fallbacks=self.fallbacks,
                gateway_ca=self.gateway_ca,
                enrolment_token=self.node_token,
                heartbeat_s=0.2,
                recheck_s=self.recheck_s,
                otlp=self.otlp,
                segment_bytes=SEGMENT,
                servers=tuple(self.servers) or (workbench(self.sandbox),),
            )
        )
        await self.node.start()

    async def start_sidecar(self) -> None:
        self.sidecar = Sidecar(
            SidecarConfig(
                home=self.home / "sidecar",
                port=0,
                gateway_url=self.gateway_url,
                gateway_fallbacks=self.fallbacks,
                gateway_ca=self.gateway_ca,
                enrolment_token=self.agent_token,
                hold_wait_s=self.hold_wait_s,
                webhook=self.webhook,
                otlp=self.otlp,
                segment_bytes=SEGMENT,
            ),
            self.sidecar_disk,
        )
        await self.sidecar.start()
        self.url = f"http://127.0.0.1:{self.sidecar.port}"
        await self.ready()

    async def add_agent(
        self, name: str, owner: str, *, teams: Sequence[str] = (), namespace: str = "", **more: Any
    ) -> Sidecar:
        """Another agent with a sidecar of its own, as on another machine."""
        new = {"name": name, "owner": owner, "teams": list(teams), "namespace": namespace}
        answer = await self.admin("POST", "/v1/agents", new)
        assert answer.status == 201, answer.body
        token = answer.json["enrolment_token"]
        config = SidecarConfig(
            home=self.home / name,
            port=0,
            gateway_url=self.gateway_url,
            gateway_fallbacks=self.fallbacks,
            gateway_ca=self.gateway_ca,
            enrolment_token=token,
            hold_wait_s=self.hold_wait_s,
            segment_bytes=SEGMENT,
            **more,
        )
        sidecar = self.others[name] = Sidecar(config)
        await sidecar.start()
        async with asyncio.timeout(30):
            while not all(sidecar.checks().values()):
                await asyncio.sleep(0.01)
        return sidecar

    async def add_node(
        self,
        name: str,
        *servers: ToolServer,
        kind: str = "on_prem",
        capabilities: dict[str, Any] | None = None,
        registered: dict[str, Any] | None = None,
        **more: Any,
    ) -> Node:
        """Another node, as on another machine; *registered*: what its operator says beside that, *more*: its own
        configuration."""
        offers = [server.name for server in servers] or ["workbench"]
        new = {"name": name, "kind": kind, "servers": offers, "capabilities": capabilities or {}, **(registered or {})}
        answer = await self.admin("POST", "/v1/nodes", new)
        assert answer.status == 201, answer.body
        config = NodeConfig(
            home=self.home / name,
            port=0,
            gateway_url=self.gateway_url,
            gateway_fallbacks=self.fallbacks,
            gateway_ca=self.gateway_ca,
            enrolment_token=answer.json["enrolment_token"],
            heartbeat_s=0.2,
            recheck_s=self.recheck_s,
            segment_bytes=SEGMENT,
            servers=servers or (workbench(self.sandbox),),
            **more,
        )
        node = Node(config)
        await node.start()
        self.nodes[name] = node
        await self.ready()
        return self.nodes[name]

    async def lose_node(self, name: str) -> None:
        await self.nodes.pop(name).stop()

    async def act(
        self, sidecar: Sidecar, tool: str, args: dict[str, Any], *, chain: str = "", token: str = "", **more: Any
    ) -> Answer:
        """A native action as the agent of *sidecar*, under *chain* if there is one."""
        headers = {"Licet-Delegation": chain} if chain else {}
        url = f"http://127.0.0.1:{sidecar.port}/v1/actions"
        body = {"tool": tool, "args": args, **more}
        return await self.request("POST", url, token=token or sidecar.token, json=body, headers=headers)

    async def stop(self, part: str) -> None:
        await getattr(self, part).stop()
        setattr(self, part, None)

    async def ready(self) -> None:
        """Until the sidecar has the gateway's bundle of now and its facts."""
        async with asyncio.timeout(30):
            while not (all(self.sidecar.checks().values()) and self._same_bundle()):
                await asyncio.sleep(0.01)

    def _same_bundle(self) -> bool:
        active = self.gateway.bundles.sealed if self.gateway else None
        return active is None or (self.sidecar.world.bundle and self.sidecar.world.bundle.digest == active.digest)

    # Talking to it

    async def request(
        self,
        method: str,
        url: str,
        *,
        token: str = "",
        json: Any = None,
        data: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        sent = {"Authorization": f"Bearer {token}"} if token else {}
        async with self.http.request(
            method, url, json=json, data=data, headers={**sent, **(headers or {})}, ssl=self.trusted
        ) as r:
            return Answer(r.status, dict(r.headers), await r.read())

    async def admin(self, method: str, path: str, body: Any = None, who: str = "operator") -> Answer:
        return await self.request(method, self.gateway_url + path, token=self.tokens[who], json=body)

    async def activate(self, files: dict[str, str]) -> Answer:
        from gateway.candidate import to_request

        return await self.admin("POST", "/v1/bundles", to_request(files))

    async def call(self, tool: str, args: dict[str, Any], **more: Any) -> Answer:
        """A native action as the bound agent."""
        return await self.request(
            "POST", f"{self.url}/v1/actions", token=self.sidecar.token, json={"tool": tool, "args": args, **more}
        )

    async def call_with(self, tool: str, args: dict[str, Any], headers: dict[str, str]) -> Answer:
        """The same with headers of the agent's own."""
        url, body = f"{self.url}/v1/actions", {"tool": tool, "args": args}
        return await self.request("POST", url, token=self.sidecar.token, json=body, headers=headers)

    async def claim(self, approval: str) -> Answer:
        return await self.request("POST", f"{self.url}/v1/approvals/{approval}/claim", token=self.sidecar.token)

    async def vote(
        self, approval: str, decision: str = "approve", who: str = "approver-1", reason: str = "", **more: Any
    ) -> Answer:
        """Of what the request is in this moment."""
        presented = self.gateway.desk.get(approval).presented
        ballot = {"decision": decision, "reason": reason, "presented": presented, **more}
        return await self.admin("POST", f"/v1/approvals/{approval}/votes", ballot, who)

    def entries(self, part: str = "sidecar") -> list[Any]:
        """Every entry of one part's ledger so far."""
        return [line.entry for _, line in getattr(self, part).ledger.lines()]
