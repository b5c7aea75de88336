"""Bundles: policies, schema, inventory, entities and cases as one signed thing with a version that only rises.

On the wire and on disk a bundle is two parts: one line with the seal (a JWS over digest, version and times),
then the canonical bytes of the content. The digest names the bundle in every ledger entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import msgspec

from trust.canonical import JsonObject, jcs, read_object, sha256_hex
from trust.identity import jws
from trust.identity.keys import PublicKey, SecretKey
from trust.personal import Marked, marks_of
from trust.policy import cedar, schema
from trust.policy.arguments import RecordOf, shape_of
from trust.policy.cedar import pst
from trust.policy.engine import Engine
from trust.policy.inventory import Inventory, Manifest, Tool
from trust.policy.lint import Problem, Read, read_policies
from trust.reasons import Reason, Unverifiable

TYP: Final = "licet-bundle+jwt"
MAX_BUNDLE_BYTES: Final = 64 << 20
SCHEMA: Final = "schema.cedarschema"


class BundleRejected(Exception):
    """A bundle that must not become active, and everything that is wrong with it."""

    def __init__(self, problems: tuple[Problem, ...] | list[Problem], summary: str = "") -> None:
        self.problems = tuple(problems)
        super().__init__(summary or "\n".join(str(p) for p in problems))


class Sources(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an author hands in: file name → text. ``expected`` is the inventory that the policies and cases
    were written against; servers that are not admitted yet are typed after it."""

    schema: str
    policies: dict[str, str]
    cases: dict[str, str]
    expected: Inventory = Inventory({})


class Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that decides. ``issued_at`` and ``not_after`` are Unix seconds."""

    version: int
    issued_at: int
    not_after: int
    sources: Sources
    inventory: Inventory

    @property
    def typed_inventory(self) -> Inventory:
        """The inventory that the Cedar schema is generated from."""
        return Inventory({**self.sources.expected.servers, **self.inventory.servers})


class _Seal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    digest: str
    version: int
    issued_at: int
    not_after: int


@dataclass(frozen=True, slots=True)
class Sealed:
    """A bundle as bytes, with its digest."""

    digest: str
    content: Content
    data: bytes


def content_bytes(content: Content) -> bytes:
    return jcs(msgspec.to_builtins(content))


def seal(content: Content, key: SecretKey) -> Sealed:
    """*content*, signed."""
    data = content_bytes(content)
    statement = _Seal(sha256_hex(data), content.version, content.issued_at, content.not_after)
    token = jws.seal(msgspec.json.encode(statement), TYP, key)
    return Sealed(statement.digest, content, token.encode("ascii") + b"\n" + data)


def digest_of(data: bytes) -> str:
    """Under which digest a sealed bundle would have been sealed; whether it was is :func:`open_bundle`'s to say."""
    return sha256_hex(data.partition(b"\n")[2])


def open_bundle(data: bytes, key: PublicKey) -> Sealed:
    """Inverse of :func:`seal`, or :class:`Unverifiable`. Whether the version rises is the caller's to check."""
    token, newline, body = data.partition(b"\n")
    if not newline or not token.isascii():
        raise _refuse("expected a line with a seal, then the content")
    try:
        statement = msgspec.json.decode(jws.open_sealed(token.decode("ascii"), TYP, key), type=_Seal)
        if sha256_hex(body) != statement.digest:
            raise _refuse("the content is not what was signed")
        content = msgspec.convert(read_object(body), Content)
    except (msgspec.DecodeError, msgspec.ValidationError) as bad:
        raise _refuse(str(bad)) from None
    if (content.version, content.issued_at, content.not_after) != (
        statement.version,
        statement.issued_at,
        statement.not_after,
    ):
        raise _refuse("seal and content disagree")
    return Sealed(statement.digest, content, data)


def _refuse(detail: str) -> Unverifiable:
    return Unverifiable(Reason.NO_BUNDLE, f"bundle: {detail}")


