"""The sessions that workloads opened, here or at another gateway: each for five minutes, few for each workload."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import msgspec

from edge.clock import new_id
from trust.identity import session
from trust.identity.keys import SecretKey
from trust.identity.session import Terms
from trust.identity.wit import Workload
from trust.reasons import Reason, Unverifiable

MAX_SESSIONS: Final = 50_000
MAX_OF_ONE: Final = 8
"""Of one workload; its oldest ends when it opens another."""


MARGIN_S: Final = 5
"""Clocks of two machines differ; a session that is about to end is not begun with."""


class Session(msgspec.Struct, frozen=True):
    """``secret`` is what its requests are authenticated with, ``back`` what the gateway sends it."""

    workload: Workload
    terms: Terms
    secret: bytes
    back: bytes


class Sessions:
    """Of one gateway process."""

    def __init__(self, key: SecretKey, audience: str) -> None:
        self._key = key
        self._audience = audience
        self._open: OrderedDict[str, Session] = OrderedDict()
        self._of: dict[str, list[str]] = {}

    def open(self, workload: Workload, client: str, now: int) -> tuple[Terms, str]:
        """A new session for *workload*: its terms, and the statement for its holder."""
        self._make_room(workload, now)
        terms, secret, statement = session.answer(
            client, session=new_id("ses"), subject=workload.subject, audience=self._audience, now=now, key=self._key
        )
        self._keep(workload, terms, secret)
        return terms, statement

    def learn(self, statement: str, workload: Workload, now: float) -> Session:
        """The session that another gateway opened for *workload* with this statement, which proves itself."""
        terms, secret = session.again(statement, self._key, audience=self._audience, now=now)
        if terms.subject != workload.subject:
            raise Unverifiable(Reason.UNAUTHENTICATED, "a session of somebody else")
        self._make_room(workload, int(now))
        return self._keep(workload, terms, secret)

    def _make_room(self, workload: Workload, now: int) -> None:
        self._forget_over(now)
        while len(own := self._of.get(workload.subject, [])) >= MAX_OF_ONE:
            self._forget(own[0])
        if len(self._open) >= MAX_SESSIONS:
            raise Unverifiable(Reason.OVERLOADED, "too many sessions are open")

    def _keep(self, workload: Workload, terms: Terms, secret: bytes) -> Session:
        made = self._open[terms.session] = Session(workload, terms, secret, session.backward(secret))
        self._of.setdefault(workload.subject, []).append(terms.session)
        return made

    def get(self, name: str, now: float) -> Session:
        """The open session of this *name*, or :class:`Unverifiable`."""
        found = self._open.get(name)
        if found is None or now >= found.terms.expires_at:
            raise Unverifiable(Reason.UNAUTHENTICATED, "this session is not open (any more); sign with the key")
        return found

    def knows(self, name: str) -> bool:
        return name in self._open

    def newest_of(self, subject: str, now: float) -> Session | None:
        """The session that a workload opened last, if it is open for long enough to be used by us."""
        own = self._of.get(subject, ())
        found = self._open[own[-1]] if own else None
        return found if found is not None and now < found.terms.expires_at - MARGIN_S else None

    def end(self, subject: str) -> None:
        """A workload started anew: it knows none of its sessions any more."""
        for name in list(self._of.get(subject, ())):
            self._forget(name)

    def _forget_over(self, now: float) -> None:
        """Sessions live equally long, so the oldest end first; those that were learned later a little late."""
        while self._open and next(iter(self._open.values())).terms.expires_at <= now:
            self._forget(next(iter(self._open)))

    def _forget(self, name: str) -> None:
        over = self._open.pop(name)
        own = self._of[over.workload.subject]
        own.remove(name)
        if not own:
            del self._of[over.workload.subject]
