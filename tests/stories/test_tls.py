"""The mesh over mutual TLS: with the gateway's own small authority, and with certificates from files."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography import x509

from edge import tls
from gateway.authority import CertificateAuthority
from tests.mesh import Mesh
from trust.identity.keys import SecretKey

pytestmark = pytest.mark.slow
READ, NOTES = "workbench/read_file", {"path": "notes.txt"}


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with Mesh(tmp_path, tls=True) as made:
        (made.sandbox / "notes.txt").write_text("hello")
        yield made


async def ask(url: str, context: ssl.SSLContext | bool, method: str = "GET", **more: Any) -> int:
    async with aiohttp.ClientSession() as session, session.request(method, url, ssl=context, **more) as answer:
        await answer.read()
        return answer.status


async def test_every_hop_is_mutual_and_the_action_arrives(mesh: Mesh) -> None:
    assert (await mesh.call(READ, NOTES)).status == 200
    node = mesh.gateway.registry.node("node-1")
    assert node.url.startswith("https://")
    for home in ("gateway", "node", "sidecar"):
        assert (mesh.home / home / "tls.key").stat().st_mode & 0o777 == 0o600
    assert (mesh.home / "gateway" / "ca.key").stat().st_mode & 0o777 == 0o600
    named = x509.load_pem_x509_certificate((mesh.home / "node" / "tls.pem").read_bytes())
    names = named.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["wimse://licet.local/node/node-1"]
    assert (named.not_valid_after_utc - named.not_valid_before_utc).total_seconds() < 2 * 86_400


async def test_plain_http_and_strangers_certificates_get_nowhere(mesh: Mesh, tmp_path: Path) -> None:
    with pytest.raises(aiohttp.ClientError):
        await ask(mesh.gateway_url.replace("https", "http") + "/livez", True)
    with pytest.raises(aiohttp.ClientConnectorError):
        await ask(mesh.gateway_url + "/livez", True)
    stranger = CertificateAuthority(tmp_path / "stranger", "licet.local")
    with pytest.raises(aiohttp.ClientConnectorError):
        await ask(mesh.gateway_url + "/livez", tls.client(stranger.path, "gateway"))
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.load_verify_locations(mesh.gateway_ca)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(aiohttp.ClientConnectorError):
        await ask(mesh.gateway_url + "/livez", old)


def showing(
    mesh: Mesh, authority: CertificateAuthority | None, subject: str, home: Path, role: tls.Role = "gateway"
) -> ssl.SSLContext:
    """A client that trusts the mesh's own, in this *role*, and shows a certificate for *subject*."""
    key = SecretKey.generate()
    assert mesh.gateway_ca is not None
    signer = authority or CertificateAuthority(mesh.home / "gateway", "licet.local")
    (home / "c.pem").write_bytes(signer.issue(subject, [], key.public.raw, mesh.sidecar.identity.clock.now()))
    (home / "c.key").write_bytes(key.pem)
    context = tls.client(mesh.gateway_ca, role)
    tls.show(context, home / "c.pem", home / "c.key")
    return context


async def test_a_workload_without_its_own_certificate_is_refused(mesh: Mesh, tmp_path: Path) -> None:
    """The signature is right, and the connection is somebody else's."""
    identity = mesh.sidecar.identity
    target = "/v1/approvals/apr_x/state"

    async def status(context: ssl.SSLContext) -> int:
        signed = identity._signature(mesh.gateway_url, "GET", target, {}, b"", None)
        return await ask(mesh.gateway_url + target, context, headers=signed)

    assert await status(tls.client(mesh.gateway_ca, "gateway")) == 401  # type: ignore[arg-type]
    other = showing(mesh, None, "wimse://licet.local/agent/other", tmp_path)
    assert await status(other) == 401
    own = showing(mesh, None, identity.subject, tmp_path)
    assert await status(own) == 404, "identified, and there is no such approval"
    stranger = CertificateAuthority(tmp_path / "stranger", "licet.local")
    with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
        await status(showing(mesh, stranger, identity.subject, tmp_path))


