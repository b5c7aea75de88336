"""The passkeys of people: making them, signing in with them, and votes that are signed with them."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

from edge.clock import SystemClock
from gateway.records import Records
from gateway.state import ApprovalRecord, Passkey, Person
from trust.identity import passkeys
from trust.identity.keys import b64url, unb64url
from trust.identity.replay import Nonces
from trust.ledger import entries
from trust.ledger.entries import Assertion
from trust.reasons import Reason, Unverifiable, visible

CHALLENGE_S: Final = 15 * 60
MAX_KEYS: Final = 10
"""Of one person."""
MAX_NAME: Final = 60
_NONCE: Final = 16
_UNTIL: Final = struct.Struct(">Q")
SIGN_IN: Final = "sign-in"


class Passkeys:
    """Of one gateway. A challenge is made with *secret* and remembered by nobody until it was used, so that asking for
    many of them costs nothing."""

    def __init__(self, records: Records, clock: SystemClock, secret: bytes, origin: Callable[[], str]) -> None:
        """*origin*: under which browsers find the console; its host is the relying party."""
        self._records = records
        self._clock = clock
        # Of this start only: what was answered before it is not remembered, so nothing that was asked before counts.
        self._secret = hmac.new(secret, b"passkeys" + secrets.token_bytes(_NONCE), hashlib.sha256).digest()
        self._origin = origin
        self._used = Nonces()

    @property
    def party(self) -> str:
        return urlsplit(self._origin()).hostname or ""

    def of(self, person: str) -> list[Passkey]:
        return [one for one in self._records.cached(Passkey) if one.person == person]

    def _find(self, credential: str) -> Passkey | None:
        """Among all that there are: the store would remember each name that somebody sends, and that it lacks it."""
        return next((one for one in self._records.cached(Passkey) if one.credential == credential), None)

    # What pages ask a browser for

    def to_add(self, person: Person) -> str:
        """Options for ``navigator.credentials.create()``, as JSON."""
        known = [{"type": "public-key", "id": one.credential} for one in self.of(person.name)]
        return passkeys.options(
            {
                "rp": {"id": self.party, "name": "Licet"},
                "user": {"id": b64url(person.name.encode()), "name": person.name, "displayName": person.name},
                "challenge": b64url(self._challenge(f"add {person.name}")),
                "pubKeyCredParams": [{"type": "public-key", "alg": number} for number in passkeys.ALGORITHMS],
                "excludeCredentials": known,
                "authenticatorSelection": {"residentKey": "required", "userVerification": "required"},
                "attestation": "none",
            }
        )

    def to_sign_in(self) -> str:
        """Options for ``navigator.credentials.get()``, of whoever's passkey, as JSON."""
        return self._get(self._challenge(SIGN_IN), [])

    def to_vote(self, person: Person, record: ApprovalRecord) -> str:
        """The same for a yes of *person* to exactly this request; empty if they have no passkey."""
        known = self.of(person.name)
        return self._get(_of_a_yes(person, record), known) if known else ""

    def _get(self, challenge: bytes, known: list[Passkey]) -> str:
        asked: dict[str, Any] = {"challenge": b64url(challenge), "rpId": self.party, "userVerification": "required"}
        allowed = [{"type": "public-key", "id": one.credential} for one in known]
        return passkeys.options({**asked, "allowCredentials": allowed})

    # What browsers answer

    async def add(self, person: Person, how: str, name: str, answer: str) -> None:
        """A new passkey of *person*, who signed in by *how*. Who has one already shows it first, or whoever gets hold
        of a sign-in link could give themselves a signature."""
        challenge, until = self._answered(answer, f"add {person.name}")
        if not name.isprintable():
            raise Unverifiable(Reason.MALFORMED_REQUEST, "name: expected printable characters")
        fresh = passkeys.registered(answer, challenge=challenge, party=self.party, origin=self._origin())
        self._used.spend(b64url(challenge), until, self._clock.now())
        async with self._records.deciding:
            known = self.of(person.name)
            self._require_shown(known, how, "another")
            if len(known) >= MAX_KEYS:
                raise Unverifiable(Reason.MALFORMED_REQUEST, f"{person.name} has {MAX_KEYS} passkeys; remove one first")
            if self._find(fresh.credential) is not None:
                raise Unverifiable(Reason.MALFORMED_REQUEST, "this passkey is known already")
            await self._records.change(
                entries.Passkey(
                    "added",
                    person.name,
                    fresh.credential,
                    person.name,
                    key=fresh.key,
                    party=self.party,
                    name=name.strip()[:MAX_NAME] or "passkey",
                    count=fresh.count,
                )
            )

    async def remove(self, owner: str, credential: str, by: Person, how: str | None) -> None:
        """*by*: who removes it; its owner having signed in by *how*, or (None) an operator."""
        async with self._records.deciding:
            found = self._find(credential)
            if how is None and owner == by.name:
                raise Unverifiable(Reason.NOT_YOURS, "another operator removes yours, or you do, signed in with one")
            if found is None or found.person != owner:
                raise Unverifiable(Reason.NOT_FOUND, f"{visible(owner)} has no such passkey")
            if how is not None:
                self._require_shown([found], how, "to remove one")
            await self._records.change(entries.Passkey("removed", owner, credential, by.name))

    def _require_shown(self, known: list[Passkey], how: str, what: str) -> None:
        if known and how != "passkey":
            raise Unverifiable(
                Reason.NOT_YOURS,
                f"you have a passkey: sign in with it ({what} needs that); an operator removes lost ones: "
                f"licet people passkeys {known[0].person}",
            )

    async def sign_in(self, answer: str) -> tuple[Person, Passkey, int]:
        """Whose passkey signed our challenge, that passkey, and its new count; or :class:`Unverifiable`."""
        challenge, until = self._answered(answer, SIGN_IN)
        signed = passkeys.assertion(answer)
        found = self._find(signed.credential)
        person = self._records.store.get(Person, found.person) if found is not None else None
        if found is None or person is None:
            raise Unverifiable(Reason.UNAUTHENTICATED, "nobody here has this passkey")
        count = passkeys.require_signed(
            signed, found.key, challenge=challenge, party=found.party, origin=self._origin(), count=found.count
        )
        self._used.spend(b64url(challenge), until, self._clock.now())  # only what holds: junk is not remembered
        return person, found, count

    def require_vote(self, person: Person, record: ApprovalRecord, signed: Assertion | None) -> None:
        """That *person* signed a yes to exactly this request, or :class:`Unverifiable`."""
        if signed is None:
            raise Unverifiable(
                Reason.NOT_YOURS,
                f"a yes to this is signed with a passkey: {self._origin()}/console/queue/{record.id}",
            )
        found = self._find(signed.credential)
        if found is None or found.person != person.name:
            raise Unverifiable(Reason.NOT_YOURS, f"this is no passkey of {person.name}")
        challenge = _of_a_yes(person, record)
        passkeys.require_signed(
            signed, found.key, challenge=challenge, party=found.party, origin=self._origin(), count=found.count
        )

    # Challenges

    def _challenge(self, purpose: str) -> bytes:
        head = secrets.token_bytes(_NONCE) + _UNTIL.pack(int(self._clock.now()) + CHALLENGE_S)
        return head + self._seal(head, purpose)

    def _seal(self, head: bytes, purpose: str) -> bytes:
        return hmac.new(self._secret, head + purpose.encode(), hashlib.sha256).digest()

    def _answered(self, answer: str, purpose: str) -> tuple[bytes, float]:
        """The challenge of ours that *answer* is to, for this purpose and not too old, and when it ends. Whoever finds
        that the answer holds spends it."""
        challenge = unb64url(passkeys.challenge_in(answer))
        now = self._clock.now()
        head, seal = challenge[: _NONCE + _UNTIL.size], challenge[_NONCE + _UNTIL.size :]
        if not hmac.compare_digest(seal, self._seal(head, purpose)):
            raise Unverifiable(
                Reason.UNAUTHENTICATED, "this answers something that this gateway did not ask: load the page again"
            )
        (until,) = _UNTIL.unpack(head[_NONCE:])
        if until <= now:
            raise Unverifiable(Reason.UNAUTHENTICATED, "this page is old: load it again")
        return challenge, float(until)


def _of_a_yes(person: Person, record: ApprovalRecord) -> bytes:
    return passkeys.vote_challenge(record.action_digest, "approve", person.name, record.id, record.presented)
