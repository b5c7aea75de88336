"""What the security team asks: entries by what they say, one entry with its proof, a run across all logs."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated, Any, Final
from urllib.parse import parse_qs

import msgspec

from edge.http import Incoming, Response, StreamResponse, json_response, relay
from gateway import exporting
from gateway.api.access import Access, Services, decode
from gateway.ledgers import Ledgers
from gateway.questions import MAX_ROWS, Filter
from gateway.state import Person
from trust.ledger import entries
from trust.ledger.merkle import TILE_WIDTH
from trust.reasons import Reason, Unverifiable, visible

FACETS: Final = ("kind", "decision", "reason", "agent", "server", "tool", "node")


class _Sql(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sql: str


class _Prune(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    before_us: Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class _Subject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``subject``: a :func:`trust.personal.subject_id`; a name would stand in logs of its own."""

    subject: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class _Erase(_Subject, frozen=True, forbid_unknown_fields=True):
    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=500)]


class _Renew(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    origin: str
    reason: str
    pruned: Annotated[int, msgspec.Meta(ge=0, le=10**15, multiple_of=TILE_WIDTH)] = 0


class Ledger:
    """Routes for people who may read the record. That they read it is recorded too."""

    def __init__(self, services: Services) -> None:
        self._s = services

    def add_to(self, access: Access) -> None:
        person = access.person
        person("GET", "/v1/ledger/entries", self._entries, "ledger.read")
        person("GET", "/v1/ledger/facets", self._facets, "ledger.read")
        person("GET", "/v1/ledger/entry", self._entry, "ledger.read")
        person("GET", "/v1/ledger/logs", self._logs, "ledger.read", "mesh")
        person("GET", "/v1/ledger/gaps", self._gaps, "ledger.read", "mesh")
        person("GET", "/v1/ledger/export", self._export, "ledger.export")
        person("GET", "/v1/runs/{run}/evidence", self._evidence, "ledger.export")
        person("POST", "/v1/ledger/sql", self._sql, "ledger.sql", "mesh")
        person("GET", "/v1/runs/{run}/timeline", self._timeline, "ledger.read")
        person("POST", "/v1/ledger/prune", self._prune, "ledger.prune", "mesh")
        person("POST", "/v1/ledger/renew", self._renew, "ledger.renew", "mesh")
        person("POST", "/v1/ledger/close", self._close, "ledger.renew", "mesh")
        person("POST", "/v1/subjects/find", self._find_subject, "subjects.find", "mesh")
        person("POST", "/v1/subjects/erase", self._erase, "subjects.erase", "mesh")

    async def _entries(self, incoming: Incoming, person: Person) -> Response:
        page = await self._s.ledgers.find(asked_in(incoming, person), person.name)
        return json_response(msgspec.to_builtins(page))

    async def _facets(self, incoming: Incoming, person: Person) -> Response:
        return json_response(await self._s.ledgers.index.facets(asked_in(incoming, person), FACETS))

    async def _timeline(self, incoming: Incoming, person: Person, run: str) -> Response:
        """Everything of one run, the oldest first; what nodes and gateway know by the action is found through it."""
        after = parse_qs(incoming.query).get("after", [""])[0]
        page = await self._s.ledgers.run(run, person, after)
        return json_response(msgspec.to_builtins(page))

    async def _evidence(self, incoming: Incoming, person: Person, run: str) -> Response:
        personal = parse_qs(incoming.query).get("personal", [""])[0] == "true"
        return evidence_file(run, await self._s.packer.pack(run, person, personal=personal))

    async def _entry(self, incoming: Incoming, person: Person) -> Response:
        asked = {name: values[0] for name, values in parse_qs(incoming.query).items()}
        origin, index = asked.get("origin", ""), asked.get("index", "")
        if not index.isdecimal() or len(index) > 12:
            raise Unverifiable(Reason.MALFORMED_REQUEST, f"index {visible(index)}: expected a number")
        data = await self._s.ledgers.read(origin, int(index), person)
        deed = getattr(entries.decode(data).entry, "deed", None)
        opened = self._s.ledgers.opened(deed) if deed is not None else None
        return json_response(
            {
                "arguments": opened.arguments if opened is not None and not opened.missing else None,
                "missing": opened.missing if opened is not None else "",
                "entry": base64.b64encode(data).decode("ascii"),
                "proof": self._s.ledgers.sealed(origin).proof(int(index)).decode(),
                "vkey": self._s.ledgers.vkey(origin),
                "witness": self._s.witness.vkey,
            }
        )

    async def _logs(self, _incoming: Incoming, _person: Person) -> Response:
        logs = [
            {
                "origin": log.origin,
                "sealed": log.sealed,
                "indexed": log.indexed,
                "sealed_ms": log.sealed_ms,
                "witnessed_us": log.seen_us,
                "wrong": log.record.wrong if log.record is not None else "",
                "closed": log.closed,
            }
            for log in await self._s.ledgers.state()
        ]
        return json_response({"logs": logs, "witness": self._s.witness.vkey})

    async def _gaps(self, incoming: Incoming, person: Person) -> Response:
        since = asked_in(incoming, person).since_us
        return json_response({"gaps": msgspec.to_builtins(await self._s.ledgers.gaps(since, person.name))})

    async def _sql(self, incoming: Incoming, person: Person) -> Response:
        return json_response(msgspec.to_builtins(await self._s.ledgers.sql(decode(incoming, _Sql).sql, person.name)))

    async def _export(self, incoming: Incoming, person: Person) -> StreamResponse:
        """Everything that answers the question, as a file."""
        fields = parse_qs(incoming.query, keep_blank_values=True)
        wanted = exporting.form(fields.pop("format", [""])[0])
        return await export(self._s.ledgers, incoming, asked_of(fields, person), wanted, person.name)

    async def _prune(self, incoming: Incoming, person: Person) -> Response:
        asked = decode(incoming, _Prune)
        return json_response({"first_kept": await self._s.ledgers.prune(asked.before_us, person.name)})

    async def _find_subject(self, incoming: Incoming, person: Person) -> Response:
        """By which key what is personal of a subject is sealed."""
        known = self._s.subjects.known(decode(incoming, _Subject).subject)
        key = known.id if known is not None else ""
        await self._s.records.note(entries.Query(person.name, "subject", key, int(known is not None)))
        if known is None:
            raise Unverifiable(Reason.NOT_FOUND, "nothing personal is kept of this subject")
        return json_response({"key": key})

    async def _erase(self, incoming: Incoming, person: Person) -> Response:
        """Destroy a subject's key; the sidecars hear of it, and what waits for a person because of it is over."""
        asked = decode(incoming, _Erase)
        key = await self._s.subjects.erase(asked.subject, person.name, asked.reason)
        await self._s.desk.cancel_stopped()
        return json_response({"erased": key})

    async def _renew(self, incoming: Incoming, person: Person) -> Response:
        asked = decode(incoming, _Renew)
        await self._s.witness.renew(asked.origin, person.name, asked.reason, asked.pruned)
        return json_response({"renewed": asked.origin}, 201)

    async def _close(self, incoming: Incoming, person: Person) -> Response:
        asked = decode(incoming, _Renew)
        await self._s.witness.close(asked.origin, person.name, asked.reason)
        return json_response({"closed": asked.origin}, 201)


def evidence_file(run: str, data: bytes) -> Response:
    """A pack, to be kept."""
    headers = {
        "Content-Type": "application/zip",
        "Content-Disposition": f'attachment; filename="evidence-{run}.zip"',
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
    }
    return Response(body=data, headers=headers)


async def export(
    ledgers: Ledgers, incoming: Incoming, asked: Filter, wanted: exporting.Form, by: str
) -> StreamResponse:
    """The file; it is recorded before it begins."""
    await ledgers.exporting(asked, wanted, by)
    headers = {
        "Content-Type": exporting.TYPES[wanted],
        "Content-Disposition": f'attachment; filename="licet-ledger.{exporting.SUFFIXES[wanted]}"',
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
    }
    pieces = exporting.Exporter(ledgers, asked, wanted).chunks()
    first = await anext(pieces, b"")  # what cannot be made is refused before anything is answered
    response, _ = await relay(incoming, _begun(first, pieces), 200, headers)
    return response


async def _begun(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    try:
        if first:
            yield first
        async for piece in rest:
            yield piece
    finally:
        await rest.aclose()


_NUMBERS: Final = frozenset({"since_us", "until_us", "limit"})


def asked_in(incoming: Incoming, person: Person) -> Filter:
    """The filter in a query, or :class:`Unverifiable` that says what is wrong with it."""
    return asked_of(parse_qs(incoming.query, keep_blank_values=True), person)


def asked_of(fields: dict[str, list[str]], person: Person) -> Filter:
    """The filter in the fields of a query; who is of a namespace asks about its agents."""
    given: dict[str, Any] = {}
    for name, values in fields.items():
        if name not in Filter.__struct_fields__ or len(values) > 1:
            known = ", ".join(Filter.__struct_fields__)
            raise Unverifiable(
                Reason.MALFORMED_REQUEST, f"{visible(name)}: expected each of these at most once: {known}"
            )
        if name in _NUMBERS:
            if not (values[0].isdecimal() and len(values[0]) < 18):
                raise Unverifiable(Reason.MALFORMED_REQUEST, f"{name}: expected a number, found {visible(values[0])}")
            given[name] = int(values[0])
        else:
            given[name] = values[0] == "true" if name == "oldest_first" else values[0]
    if not 1 <= given.get("limit", 1) <= MAX_ROWS:
        raise Unverifiable(Reason.MALFORMED_REQUEST, f"limit: expected 1 to {MAX_ROWS}")
    return Filter(**given | ({"namespace": person.namespace} if person.namespace else {}))