async def test_delegation_and_renewal_work_over_tls_beside_a_sidecar_and_without_one(
    mesh: Mesh, tmp_path: Path
) -> None:
    from licet.client import Credentials, delegate, enroll, narrow

    beside = Credentials.load(mesh.home / "sidecar", authority=mesh.gateway_ca)
    before = (mesh.home / "sidecar" / "tls.pem").read_bytes()
    root = await asyncio.to_thread(delegate, beside, mesh.gateway_url, {READ: {}})
    assert (mesh.home / "sidecar" / "tls.pem").read_bytes() == before, "the sidecar's own serves"
    new = {"name": "alone", "owner": "bob"}
    token = (await mesh.admin("POST", "/v1/agents", new)).json["enrolment_token"]
    alone = await asyncio.to_thread(enroll, mesh.gateway_url, token, tmp_path / "alone", mesh.gateway_ca)
    assert narrow(beside, root, alone.key.public, {READ: {}})
    assert await asyncio.to_thread(delegate, alone, mesh.gateway_url, {READ: {}})
    assert (tmp_path / "alone" / "tls.key").stat().st_mode & 0o777 == 0o600


async def test_only_the_gateway_brings_tickets_to_a_node(mesh: Mesh, tmp_path: Path) -> None:
    from tests.stories.test_stops import entitled

    headers, data = entitled(mesh, "demo")
    url = f"https://127.0.0.1:{mesh.node.port}/v1/execute"
    thief = showing(mesh, None, "wimse://licet.local/agent/demo", tmp_path, "node")
    assert await ask(url, thief, "POST", headers=headers, data=data) == 401
    assert await ask(url, tls.client(mesh.gateway_ca, "node"), "POST", headers=headers, data=data) == 401  # type: ignore[arg-type]
    gateway = showing(mesh, None, "wimse://licet.local/gateway/main", tmp_path, "node")
    assert await ask(url, gateway, "POST", headers=headers, data=data) == 200


async def test_a_workload_at_the_gateways_address_is_not_taken_for_the_gateway(mesh: Mesh, tmp_path: Path) -> None:
    """Its certificate is of the same authority and good for the same host; only the name in it is another."""
    from gateway.app import Gateway
    from gateway.config import GatewayConfig
    from licet.client import Api, Unavailable

    authority, key = CertificateAuthority(mesh.home / "gateway", "licet.local"), SecretKey.generate()
    for name, subject in (("thief", "wimse://licet.local/node/thief"), ("nobody", "https://licet.local/gateway/main")):
        certificate, secret = tmp_path / f"{name}.pem", tmp_path / f"{name}.key"
        issued = authority.issue(subject, ["127.0.0.1"], key.public.raw, mesh.sidecar.identity.clock.now())
        certificate.write_bytes(issued)
        secret.write_bytes(key.pem)
        config = GatewayConfig(
            home=tmp_path / name, port=0, segment_bytes=1 << 20, tls="files", tls_certificate=certificate,
            tls_key=secret, tls_authority=authority.path,
        )  # fmt: skip
        impostor = Gateway(config)
        await impostor.start()
        url = f"https://127.0.0.1:{impostor.port}"
        try:
            assert await ask(url + "/livez", tls.client(authority.path, "node")) == 200 or name == "nobody"
        except aiohttp.ClientConnectorError:
            assert name == "nobody"
        with pytest.raises(aiohttp.ClientConnectorError, match="expected a certificate of a gateway"):
            await ask(url + "/livez", tls.client(authority.path, "gateway"))
        with pytest.raises(Unavailable, match="expected a certificate of a gateway"):
            await asyncio.to_thread(Api(url, authority=authority.path).call, "GET", "/livez")
        await impostor.stop()
    real = Api(mesh.gateway_url, authority=authority.path)
    assert (await asyncio.to_thread(real.call, "GET", "/livez")).status == 200


