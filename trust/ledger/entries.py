"""Ledger entries: what is written down, kind by kind, and the two functions between entry and bytes.

One entry is the exact bytes of one JSON object with two members: ``stamp`` (where and when it was written)
and ``entry`` (what happened; its member ``kind`` names one of the classes below). All fields are inside the
hash. Unknown fields are refused on reading, so that nothing can ride along unseen.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

from trust.reasons import Reason, Unverifiable

MAX_ENTRY_BYTES: Final = 60_000
"""Below the 65,535 that a C2SP entry bundle can carry, with room for the stamp."""

# msgspec cannot read the recursive alias in trust.canonical; that these hold JSON it checks itself.
JsonObject = dict[str, Any]

Decision = Literal["allow", "deny", "hold"]
Microseconds = Annotated[int, msgspec.Meta(ge=0, le=253_402_300_799_000_000)]
"""Since 1970, to the end of the year 9999: what every program can write as a date."""
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Step = Annotated[int, msgspec.Meta(ge=0, le=10)]


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", omit_defaults=True):
    """Base of all kinds; fields that hold their default are left out of the bytes."""


class Stamp(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """``wall_us``: Unix time in microseconds; ``mono_ns``: the process's monotonic clock. ``turn``: the place among all
    changes of several gateways that share their state, from 1; 0 for whatever is no such change."""

    origin: str
    seq: Count
    boot: str
    wall_us: Microseconds
    mono_ns: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    turn: Count = 0


class SealedArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Personal arguments, encrypted under the subject's key ``key`` (:mod:`trust.personal`; empty: nobody has it).
    ``box`` (base64url) holds them; if the arguments are too large for an entry ``blob``, the SHA-256 of what is kept
    beside the log, holds them all."""

    key: str = ""
    box: str = ""
    blob: str = ""


class Deed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What somebody asked to do. ``arguments`` is left out when too large; its digest never is. If some of them are
    personal, those are in ``sealed`` only, and the three digests are salted."""

    action_id: str
    decision_id: str
    run: str
    agent: str
    principal: str
    authn: str
    protocol: str
    server: str
    tool: str
    arguments_sha256: str
    payload_sha256: str
    action_digest: str
    arguments: JsonObject | None = None
    sealed: SealedArguments | None = None
    authority: list[str] = []
    idempotency_key: str = ""
    trace_id: str = ""
    span_id: str = ""


class Judgement(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How it was decided: enough to decide it again with the bundle that ``bundle`` names (SHA-256).

    ``facts`` is the complete Cedar context except ``args``, which :class:`Deed` holds.
    """

    bundle: str
    decision: Decision
    facts: JsonObject
    policies: list[str] = []
    errors: list[str] = []
    shadow: list[str] = []


class Start(_Entry, frozen=True, tag="start"):
    """A process opened its ledger: version, and how many entries it found."""

    version: str
    found: int


class End(_Entry, frozen=True, tag="end"):
    """A process closed its ledger in good order: it had nothing more to say."""


class Intent(_Entry, frozen=True, tag="intent"):
    """The action is permitted and about to leave; ``labels`` are what it will bring into its run."""

    deed: Deed
    judgement: Judgement
    step: Step = 6
    approval: str | None = None
    labels: list[str] = []
    cents: Count = 0


class Refusal(_Entry, frozen=True, tag="refusal"):
    """Something was refused at ``step``. Deed and judgement are there as far as they were known."""

    step: Step
    reason: str
    detail: str
    decision_id: str
    deed: Deed | None = None
    judgement: Judgement | None = None
    caller: str = ""
    approval: str | None = None


class Hold(_Entry, frozen=True, tag="hold"):
    """The action waits for a person; ``terms`` says for whom."""

    deed: Deed
    judgement: Judgement
    terms: JsonObject
    step: Step = 7


class Dispatch(_Entry, frozen=True, tag="dispatch"):
    """The gateway sends, or a node executes, one permitted action. ``trace``: how its node was chosen, which is of
    ``node_kind`` and whose data is at ``data_locality``; ``request_bytes``: how large it is, unless it is personal."""

    action_id: str
    decision_id: str
    run: str
    agent: str
    principal: str
    server: str
    tool: str
    node: str
    payload_sha256: str
    action_digest: str
    intent: str
    ticket: str
    attempt: Annotated[int, msgspec.Meta(ge=1, le=100)] = 1
    step: Step = 8
    authn: str = ""
    approval: str | None = None
    authority: list[str] = []
    trace: JsonObject | None = None
    node_kind: str = ""
    data_locality: str = ""
    request_bytes: Count | None = None
    idempotency_key: str = ""


