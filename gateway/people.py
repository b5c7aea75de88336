"""People and their tokens: who may administer and who may approve."""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Iterable

from gateway.records import Records
from gateway.state import Former, Passkey, Person
from trust.canonical import sha256_hex
from trust.ledger import entries
from trust.reasons import Reason, Unverifiable, visible

OPERATOR = "operator"
"""The role that registers agents, nodes, servers and people, and kills."""
AUTHOR = "author"
"""The role that activates bundles."""
AUDITOR = "auditor"
"""The role that reads the ledger."""
VIEWER = "viewer"
"""The role that sees agents, nodes, servers and policies."""


MAX_LOGIN = 254
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

    def of(self, group: str, namespace: str = "") -> list[str]:
        """The people of a role, or of ``team:NAME``, who decide on what agents of *namespace* ask for."""
        everybody = self._records.store.all(Person)
        return [one.name for one in everybody if group in one.groups and one.namespace in ("", namespace)]

    def signing(self, group: str, namespace: str = "") -> list[str]:
        """Those of them who have a passkey."""
        able = {key.person for key in self._records.store.all(Passkey)}
        return [name for name in self.of(group, namespace) if name in able]

    async def register(
        self,
        name: str,
        roles: list[str],
        by: str,
        teams: list[str] | None = None,
        login: str = "",
        namespace: str = "",
    ) -> str:
        """The new person's token; shown once. *login*: how the issuer of single sign-on calls them."""
        for one in (name, *roles, *(teams or ())):
            require_name(one)
        require_namespace(namespace)
        teams = within(namespace, teams or ())
        if not roles:
            raise Unverifiable(Reason.MALFORMED_REQUEST, f"{name}: expected at least one role")
        token = new_token()
        async with self._records.deciding:
            former = self._records.store.get(Former, name)
            taken = bool(namespace and former and former.namespace != namespace)  # the mesh may have whatever is free
            if self._records.store.get(Person, name) is not None or taken:
                raise Unverifiable(Reason.MALFORMED_REQUEST, f'the person "{name}" is already registered')
            self._require_free(login)
            digest = sha256_hex(token.encode())
            await self._records.change(
                entries.Person("registered", name, by, sorted(roles), sorted(teams), digest, namespace=namespace)
            )
            if login:  # an entry of its own: it is an address, and evidence tells nobody's
                await self._records.change(entries.Person("login", name, by, login=login))
        return token

    async def remove(self, name: str, by: str) -> None:
        """*name* may do nothing any more: no token, visit, passkey or deputy of theirs counts, nor a vote that was not
        used. Somebody who may let people in again stays."""
        async with self._records.deciding:
            known = self._records.store.get(Person, name)
            if known is None:
                raise Unverifiable(Reason.NOT_FOUND, f'nobody is called "{visible(name)}"')
            if name == by:
                raise Unverifiable(Reason.MALFORMED_REQUEST, "somebody else removes you, who is there then")
            await self._records.change(entries.Person("removed", name, by))

    async def set_login(self, name: str, login: str, by: str) -> None:
        """*name* signs in as *login* from now on; with an empty one, by single sign-on no more."""
        async with self._records.deciding:
            if self._records.store.get(Person, name) is None:
                raise Unverifiable(Reason.NOT_FOUND, f'nobody is called "{visible(name)}"')
            self._require_free(login)
            await self._records.change(entries.Person("login", name, by, login=login))

    def _require_free(self, login: str) -> None:
        if len(login) > MAX_LOGIN or not login.isprintable():
            raise Unverifiable(Reason.MALFORMED_REQUEST, f"login: expected up to {MAX_LOGIN} printable characters")
        whose = next((one.name for one in self._records.store.all(Person) if login and one.login == login), "")
        if whose:
            raise Unverifiable(Reason.MALFORMED_REQUEST, f"{visible(whose)} has the login {visible(login)}")


def require_name(name: str) -> str:
    """*name* if people, roles and what they keep may be called so, or :class:`Unverifiable`."""
    if _NAME.fullmatch(name) is None:
        raise Unverifiable(
            Reason.MALFORMED_REQUEST, f'"{visible(name)}": expected a letter, then up to 62 of a-z, 0-9, "-" and "_"'
        )
    return name


def require_namespace(namespace: str) -> str:
    """*namespace* if one may be called so (empty: none), or :class:`Unverifiable`."""
    return require_name(namespace) if namespace else ""


def within(namespace: str, teams: Iterable[str]) -> list[str]:
    """Teams as those of a namespace are called everywhere: nobody puts an agent into somebody else's team."""
    return [f"{namespace}/{team}" if namespace else team for team in teams]


EVERYBODY = "everybody"
"""The team in which all agents of a namespace are, as ``NAMESPACE/everybody``."""