class Compiled:
    """A bundle that is ready to answer."""

    def __init__(self, content: Content, digest: str, read: Read, schema_text: str) -> None:
        self.content = content
        self.digest = digest
        self.read = read
        self.schema_text = schema_text
        self.inventory = content.inventory
        schema = read.schema if read.schema is not None else cedar.parse_schema(schema_text)
        self.engine = Engine(read.nodes, schema, _entities(content))
        self._shapes: dict[str, RecordOf] = {}
        self._marks: dict[tuple[str, Manifest], Marked] = {}

    def shape(self, tool: Tool) -> RecordOf:
        """The shape of a tool's arguments."""
        found = self._shapes.get(tool.digest)
        if found is None:
            found = self._shapes[tool.digest] = shape_of(tool.input_schema)
        return found

    def personal(self, tool: Tool) -> Marked:
        """Which of a tool's arguments are personal."""
        known = (tool.digest, tool.manifest)
        found = self._marks.get(known)
        if found is None:
            found = self._marks[known] = marks_of(tool)
        return found

    @cached_property
    def any_personal(self) -> bool:
        """Whether anything that any tool takes is."""
        return any(
            self.personal(tool).anything for one in self.inventory.servers.values() for tool in one.tools.values()
        )

    def dated(self, content: Content, digest: str = "") -> Compiled:
        """The same policies over the same inventory, as *content* has them."""
        made = copy(self)
        made.content, made.digest, made.inventory = content, digest, content.inventory
        return made

    def without(self, policy: str) -> Compiled:
        """The same bundle with one policy dropped, to see who would miss it."""
        nodes = self.read.nodes
        kept = pst.PolicySet(
            {key: node for key, node in nodes.templates.items() if key != policy},
            {key: node for key, node in nodes.static_policies.items() if key != policy},
            nodes.template_links,
        )
        return Compiled(self.content, self.digest, replace(self.read, nodes=kept), self.schema_text)


def compile_bundle(content: Content, digest: str = "", *, validated: bool = False) -> Compiled:
    """*content* ready to answer, or :class:`BundleRejected` with every error. *validated*: it was, by who sealed it.

    The cases are not run here; see :mod:`trust.policy.cases`.
    """
    schema_text = schema.complete(content.sources.schema, content.typed_inventory)
    read = read_policies(content.sources.policies, schema_text, validated=validated)
    if read.errors:
        raise BundleRejected(read.errors)
    try:
        return Compiled(content, digest, read, schema_text)
    except cedar.CedarError as bad:
        raise BundleRejected([Problem("error", "inventory", 1, 1, str(bad))]) from None


def _entities(content: Content) -> list[dict[str, Any]]:
    return [
        {
            "uid": {"type": "Server", "id": server.name},
            "attrs": {"labels": list(server.labels)},
            "parents": [{"type": "Zone", "id": server.zone}],
        }
        for server in content.typed_inventory.servers.values()
    ]


def sources_from_files(files: Mapping[str, str]) -> Sources:
    """An author's directory (relative path → text) as :class:`Sources`, or :class:`BundleRejected`."""
    if "schema.cedarschema" not in files:
        raise BundleRejected(
            [Problem("error", SCHEMA, 1, 1, "the file is missing", "policies of a namespace: --namespace NAME")]
        )
    expected: JsonObject = {"servers": {}}
    try:
        if "inventory.json" in files:
            expected = read_object(files["inventory.json"].encode())
        inventory = msgspec.convert(expected, Inventory)
    except (Unverifiable, msgspec.ValidationError) as bad:
        raise BundleRejected([Problem("error", "inventory.json", 1, 1, str(bad))]) from None
    return Sources(
        schema=files["schema.cedarschema"],
        policies={name: text for name, text in files.items() if name.endswith(".cedar")},
        cases={name: text for name, text in files.items() if name.startswith("cases/")},
        expected=inventory,
    )