class Used(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a node measured of one action: how long it took there, and what its tool used; None: nobody measured."""

    node_us: Count | None = None
    cpu_us: Count | None = None
    memory_bytes: Count | None = None
    gpu_us: Count | None = None
    tokens_in: Count | None = None
    tokens_out: Count | None = None


class Outcome(_Entry, frozen=True, tag="outcome"):
    """How a permitted action ended. ``unknown``: it left, and nobody can say; ``abandoned``: another attempt was
    faster. ``agent`` and ``risk`` (of the tool, 0 to 3) stand in the gateway's word for it, which is evidence for
    standing, unless it was ``at_home``: on a server that the agent's own namespace runs."""

    action_id: str
    decision_id: str
    run: str
    status: Literal["done", "tool_error", "refused", "failed", "unknown", "abandoned"]
    attempt: Annotated[int, msgspec.Meta(ge=1, le=100)] = 1
    step: Step = 10
    reason: str = ""
    detail: str = ""
    node: str = ""
    upstream_status: Count = 0
    duration_us: Count = 0
    response_sha256: str = ""
    response_bytes: Count = 0
    agent: str = ""
    risk: Count = 0
    used: Used | None = None
    at_home: bool = False


class Scope(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How far a yes goes: this ``once``; these exact arguments for so many ``uses``, this one included; or this
    ``tool`` with whatever arguments; the latter two in the same run and for so many ``minutes``."""

    kind: Literal["once", "uses", "tool"] = "once"
    uses: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0
    minutes: Annotated[int, msgspec.Meta(ge=0, le=480)] = 0


ONCE: Final = Scope()


class Assertion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a passkey signed (WebAuthn): ``signature`` over ``authenticator_data`` and the hash of ``client_data``. All
    in base64url."""

    credential: str
    client_data: str
    authenticator_data: str
    signature: str


class Approval(_Entry, frozen=True, tag="approval"):
    """One step of one approval.

    ``requested`` (``request``: the complete stored request; ``presented``: what people are shown of it, by its SHA-256;
    ``under``: the approval whose scope covers it), ``asked_again``, ``viewed``, ``vote``, ``edited`` (another
    ``request``, and so another digest; votes of before count no more), ``approved``, ``denied`` (``block``: policies
    that ask nobody for the rest of the run), ``claimed``, ``expired``, ``cancelled``, ``reminded``, ``escalated`` (to
    ``groups``), ``revoked`` (what is left of its scope).

    A vote is ``by`` somebody, in the ``seat`` of whoever's it is (another's, for a deputy), for what was ``presented``;
    ``hushed``: its reason is not for the agent; ``signed``: by whose passkey, if the request asks for that.
    """

    event: Literal[
        "requested",
        "asked_again",
        "viewed",
        "vote",
        "edited",
        "approved",
        "denied",
        "claimed",
        "expired",
        "cancelled",
        "reminded",
        "escalated",
        "revoked",
    ]
    approval: str
    by: str = ""
    decision: str = ""
    reason: str = ""
    request: JsonObject | None = None
    action_digest: str = ""
    claim: str = ""
    presented: str = ""
    under: str = ""
    seat: str = ""
    hushed: bool = False
    scope: Scope = ONCE
    block: list[str] = []
    groups: list[str] = []
    signed: Assertion | None = None


class Deputy(_Entry, frozen=True, tag="deputy"):
    """``deputy`` may vote in the seat of ``person`` from ``since_us`` until ``until_us`` (Unix microseconds), or not
    any more (``ended``)."""

    event: Literal["named", "ended"]
    person: str
    deputy: str
    by: str
    since_us: Microseconds = 0
    until_us: Microseconds = 0


class Bundle(_Entry, frozen=True, tag="bundle"):
    """A policy bundle was activated, rolled back to or refused; for the agents of one ``namespace``, or (empty) for
    those of none. ``renewed``: with the policies of before, so it is none to go back behind. ``withdrawn``: that
    namespace could not follow the mesh, and nothing is decided there until it can."""

    event: Literal["activated", "rolled_back", "refused", "loaded", "withdrawn"]
    version: int
    digest: str
    by: str = ""
    reason: str = ""
    not_after: int = 0
    namespace: str = ""
    renewed: bool = False


class Agent(_Entry, frozen=True, tag="agent"):
    """An agent was registered; a key was bound to it with a one-time token (``enrolled``) or by the key before
    (``rotated``, which goes on until ``until_us``, Unix microseconds); somebody asked for another key
    (``rotate``), made another token (``token``), or a key came to its end (``key_ended``)."""

    event: Literal["registered", "enrolled", "rotate", "rotated", "token", "key_ended"]
    agent: str
    by: str
    until_us: int = 0
    name: str = ""
    did: str = ""
    owner: str = ""
    purpose: str = ""
    environment: str = ""
    teams: list[str] = []
    attested: bool = False
    via: str = ""
    key: str = ""
    token_sha256: str = ""
    namespace: str = ""


class Node(_Entry, frozen=True, tag="node"):
    """A node was registered, enrolled, joined (with a new lease ``epoch``; ``claims``: what it says of itself), or was
    put into another ``state``; a ``capability`` of it was ``proved`` (``level``, until ``until_us``, Unix
    microseconds), ``suspended`` or ``restored``. ``reference``: what it is called where it is managed."""

    event: Literal["registered", "enrolled", "joined", "state", "proved", "suspended", "restored"]
    node: str
    by: str
    url: str = ""
    node_kind: str = ""
    zone: str = ""
    capabilities: JsonObject = {}
    weight: float = 1.0
    slots: int = 0
    epoch: int = 0
    state: str = ""
    key: str = ""
    token_sha256: str = ""
    servers: list[str] = []
    claims: JsonObject = {}
    capability: str = ""
    level: str = ""
    until_us: Microseconds = 0
    reason: str = ""
    reference: str = ""
    namespace: str = ""


class Session(_Entry, frozen=True, tag="session"):
    """A workload opened a session. ``base`` and ``signature`` (base64url) are those of its strong request: a MAC
    proves nothing to third parties, so this is what its later requests are traced to. ``key``: raw, base64url."""

    session: str
    subject: str
    key: str
    base: str
    signature: str
    expires_at: int


class Server(_Entry, frozen=True, tag="server"):
    """A server was seen for the first time (``admitted``), a node said what it offers of it, or a person accepted an
    offer, or ``retired`` the server: its name is free again. ``offer`` is the SHA-256 of the inventory, which is kept
    beside the log; ``tools`` are those that changed."""

    event: Literal["admitted", "offered", "accepted", "retired"]
    server: str
    by: str
    offer: str
    node: str = ""
    tools: list[str] = []


class Person(_Entry, frozen=True, tag="person"):
    """A person (or the program that set the mesh up) was given a token, roles and teams, or another ``login`` (how the
    issuer of single sign-on calls them)."""

    event: Literal["registered", "login", "removed"]
    person: str
    by: str
    roles: list[str] = []
    teams: list[str] = []
    token_sha256: str = ""
    login: str = ""
    namespace: str = ""


class Passkey(_Entry, frozen=True, tag="passkey"):
    """A person's passkey: its ``credential`` id and public ``key`` (COSE), both base64url, at the relying ``party``;
    ``count``: how often it has signed, if it counts."""

    event: Literal["added", "removed"]
    person: str
    credential: str
    by: str
    key: str = ""
    party: str = ""
    name: str = ""
    count: Count = 0


class SignIn(_Entry, frozen=True, tag="signin"):
    """A person opened or ended a visit to the console. ``visit``: SHA-256 of the secret in its cookie; ``how``: what
    proved who it is (``credential``: by which passkey, and its new ``count``); ``expires_at``: Unix seconds."""

    event: Literal["signed_in", "signed_out"]
    person: str
    visit: str
    how: str = ""
    expires_at: int = 0
    credential: str = ""
    count: Count = 0


class SavedQuery(_Entry, frozen=True, tag="saved_query"):
    """A question to the ledger was kept under a name for everybody who may ask; ``asked``: the console's query."""

    event: Literal["saved", "removed"]
    name: str
    by: str
    asked: str = ""


class Kill(_Entry, frozen=True, tag="kill"):
    """Everything of ``target`` (an agent, ``team:NAME`` or ``all``) stops (``lifted``: may go on)."""

    event: Literal["killed", "lifted"]
    target: str
    by: str
    reason: str


class Revocation(_Entry, frozen=True, tag="revocation"):
    """``id`` is no longer believed, for good: an agent by name, a key by thumbprint, a token of a delegation chain
    by its hash, a root by its ``rid``, a session by its id, a principal by name."""

    what: Literal["agent", "key", "token", "root", "session", "principal"]
    id: str
    by: str
    reason: str


class Delegation(_Entry, frozen=True, tag="delegation"):
    """A root was issued to the holder of ``key`` (thumbprint): what further tokens can only narrow.
    ``token``: its hash; ``expires_at``: Unix seconds."""

    root: str
    token: str
    agent: str
    principal: str
    key: str
    tools: list[str]
    max_depth: int
    expires_at: int


class Refusals(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """``count`` equal refusals, and how severely they are taken."""

    reason: str
    resource: str
    count: int
    severity: str
    policies: list[str] = []


class Reported(_Entry, frozen=True, tag="reported"):
    """A sidecar (or the gateway) refused an agent: everything from ``first`` to ``last`` in the ledger ``origin``."""

    agent: str
    origin: str
    first: int
    last: int
    refusals: list[Refusals]


class Standing(_Entry, frozen=True, tag="standing"):
    """A score moved. ``rule`` says how, ``cause`` is the index in this ledger of what moved it, which happened at
    ``at_s`` (Unix seconds); -1: a person did it, and ``by`` says who.

    ``registered`` and ``inherited`` follow from entries about the agent itself: told in its story, never written.
    ``milli``: thousandths of evidence that are staked; ``before`` and ``after`` are scores; ``other`` is the other
    agent of a vouch.
    """

    rule: Literal[
        "registered",
        "inherited",
        "outcome",
        "refusal",
        "vouched",
        "staked",
        "burned",
        "unvouched",
        "cleared",
        "granted",
        "ungranted",
    ]
    agent: str
    cause: int
    at_s: int
    before: int
    after: int
    risk: Count = 0
    severity: str = ""
    policy: str = ""
    resource: str = ""
    count: int = 0
    other: str = ""
    milli: int = 0
    by: str = ""
    reason: str = ""


class Breaker(_Entry, frozen=True, tag="breaker"):
    """``target`` (``agent:NAME`` or ``server:NAME``) is stopped until ``until_us`` (Unix microseconds)."""

    target: str
    rule: str
    count: int
    until_us: int


class Log(_Entry, frozen=True, tag="log"):
    """The gateway meets the log ``origin``, whose verifier key is ``vkey`` (``met``), a person lets it begin anew under
    another key (``renewed``; below ``pruned`` hashes are enough, since nobody has these entries any more), or it
    contradicts what was seen of it (``forked``; ``detail`` says how), or a person says that whoever wrote it is gone
    for good (``closed``)."""

    event: Literal["met", "renewed", "forked", "closed"]
    origin: str
    vkey: str = ""
    by: str = ""
    reason: str = ""
    detail: str = ""
    pruned: Count = 0


class Witness(_Entry, frozen=True, tag="witness"):
    """The gateway saw a checkpoint of the log ``origin`` and cosigned it: ``size`` entries with ``root`` (base64),
    sealed at ``time_ms`` (Unix milliseconds, by the log's own clock)."""

    origin: str
    size: int
    root: str
    time_ms: int


class Pruned(_Entry, frozen=True, tag="pruned"):
    """Whoever says this forgets the entries of the log ``origin`` below ``first``, because they are from before
    ``before_us`` (Unix microseconds), or has got no more than their hashes; those stay. ``by``: who wanted that, or
    from whom they came so."""

    origin: str
    first: Count
    before_us: Microseconds
    by: str


class Subject(_Entry, frozen=True, tag="subject"):
    """The key ``key`` was made for a subject, because ``by`` was to record something personal, or it was destroyed,
    and with it everything that it had sealed. Who the subject is stands nowhere."""

    event: Literal["made", "erased"]
    key: str
    by: str
    reason: str = ""


class Query(_Entry, frozen=True, tag="query"):
    """Somebody read the ledger: who, what was asked (its filters, or the SQL), and how many rows were told."""

    by: str
    what: str
    asked: str
    rows: int


class Admin(_Entry, frozen=True, tag="admin"):
    """A person used an administrative command, in this role; what came of it stands in the entries after."""

    event: str
    by: str
    role: str


class Replica(_Entry, frozen=True, tag="replica"):
    """A gateway shares the state of others from here on: its log ``origin``, by which key that is signed, and the
    ``url`` at which the others reach it."""

    name: str
    origin: str
    vkey: str
    url: str = ""
    version: str = ""


class Void(_Entry, frozen=True, tag="void"):
    """The change at index ``seq`` of this log never became one: the others took its ``turn`` without it."""

    seq: Count
    turn: Count
    detail: str


class Gap(_Entry, frozen=True, tag="gap"):
    """Something could not be recorded or was cut off, and this says so."""

    what: str
    detail: str


AnyEntry = (
    Start
    | End
    | Intent
    | Refusal
    | Hold
    | Dispatch
    | Outcome
    | Approval
    | Deputy
    | Bundle
    | Agent
    | Node
    | Session
    | Server
    | Person
    | Passkey
    | SignIn
    | SavedQuery
    | Kill
    | Revocation
    | Delegation
    | Reported
    | Standing
    | Breaker
    | Log
    | Witness
    | Pruned
    | Subject
    | Query
    | Admin
    | Replica
    | Void
    | Gap
)


def may_stand_in(entry: AnyEntry, kind: str) -> bool:
    """Whether a log of this kind (``sidecar``, ``node``, ``gateway``) may say this: votes and dispatches are the
    gateway's word, whatever somebody else's log says of them."""
    match kind:
        case "sidecar":
            loaded = isinstance(entry, Bundle) and entry.event == "loaded"
            own = isinstance(entry, Outcome) and entry.step == 10
            return own or loaded or isinstance(entry, Start | End | Intent | Refusal | Hold | Gap | Pruned)
        case "node":
            own = isinstance(entry, Outcome | Dispatch) and entry.step == 9
            return own or isinstance(entry, Start | End | Refusal | Gap | Pruned)
    return kind == "gateway"


def agent_of(entry: AnyEntry) -> str:
    """Of whose agent's doing *entry* tells, if of one's."""
    deed = getattr(entry, "deed", None)
    return deed.agent if isinstance(deed, Deed) else str(getattr(entry, "agent", ""))


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One entry as it stands in the log."""

    stamp: Stamp
    entry: AnyEntry


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Line)
_checker = msgspec.json.Decoder(AnyEntry)


def encode(entry: AnyEntry) -> bytes:
    """The ``entry`` member; :func:`stamped` completes it. :class:`Unverifiable` for what would not be read back: a log
    is for ever, and one entry that nobody can read would make all of it unreadable."""
    data = _encoder.encode(entry)
    try:
        _checker.decode(data)
    except msgspec.DecodeError as bad:
        raise Unverifiable(Reason.LEDGER_UNAVAILABLE, f"not a ledger entry: {bad}") from None
    return data


def stamped(stamp: Stamp, entry: bytes) -> bytes:
    """The exact bytes of one log entry."""
    return b'{"stamp":%b,"entry":%b}' % (_encoder.encode(stamp), entry)


class _Stamped(msgspec.Struct, frozen=True):
    stamp: Stamp


_stamps: Final = msgspec.json.Decoder(_Stamped)


def stamp_of(data: bytes) -> Stamp:
    """Only the stamp of an entry, whatever it says; :class:`Unverifiable` if it has none."""
    try:
        return _stamps.decode(data).stamp
    except msgspec.DecodeError as bad:
        raise Unverifiable(Reason.MALFORMED_REQUEST, f"not a ledger entry: {bad}") from None


def decode(data: bytes) -> Line:
    """Inverse of :func:`stamped` ∘ :func:`encode`, or :class:`Unverifiable`."""
    try:
        return _decoder.decode(data)
    except msgspec.DecodeError as bad:
        raise Unverifiable(Reason.MALFORMED_REQUEST, f"not a ledger entry: {bad}") from None
