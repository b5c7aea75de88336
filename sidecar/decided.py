"""Telling the agent's program, by a signed webhook, what people decided on what it asked for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

from edge.backoff import Backoff
from edge.client import Broken, Client, Unreachable
from edge.webhooks import Refused, Webhook

TRIES: Final = 12
"""The last after some minutes; the state itself can be asked for at any time."""
LONGEST_S: Final = 8 * 86_400.0
_SAID: Final = {"consumed": "approved"}
_log = logging.getLogger("licet.sidecar")
States = Callable[[str, float], AsyncIterator[dict[str, Any]]]


class Decided:
    """Of one sidecar's own agent. What is waited for lies as files in *directory*, so that a restart loses none; after
    one the same news may come twice, under the same ``webhook-id``."""

    def __init__(self, directory: Path, webhook: Webhook, client: Client, states: States) -> None:
        self._directory = directory
        self._webhook = webhook
        self._client = client
        self._states = states
        self._closing = False
        self._tasks: dict[str, asyncio.Task[None]] = {}
        directory.mkdir(parents=True, exist_ok=True)
        for path in sorted(directory.iterdir()):
            self._begin(path.name)

    def follow(self, approval: str) -> None:
        """Tell of *approval* when it is decided."""
        if approval not in self._tasks and not self._closing:
            (self._directory / approval).touch()
            self._begin(approval)

    def _begin(self, approval: str) -> None:
        task = self._tasks[approval] = asyncio.create_task(self._wait_and_tell(approval))
        task.add_done_callback(lambda done: self._over(approval, done))

    def _over(self, approval: str, done: asyncio.Task[None]) -> None:
        self._tasks.pop(approval, None)
        if not done.cancelled() and done.exception() is not None:
            _log.error("waiting for %s failed: %s", approval, done.exception())

    async def _wait_and_tell(self, approval: str) -> None:
        """Whatever comes of it: an approval waits seven days at most, and of one that is not known nothing comes."""
        async for state in self._states(approval, LONGEST_S):
            if state["state"] != "pending":
                # That it was used already is no other news for who waits for a yes.
                await self._tell(approval, {**state, "state": _SAID.get(state["state"], state["state"])})
                break
        (self._directory / approval).unlink(missing_ok=True)

    async def _tell(self, approval: str, state: dict[str, Any]) -> None:
        backoff = Backoff()
        for number in range(TRIES):
            try:
                await self._webhook.send(f"msg_{approval}", f"approval.{state['state']}", state)
                return
            except (Unreachable, Broken, Refused) as bad:
                _log.warning("the webhook was not told of %s, try %d: %s", approval, number + 1, bad)
            await asyncio.sleep(backoff.next())

    async def close(self) -> None:
        """What is not told yet is told after the next start."""
        self._closing = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.close()