async def test_certificates_are_renewed_while_everything_runs(mesh: Mesh) -> None:
    before = (mesh.home / "node" / "tls.pem").read_bytes()
    mesh.node.identity._certified -= 9 * 3600
    mesh.sidecar.identity._certified -= 9 * 3600
    async with asyncio.timeout(30):
        while (mesh.home / "node" / "tls.pem").read_bytes() == before:
            assert (await mesh.call(READ, NOTES)).status == 200
            await asyncio.sleep(0.05)
    assert mesh.gateway._tls is not None
    mesh.gateway._tls._renewed -= 9 * 3600
    mesh.gateway._tls.renew_when_due()
    assert (await mesh.call(READ, NOTES)).status == 200


async def shown(port: int) -> bytes:
    """The certificate that whoever connects sees."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    told: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return told


async def test_with_certificates_from_files(tmp_path: Path) -> None:
    from gateway.app import Gateway
    from gateway.config import GatewayConfig
    from sidecar.app import Sidecar
    from sidecar.config import SidecarConfig

    authority = CertificateAuthority(tmp_path, "licet.local")

    def files(name: str, subject: str) -> tuple[Path, Path]:
        key = SecretKey.generate()
        certificate, secret = tmp_path / f"{name}.pem", tmp_path / f"{name}.key"
        certificate.write_bytes(authority.issue(subject, ["127.0.0.1"], key.public.raw, SystemClock().now()))
        secret.write_bytes(key.pem)
        return certificate, secret

    from edge.clock import SystemClock

    certificate, key = files("gateway", "wimse://licet.local/gateway/main")
    gateway = Gateway(
        GatewayConfig(
            home=tmp_path / "gateway", port=0, segment_bytes=1 << 20, tls="files", tls_certificate=certificate,
            tls_key=key, tls_authority=authority.path,
        )
    )  # fmt: skip
    await gateway.start()
    url = f"https://127.0.0.1:{gateway.port}"
    operator = (tmp_path / "gateway" / "operator.token").read_text().strip()
    async with aiohttp.ClientSession() as session:
        asked = {"name": "demo", "owner": "ada"}
        headers = {"Authorization": f"Bearer {operator}"}
        async with session.post(
            f"{url}/v1/agents", json=asked, headers=headers, ssl=tls.client(authority.path, "gateway")
        ) as r:
            token = (await r.json())["enrolment_token"]
    certificate, key = files("demo", "wimse://licet.local/agent/demo")
    sidecar = Sidecar(
        SidecarConfig(
            home=tmp_path / "demo", port=0, segment_bytes=1 << 20, gateway_url=url, gateway_ca=authority.path,
            enrolment_token=token, tls_certificate=certificate, tls_key=key,
        )
    )  # fmt: skip
    await sidecar.start()
    try:
        async with asyncio.timeout(30):
            while sidecar.world.facts is None:
                await asyncio.sleep(0.02)
        assert sidecar.world.facts.agent.name == "demo"
        async with sidecar.identity.send("POST", "/v1/certificate", b'{"key":"AA"}', strong=True) as reply:
            assert b"come from files" in await reply.read()
        # Somebody renews the files, one after the other.
        before = await shown(gateway.port)
        files("spare", "wimse://licet.local/gateway/main")
        (tmp_path / "spare.pem").rename(tmp_path / "gateway.pem")
        await asyncio.sleep(1.5)
        assert await shown(gateway.port) == before
        (tmp_path / "spare.key").rename(tmp_path / "gateway.key")
        async with asyncio.timeout(30):
            while await shown(gateway.port) == before:
                await asyncio.sleep(0.1)
        assert await shown(gateway.port) == ssl.PEM_cert_to_DER_cert((tmp_path / "gateway.pem").read_text())
        mine = sidecar.identity._files
        assert mine is not None
        assert not mine.show_renewed()
        files("demo", "wimse://licet.local/agent/demo")
        assert mine.show_renewed()
    finally:
        await sidecar.stop()
        await gateway.stop()
