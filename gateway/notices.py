"""Telling people that something waits: a link and a digest, never what was asked, and never a button.

By a signed webhook (Standard Webhooks), a message for a chat (Slack's form), and mail. Whatever goes wrong with that is
tried again, and holds up nobody's decision; the queue itself is the record of what waits.
"""

from __future__ import annotations

import asyncio
import logging
import smtplib
from collections.abc import Awaitable, Callable
from email.message import EmailMessage
from typing import Final

import msgspec

from edge.backoff import Backoff
from edge.client import Broken, Client, Unreachable
from edge.clock import SystemClock, new_id
from edge.telemetry import Telemetry
from edge.webhooks import Refused, Webhook, post
from gateway.approvals.desk import Desk
from gateway.config import NotifyConfig
from gateway.records import Records
from trust.ledger import entries
from trust.ledger.entries import AnyEntry
from trust.ledger.words import moment

TOLD: Final = ("requested", "edited", "escalated", "reminded")
TRIES: Final = 8
"""The last after two minutes: who was not reached then is reached by the reminder."""
MAX_WAITING: Final = 10_000
TIMEOUT_S: Final = 10.0
_WORDS: Final = {
    "requested": "A request waits for a decision",
    "edited": "A request was changed and waits for a decision",
    "escalated": "A request that nobody decided waits for you now",
    "reminded": "A request still waits, and half of its time is over",
}
_log = logging.getLogger("licet.gateway")


class Notice(msgspec.Struct, frozen=True):
    """``type``: what happened; ``expires_at``: Unix seconds; ``groups``: who may decide."""

    id: str
    type: str
    approval: str
    action_digest: str
    url: str
    expires_at: int
    groups: list[str]

    @property
    def text(self) -> str:
        until = moment(self.expires_at * 1_000_000, "%H:%M UTC on %Y-%m-%d")
        words = _WORDS[self.type.removeprefix("approval.")]
        return f"{words} until {until}, by {', '.join(self.groups)}: {self.url} (digest {self.action_digest[:16]}…)"


class Notices:
    """Of one gateway. *origin* is known when it listens."""

    def __init__(
        self,
        config: NotifyConfig,
        records: Records,
        desk: Desk,
        telemetry: Telemetry,
        clock: SystemClock,
        origin: Callable[[], str],
    ) -> None:
        self._config = config
        self._desk = desk
        self._telemetry = telemetry
        self._origin = origin
        self._client = Client(total_timeout_s=TIMEOUT_S)
        self._ways: dict[str, Callable[[Notice], Awaitable[None]]] = {}
        if config.webhook is not None and config.webhook_secret_file is not None:
            webhook = Webhook(config.webhook, config.webhook_secret_file, self._client, clock)
            self._ways["webhook"] = lambda notice: webhook.send(notice.id, notice.type, notice)
        if config.slack is not None:
            self._ways["slack"] = self._slack
        if config.smtp:
            self._ways["smtp"] = self._mail
        self._queues = {way: asyncio.Queue[Notice](MAX_WAITING) for way in self._ways}
        if self._ways:
            records.listen(self._on_change, own=True)

    def _on_change(self, entry: AnyEntry) -> None:
        if not isinstance(entry, entries.Approval) or entry.event not in TOLD or entry.under:
            return
        record = self._desk.get(entry.approval)
        notice = Notice(
            id=new_id("msg"),
            type=f"approval.{entry.event}",
            approval=record.id,
            action_digest=record.action_digest,
            url=f"{self._origin()}/console/queue/{record.id}",
            expires_at=record.expires_at_us // 1_000_000,
            groups=sorted({*record.terms["quorum"], *record.groups}),
        )
        for way, queue in self._queues.items():
            if queue.full():
                self._count(way, "dropped")
            else:
                queue.put_nowait(notice)

    async def work(self) -> None:
        """Each way on its own: one that hangs holds up no other."""
        await asyncio.gather(*(self._tell(way) for way in self._ways))

    async def _tell(self, way: str) -> None:
        while True:
            notice = await self._queues[way].get()
            backoff = Backoff()
            for last in range(TRIES):
                try:
                    await self._ways[way](notice)
                    self._count(way, "told")
                    break
                except (Unreachable, Broken, Refused, OSError, smtplib.SMTPException) as bad:
                    _log.warning("%s was not told of %s, try %d: %s", way, notice.approval, last + 1, bad)
                except Exception:
                    _log.exception("telling %s of %s failed", way, notice.approval)
                await asyncio.sleep(backoff.next())
            else:
                self._count(way, "failed")

    def _count(self, way: str, how: str) -> None:
        self._telemetry.tally.count("licet_notices", (("way", way), ("how", how)))

    async def _slack(self, notice: Notice) -> None:
        body = msgspec.json.encode({"text": notice.text})
        await post(self._client, str(self._config.slack), {}, body)

    async def _mail(self, notice: Notice) -> None:
        config = self._config
        mail = EmailMessage()
        mail["Subject"] = _WORDS[notice.type.removeprefix("approval.")]
        mail["From"], mail["To"] = config.smtp_from, ", ".join(config.smtp_to)
        mail["Message-ID"] = f"<{notice.id}@{config.smtp_from.rpartition('@')[2]}>"
        mail.set_content(notice.text + "\n")
        await asyncio.to_thread(_send, config, mail)

    async def close(self) -> None:
        await self._client.close()


def _send(config: NotifyConfig, mail: EmailMessage) -> None:
    host, _, port = config.smtp.rpartition(":")
    with smtplib.SMTP(host, int(port), timeout=TIMEOUT_S) as server:
        if config.smtp_tls:
            server.starttls()
        if config.smtp_password_file is not None:
            server.login(config.smtp_user, config.smtp_password_file.read_text("utf-8").strip())
        server.send_message(mail)
