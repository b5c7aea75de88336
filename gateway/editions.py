"""What an edition of the policies is made of: those of the mesh, and of a namespace its own. Plain and pure."""

from __future__ import annotations

from typing import Final

import msgspec

from trust.policy import bundle, cases, confined
from trust.policy.bundle import BundleRejected, Compiled, Content, Sealed, Sources
from trust.policy.inventory import Inventory
from trust.policy.positions import statements

PREFIX: Final = ":"
NO_SOURCES: Final = Sources("", {}, {})
MAX_OWN: Final = 500
"""Policies of one namespace: every activation of the mesh reads those of all."""
MAX_OWN_CHARACTERS: Final = 256 << 10


class Draft(msgspec.Struct, frozen=True):
    """What an edition is to be made of: the policies of the *mesh*, and of a namespace its *own*, or those that it has
    active (``like``); ``lost``: it has some, and they cannot be read. ``tried``: its cases have to hold."""

    namespace: str
    version: int
    issued_at: int
    not_after: int
    mesh: Sources
    own: Sources | None
    like: Compiled | None
    inventory: Inventory
    servers: list[str]
    lost: bool = False
    tried: bool = False


class Prepared(msgspec.Struct, frozen=True):
    """A bundle that could be active, unless its cases ``failed``."""

    namespace: str
    content: Content
    compiled: Compiled
    failed: BundleRejected | None = None


def prepare(draft: Draft) -> Prepared | BundleRejected:
    """Merged, confined, read, validated and compiled. Plain and pure, for a thread: it may take seconds."""
    try:
        sources = draft.mesh
        if draft.namespace:
            own = draft.own
            if own is None and draft.lost:
                raise BundleRejected([], "its own policies cannot be read here")
            if own is None:
                own = NO_SOURCES if draft.like is None else own_of(draft.like.content.sources, draft.namespace)
            sources = merged(draft.namespace, own, draft.mesh, draft.servers)
        content = Content(draft.version, draft.issued_at, draft.not_after, sources, draft.inventory)
        before = draft.like
        if before is not None and (before.content.sources, before.inventory) == (sources, draft.inventory):
            compiled = before.dated(content)
        else:
            compiled = bundle.compile_bundle(content)
        if draft.namespace and (free := confined.unconfined(compiled.read, prefix(draft.namespace), draft.servers)):
            told = f"it cannot be read without doubt what {', '.join(free)} permits; write it plainly"
            raise BundleRejected([], told)
    except BundleRejected as bad:
        return bad
    failed = None
    try:
        if draft.tried:
            cases.require(compiled)
    except BundleRejected as bad:
        failed = bad
    return Prepared(draft.namespace, content, compiled, failed)


def require_bounded(sources: Sources, namespace: str) -> None:
    """Before anything of it is read."""
    if not namespace:
        return
    size = sum(map(len, sources.policies.values()))
    if size > MAX_OWN_CHARACTERS:
        raise BundleRejected([], f"its policies have {size} characters; a namespace may have {MAX_OWN_CHARACTERS}")
    count = sum(1 for text in sources.policies.values() for _ in statements(text))
    if count > MAX_OWN:
        raise BundleRejected([], f"these are {count} policies; a namespace may have {MAX_OWN}")


def prefix(namespace: str) -> str:
    """Before the names of a namespace's files, beside those of the mesh, of which none begins so."""
    return f"{PREFIX}{namespace}/"


def merged(namespace: str, own: Sources, mesh: Sources, servers: list[str]) -> Sources:
    """The policies of the mesh, and those of a namespace confined to its own *servers*."""
    before = prefix(namespace)
    for file, text in own.policies.items():
        if confined.MARK in text:
            raise BundleRejected(
                [], f'{file}: "{confined.MARK}" stands where Licet confined a policy, and nowhere else'
            )
    if own.schema.strip() not in ("", mesh.schema.strip()):
        raise BundleRejected([], "schema.cedarschema: the schema is that of the mesh; leave the file out")
    policies = {before + file: confined.confine(text, servers) for file, text in own.policies.items()}
    expected = Inventory({**own.expected.servers, **mesh.expected.servers})
    return Sources(mesh.schema, {**mesh.policies, **policies}, own.cases, expected)


def of_the_mesh(sealed: Sealed) -> dict[str, str]:
    """The policies of the mesh in an edition."""
    return {name: text for name, text in sealed.content.sources.policies.items() if not name.startswith(PREFIX)}


def own_of(sources: Sources, namespace: str) -> Sources:
    """What a namespace handed in, of what :func:`_merged` made of it."""
    if not namespace:
        return sources
    before = prefix(namespace)
    own = {
        file.removeprefix(before): confined.released(text)
        for file, text in sources.policies.items()
        if file.startswith(before)
    }
    return Sources("", own, sources.cases, sources.expected)


def permits_elsewhere(sources: Sources, namespace: str, servers: list[str]) -> list[str]:
    """The servers on which an edition of *namespace* permits by its own policies, and which are not its own."""
    before = prefix(namespace)
    own = [text for file, text in sources.policies.items() if file.startswith(before)]
    return sorted(set().union(*map(confined.confined_to, own)) - set(servers))
