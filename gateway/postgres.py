"""The order of changes in PostgreSQL. The one door to asyncpg.

A gateway keeps one session. The turn is an advisory lock of that session, so it ends with it; a session that says
nothing for three seconds is ended by the server, so a gateway that is frozen or cut off holds up nobody for longer. Its
own connection then is over, and with it the right to publish: a turn that was lost cannot be used.

PostgreSQL is not believed more than it must be: each row carries a MAC by a key that only gateways of this mesh have,
over the turn and the entry, so whoever writes to the database can take changes away, which is noticed, but make none.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

import asyncpg

from edge.shared import Finding
from gateway.order import Change, OrderDamaged, OrderUnavailable
from trust.reasons import visible

SILENT_S: Final = 3
"""After this the server ends a session that says nothing."""
TURN_S: Final = 5
"""So long a gateway waits for its turn: longer than one that is frozen can hold it."""
CONNECT_S: Final = 3.0
ANSWER_S: Final = 6.0
LOCK: Final = 119_199_894_959_105
"""Of the turn; advisory locks are numbers, and this one is ours in the database."""
CHANNEL: Final = "licet_change"
OLDEST: Final = 140_000
"""PostgreSQL 14 is the first that ends idle sessions."""

MIGRATIONS: Final = (
    # 1
    """
    CREATE TABLE licet_order (name text PRIMARY KEY DEFAULT gen_random_uuid()::text);
    CREATE TABLE licet_change (
        turn bigint PRIMARY KEY CHECK (turn > 0),
        origin text NOT NULL,
        seq bigint NOT NULL,
        body bytea NOT NULL,
        mac bytea NOT NULL,
        UNIQUE (origin, seq)
    );
    CREATE TABLE licet_kept (kind text, name text, data bytea NOT NULL, PRIMARY KEY (kind, name));
    INSERT INTO licet_order DEFAULT VALUES;
    CREATE FUNCTION licet_take(known bigint) RETURNS SETOF licet_change LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_advisory_lock(119199894959105);
        RETURN QUERY SELECT * FROM licet_change WHERE licet_change.turn >= known ORDER BY licet_change.turn LIMIT 1000;
    END $$;
    CREATE FUNCTION licet_tell() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_notify('licet_change', '');
        RETURN NULL;
    END $$;
    CREATE TRIGGER licet_tell AFTER INSERT ON licet_change FOR EACH STATEMENT EXECUTE FUNCTION licet_tell();
    """,
)
"""Forward only. A released one is never edited: another one follows."""

_NEWS: Final = "SELECT turn, origin, seq, body, mac FROM licet_change WHERE turn >= $1 ORDER BY turn LIMIT 1000"
_PUBLISH: Final = "INSERT INTO licet_change (turn, origin, seq, body, mac) VALUES ($1, $2, $3, $4, $5)"
Result = TypeVar("Result")
_log = logging.getLogger("licet.gateway")


class Postgres:
    """Of one gateway; *secret* makes the MACs."""

    def __init__(self, url: str, secret: bytes) -> None:
        self.name = ""
        self._url = url
        self._secret = secret
        self._session: Any = None
        self._holds = False
        self._speaking = asyncio.Lock()
        self._wake: Callable[[], None] = lambda: None

    async def open(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        await self._ask(lambda session: session.fetchval("SELECT 1"))

    async def take(self, after: int) -> Sequence[Change]:
        rows = await self._ask(lambda session: session.fetch("SELECT * FROM licet_take($1)", after))
        self._holds = True
        try:
            return [self._change(row) for row in rows]
        except OrderDamaged:
            await self.give()
            raise

    async def news(self, after: int) -> Sequence[Change]:
        return [self._change(row) for row in await self._ask(lambda session: session.fetch(_NEWS, after))]

    async def publish(self, change: Change) -> None:
        if not self._holds:
            raise OrderUnavailable("the turn was lost before it was used")
        values = (change.turn, change.origin, change.seq, change.body, self._mac(change))
        await self._ask(lambda session: session.execute(_PUBLISH, *values), again=False)

    async def give(self) -> None:
        if self._holds:
            self._holds = False
            await self._ask(lambda session: session.execute("SELECT pg_advisory_unlock_all()"), again=False)

    async def found(self, changes: Sequence[Change]) -> bool:
        async def work(session: Any) -> bool:
            async with session.transaction():
                await session.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
                if await session.fetchval("SELECT count(*) FROM licet_change"):
                    return False
                rows = [(one.turn, one.origin, one.seq, one.body, self._mac(one)) for one in changes]
                await session.copy_records_to_table("licet_change", records=rows)
                return True

        return await self._ask(work, seconds=600.0)

    async def head(self) -> int:
        asked = "SELECT coalesce(max(turn), 0) FROM licet_change"
        return int(await self._ask(lambda session: session.fetchval(asked), again=not self._holds))

    async def published(self, origin: str) -> int:
        asked = "SELECT coalesce(max(seq), -1) FROM licet_change WHERE origin = $1"
        return int(await self._ask(lambda session: session.fetchval(asked, origin), again=not self._holds))

    async def keep(self, kind: str, name: str, data: bytes) -> None:
        asked = "INSERT INTO licet_kept VALUES ($1, $2, $3) ON CONFLICT DO NOTHING"
        await self._ask(lambda session: session.execute(asked, kind, name, data), again=not self._holds)

    async def fetch(self, kind: str, name: str) -> bytes | None:
        asked = "SELECT data FROM licet_kept WHERE kind = $1 AND name = $2"
        found = await self._ask(lambda session: session.fetchval(asked, kind, name), again=not self._holds)
        return None if found is None else bytes(found)

    async def drop(self, kind: str, name: str) -> None:
        asked = "DELETE FROM licet_kept WHERE kind = $1 AND name = $2"
        await self._ask(lambda session: session.execute(asked, kind, name), again=not self._holds)

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            try:
                await session.close(timeout=1.0)
            except Exception:
                session.terminate()

    def _mac(self, change: Change) -> bytes:
        said = b"licet change %d\n%b\n%d\n%b" % (change.turn, change.origin.encode(), change.seq, change.body)
        return hmac.digest(self._secret, said, "sha256")

    def _change(self, row: Any) -> Change:
        change = Change(row["turn"], row["origin"], row["seq"], bytes(row["body"]))
        if not hmac.compare_digest(bytes(row["mac"]), self._mac(change)):
            found = f"{visible(change.origin)}#{change.seq}"
            raise OrderDamaged(f"turn {change.turn} ({found}) was not written by a gateway that has this mesh's key")
        return change

    async def _ask(
        self, work: Callable[[Any], Awaitable[Result]], *, again: bool = True, seconds: float = ANSWER_S
    ) -> Result:
        async with self._speaking:
            return await self._answered(work, again, seconds)

    async def _answered(self, work: Callable[[Any], Awaitable[Result]], again: bool, seconds: float) -> Result:
        """What *work* finds. A session in which something went wrong is over: what it did is not known, and whatever
        lock it had is free. With *again* there may be a new one, without it only the one that is there."""
        if self._session is None or self._session.is_closed():
            self._holds = False
            if not again:
                raise OrderUnavailable("the connection to PostgreSQL was lost meanwhile")
            self._session = await self._connected()
        session = self._session
        try:
            async with asyncio.timeout(seconds):
                return await work(session)
        except Exception as bad:
            # Whatever it is: a library in the middle of losing its connection raises more kinds than it names.
            self._end(session)
            raise OrderUnavailable(f"PostgreSQL: {_words(bad)}") from None
        except BaseException:
            self._end(session)
            raise

    def _end(self, session: Any) -> None:
        self._holds = False
        self._session = None
        session.terminate()

    async def _connected(self) -> Any:
        try:
            async with asyncio.timeout(CONNECT_S):
                session = await asyncpg.connect(self._url)
        except Exception as bad:
            raise OrderUnavailable(f"PostgreSQL cannot be reached: {_words(bad)}") from None
        try:
            await self._prepare(session)
        except OrderUnavailable:
            session.terminate()
            raise
        except Exception as bad:
            session.terminate()
            raise OrderUnavailable(f"PostgreSQL: {_words(bad)}") from None
        return session

    async def _prepare(self, session: Any) -> None:
        await require_fit(session)
        for setting, value in _SETTINGS.items():
            await session.execute(f"SET {setting} = '{value}'")
        await migrate(session)
        name = await session.fetchval("SELECT name FROM licet_order")
        if self.name and name != self.name:
            raise OrderDamaged("this is another database than before; point all gateways at the one they began with")
        self.name = name
        await session.add_listener(CHANNEL, lambda *_: self._wake())


_SETTINGS: Final = {
    "application_name": "licet gateway",
    "idle_session_timeout": f"{SILENT_S}s",
    "idle_in_transaction_session_timeout": f"{SILENT_S}s",
    "lock_timeout": f"{TURN_S}s",
    "synchronous_commit": "on",
}
"""Of our own sessions. Said in the session, because a pooler takes most of them from nobody who connects."""


def _words(bad: BaseException) -> str:
    return " ".join(str(bad).split()) or type(bad).__name__


async def require_fit(session: Any) -> None:
    """Refuse a server that could lose what it said it has, or that is no server to write to."""
    async for one in _fitness(session):
        if not one.fine:
            raise OrderUnavailable(f"PostgreSQL: {one.what} {one.found}; {one.hint}")


async def _fitness(session: Any) -> AsyncIterator[Finding]:
    version = await session.fetchval("SHOW server_version")
    number = int(await session.fetchval("SHOW server_version_num"))
    yield Finding("version", number >= OLDEST, version, "expected 14 or later")
    for setting in ("fsync", "full_page_writes"):
        found = await session.fetchval(f"SHOW {setting}")
        yield Finding(setting, found == "on", found, "expected on, or a power failure loses decisions")
    standby = await session.fetchval("SELECT pg_is_in_recovery()")
    yield Finding("takes writes", not standby, "no, it is a standby" if standby else "yes", "expected the primary")


async def examine(url: str) -> list[Finding]:
    """What an operator should know of the database at *url*; nothing is changed there."""
    try:
        async with asyncio.timeout(CONNECT_S):
            session = await asyncpg.connect(url)
    except Exception as bad:
        return [Finding("reached", False, _words(bad), "gateways refuse what needs a decision until it is back")]
    try:
        found = [Finding("reached", True, "yes")]
        found += [one async for one in _fitness(session)]
        may = await session.fetchval("SELECT has_schema_privilege(current_schema(), 'CREATE')")
        made = await session.fetchval("SELECT to_regclass('licet_change') IS NOT NULL")
        hint = "GRANT CREATE ON SCHEMA public TO the role of the gateways, for the first start and for upgrades"
        found.append(Finding("permissions", bool(may), "may create tables" if may else "may not create tables", hint))
        if made and not await session.fetchval("SELECT has_table_privilege('licet_change', 'SELECT, INSERT')"):
            told = "the tables belong to another role, and this one may not use them"
            return [*found, Finding("tables", False, told, "use the role that made them")]
        pids = {await session.fetchval("SELECT pg_backend_pid()") for _ in range(5)}
        pooled = "expected a direct connection, or a pooler in session mode: the turn is a lock of the session"
        found.append(Finding("session", len(pids) == 1, "its own" if len(pids) == 1 else "shared by a pooler", pooled))
        if made:
            count = await session.fetchval("SELECT coalesce(max(turn), 0) FROM licet_change")
            newest = await session.fetchval("SELECT max(version) FROM licet_schema")
            found.append(Finding("changes", True, f"{count}, in tables of version {newest} of {len(MIGRATIONS)}"))
        copies = await session.fetchval(
            "SELECT count(*) FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum')"
        )
        lost = "each gateway that starts again brings the changes in its own ledger"
        found.append(Finding("if it were lost", True, f"{copies} synchronous standbys; {lost}"))
        return found
    except Exception as bad:
        return [Finding("examined", False, _words(bad), "may its role read the server's settings?")]
    finally:
        await session.close(timeout=1.0)


async def migrate(session: Any) -> None:
    """Bring the tables to the newest version; never back."""
    async with session.transaction():
        await session.execute("SELECT pg_advisory_xact_lock($1)", LOCK - 1)
        if not await session.fetchval("SELECT to_regclass('licet_schema') IS NOT NULL"):
            await session.execute("CREATE TABLE IF NOT EXISTS licet_schema (version int NOT NULL)")
        version = await session.fetchval("SELECT max(version) FROM licet_schema") or 0
        if version > len(MIGRATIONS):
            newest = len(MIGRATIONS)
            raise OrderUnavailable(f"the tables are of version {version}, and this Licet knows {newest}: upgrade it")
        for number in range(version, len(MIGRATIONS)):
            await session.execute(MIGRATIONS[number])
            await session.execute("INSERT INTO licet_schema VALUES ($1)", number + 1)
            _log.info("PostgreSQL tables brought to version %d", number + 1)
