"""Who was away for longer than its token lives comes back by itself, if its key is still believed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from sidecar.enrolment import ENROLMENT, Enrolment
from tests.mesh import Mesh
from trust.identity import wit
from trust.reasons import Reason, Unverifiable

pytestmark = pytest.mark.slow


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
async def mesh(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Mesh]:
    async with Mesh(tmp_path, tls=request.param) as made:
        (made.sandbox / "notes.txt").write_text("hello")
        yield made


def over(mesh: Mesh, home: Path, seconds: int = 7200) -> None:
    """Its token ended so long ago."""
    path = home / ENROLMENT
    enrolment = msgspec.json.decode(path.read_bytes(), type=Enrolment)
    registry, now = mesh.gateway.registry, int(time.time()) - seconds
    workload = msgspec.structs.replace(registry._workload(enrolment.kind, enrolment.name), expires_at=now)  # type: ignore[arg-type]
    token = wit.issue(workload, now=now - wit.MAX_LIFE_S, token_id="wit_old", key=registry._key)
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(enrolment, wit=token)))


async def test_a_sidecar_and_a_node_that_were_off_for_hours_go_on(mesh: Mesh) -> None:
    for part in ("sidecar", "node"):
        await mesh.stop(part)
        over(mesh, mesh.home / part)
    await mesh.start_node()
    await mesh.start_sidecar()
    async with asyncio.timeout(30):
        while (await mesh.call("workbench/read_file", {"path": "notes.txt"})).status != 200:
            await asyncio.sleep(0.1)
    assert mesh.sidecar.identity.expires_at() > time.time() + 60


async def test_for_nothing_else_is_a_token_good_that_is_over(mesh: Mesh) -> None:
    identity = mesh.sidecar.identity
    over(mesh, mesh.home / "sidecar")
    identity.enrolment = msgspec.json.decode((mesh.home / "sidecar" / ENROLMENT).read_bytes(), type=Enrolment)
    for method, path in (("POST", "/v1/session"), ("GET", "/v1/bundle"), ("POST", "/v1/keys"), ("GET", "/v1/feed")):
        async with identity.send(method, path, strong=True) as reply:
            assert reply.status == 401
    async with identity.send("POST", "/v1/wit", strong=True) as reply:
        assert reply.status == 200


async def test_a_key_that_is_not_believed_gets_no_other_token(mesh: Mesh) -> None:
    identity = mesh.sidecar.identity
    body = {"what": "key", "id": identity.key.public.thumbprint, "reason": "stolen"}
    assert (await mesh.admin("POST", "/v1/revocations", body)).status == 201
    over(mesh, mesh.home / "sidecar")
    identity.enrolment = msgspec.json.decode((mesh.home / "sidecar" / ENROLMENT).read_bytes(), type=Enrolment)
    with pytest.raises(Unverifiable) as refused:
        await identity.renew_when_due()
    assert refused.value.reason is Reason.UNAUTHENTICATED
    assert "revoked" in refused.value.detail
