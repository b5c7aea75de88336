"""People and their tokens: who may administer and who may approve."""

from __future__ import annotations

import hmac
import re
import secrets

from gateway.records import Records
from gateway.state import Person
from trust.canonical import sha256_hex
from trust.ledger import entries
from trust.reasons import Reason, Unverifiable, visible

OPERATOR = "operator"
"""The role that registers agents, nodes, servers and people, and kills."""
AUTHOR = "author"
"""The role that activates bundles."""
AUDITOR = "auditor"
"""The role that reads the ledger."""


_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")


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

    def of(self, group: str) -> list[str]:
        """The people of a role, or of ``team:NAME``."""
        return [person.name for person in self._records.store.all(Person) if group in person.groups]

    async def register(self, name: str, roles: list[str], by: str, teams: list[str] | None = None) -> str:
        """The new person's token; shown once."""
        for one in (name, *roles, *(teams or ())):
            require_name(one)
        if not roles:
            raise Unverifiable(Reason.MALFORMED_REQUEST, f"{name}: expected at least one role")
        token = new_token()
        async with self._records.deciding:
            if self._records.store.get(Person, name) is not None:
                raise Unverifiable(Reason.MALFORMED_REQUEST, f'the person "{name}" is already registered')
            await self._records.change(
                entries.Person("registered", name, by, sorted(roles), sorted(teams or ()), sha256_hex(token.encode()))
            )
        return token


def require_name(name: str) -> str:
    """*name* if people, roles and what they keep may be called so, or :class:`Unverifiable`."""
    if _NAME.fullmatch(name) is None:
        raise Unverifiable(
            Reason.MALFORMED_REQUEST, f'"{visible(name)}": expected a letter, then up to 62 of a-z, 0-9, "-" and "_"'
        )
    return name


def require_role(person: Person, roles: tuple[str, ...]) -> str:
    """The first of *roles* that *person* has, or :class:`Unverifiable`."""
    for role in roles:
        if role in person.roles:
            return role
    raise Unverifiable(Reason.NOT_YOURS, f"{person.name} has not the role {' or '.join(roles)}")
