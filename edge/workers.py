"""Several processes of one part behind one port: started, started again when they end, and ended together."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Final

from edge.backoff import Backoff

READY: Final = b"listens on"
"""In the line that a worker prints when it is ready."""
STOP_WITHIN_S: Final = 3.0
"""Beyond what they may take to finish what they have in hand."""
STEADY_S: Final = 30.0
"""Who lived so long and ends did not fail to start."""
_log = logging.getLogger("licet")


class NeverReady(Exception):
    """A worker ended before it was ready for the first time; what it said is on standard error."""


class Workers:
    """Of one part. The first is ready before the others start: what is made once is made by it alone."""

    def __init__(self, commands: Sequence[Sequence[str]], drain_s: float = 0.0) -> None:
        self._commands = commands
        self._drain_s = drain_s
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._stopping = asyncio.Event()

    async def work(self, on_ready: Callable[[], None]) -> None:
        """Until SIGINT or SIGTERM; *on_ready* is called when all are."""
        loop = asyncio.get_running_loop()
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(name, self._stopping.set)
        try:
            for number in range(len(self._commands)):
                await self._start(number)
            on_ready()
            keeping = [asyncio.create_task(self._keep(number)) for number in range(len(self._commands))]
            await self._stopping.wait()
            for task in keeping:
                task.cancel()
        finally:
            await self._end()

    async def _start(self, number: int) -> None:
        process = self._processes[number] = await asyncio.create_subprocess_exec(
            *self._commands[number], stdout=asyncio.subprocess.PIPE
        )
        stdout = process.stdout
        while stdout is not None and (line := await stdout.readline()):
            if READY in line:
                return
            sys.stdout.buffer.write(line)
        if not self._stopping.is_set():
            raise NeverReady(f"worker {number + 1} ended with code {await process.wait()}")

    async def _keep(self, number: int) -> None:
        """Start a worker again as often as it ends."""
        backoff, loop = Backoff(), asyncio.get_running_loop()
        while True:
            begun, process = loop.time(), self._processes[number]
            stdout = process.stdout
            while stdout is not None and (line := await stdout.readline()):
                sys.stdout.buffer.write(line)
            _log.error("worker %d ended with code %d and is started again", number + 1, await process.wait())
            if loop.time() - begun > STEADY_S:
                backoff.reset()
            while True:
                await asyncio.sleep(backoff.next())
                try:
                    await self._start(number)
                    break
                except NeverReady as bad:
                    _log.error("%s; tried again", bad)

    async def _end(self) -> None:
        for process in self._processes.values():
            if process.returncode is None:
                process.terminate()
        try:
            async with asyncio.timeout(self._drain_s + STOP_WITHIN_S):
                await asyncio.gather(*(process.wait() for process in self._processes.values()))
        except TimeoutError:
            for process in self._processes.values():
                if process.returncode is None:
                    process.kill()


def run(commands: Sequence[Sequence[str]], on_ready: Callable[[], None], drain_s: float = 0.0) -> None:
    """One worker for each of *commands*, who finish what they have in hand within *drain_s* at the end. Raises
    :class:`NeverReady`."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    asyncio.run(Workers(commands, drain_s).work(on_ready))
