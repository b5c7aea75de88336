"""People and their tokens: who may administer and who may approve."""

from __future__ import annotations

import hmac
import secrets

from gateway.records import Records
from gateway.state import Person
from trust.canonical import sha256_hex
from trust.ledger import entries
from trust.reasons import Reason, Unverifiable

OPERATOR = "operator"
"""The role that registers agents, nodes, servers and people, and kills."""
AUTHOR = "author"
"""The role that activates bundles."""


def new_token() -> str:
    """256 random bits, base64url."""
    return secrets.token_urlsafe(32)


class People:
    """Signs people in by token. A token's hash is kept, never the token."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def identify(self, token: str) -> Person:
        """Whose *token* it is, or :class:`Unverifiable`."""
        digest = sha256_hex(token.encode())
        for person in self._records.store.all(Person):
            if hmac.compare_digest(person.token_sha256, digest):
                return person
        raise Unverifiable(Reason.UNAUTHENTICATED, "no person has this token")

    def require(self, token: str, role: str) -> Person:
        """The person behind *token*, if it has *role*."""
        person = self.identify(token)
        if role not in person.roles:
            raise Unverifiable(Reason.NOT_YOURS, f"{person.name} has not the role {role}")
        return person

    def with_role(self, role: str) -> list[str]:
        return [person.name for person in self._records.store.all(Person) if role in person.roles]

    async def register(self, name: str, roles: list[str], by: str) -> str:
        """The new person's token; shown once."""
        token = new_token()
        async with self._records.deciding:
            await self._records.change(
                entries.Person("registered", name, by, sorted(roles), sha256_hex(token.encode()))
            )
        return token
