"""How several workers of one sidecar decide as one: a lock, and a file of what each of them did.

Who decides reads what the others wrote, and decides. To permit something it takes the turn, which is a lock that the
system gives back when its process dies, and writes it; if others wrote anything meanwhile, it decides again first. So a
count is never read by two who would both be the last that it lets through, and a turn is short. The file begins
with a snapshot and is replaced by a fresh one when it has grown; a worker that starts reads it from there. It need not
outlive the machine: after the first start everything is folded from the ledgers.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

import msgspec

from sidecar.memories import AnyEvent, Denied, Ended, Memories, Permitted, Snapshot, Told, TookBack
from trust.facts import Rate, Run
from trust.reasons import Reason, Unverifiable
from trust.recalled import Recalled

MAX_BYTES: Final = 16 << 20
"""Of one file; at 1,500 decisions a second it is full after a minute and a half."""
WAIT_S: Final = 1.0
"""For the turn; whoever has it for longer hangs."""
SOON_S: Final = 0.001
"""Within this a turn ends that is not interrupted, many times over; it is not slept through."""
LENGTH: Final = 4
FILE: Final = "journal-"
_AGAIN: Final = b""
"""A record without content: the journal goes on in another file."""


class Journal(Protocol):
    """Used as ``with journal:`` around what must be decided before anybody else decides. ``known`` is another number
    whenever something became known of what others did."""

    worker: int
    memories: Memories
    known: int

    def look(self) -> int:
        """Know what others did until about now, without the turn; ``known``."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, bad: BaseException | None, at: TracebackType | None) -> None:
        """Give the turn back."""

    def keep(self) -> None:
        """Called now and then."""

    def tell(self, event: AnyEvent) -> None:
        """*event* happened, for everybody who decides after this; or :class:`Unverifiable`, and it did not."""

    def tell_later(self, event: AnyEvent) -> None:
        """*event* happened; everybody is told soon. What is over counts for a moment longer, never shorter."""


class OwnJournal:
    """Of a process that is the only one."""

    worker = known = 0

    def __init__(self, memories: Memories) -> None:
        self.memories = memories

    def look(self) -> int:
        return 0

    def keep(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, bad: BaseException | None, at: TracebackType | None) -> None:
        pass

    def tell(self, event: AnyEvent) -> None:
        self.memories.apply(event)

    tell_later = tell


class SharedJournal:
    """Of one of several workers, which share *directory*. The first of them brings the *memories*; without them the
    journal is there already."""

    def __init__(self, directory: Path, worker: int, memories: Memories | None = None) -> None:
        self.worker = worker
        self.known = 0
        self._soon: asyncio.Handle | None = None
        self._directory = directory
        self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        self._file = self._number = -1
        self._end = 0
        self._depth = 0
        self._later: list[AnyEvent] = []
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(AnyEvent).decode
        self._take_turn()
        try:
            if memories is not None:
                self.memories = memories
                self._begin(0)
            self._join()
            self._read()
        finally:
            self._give_turn()

    def look(self) -> int:
        if self._depth == 0:
            self._take_in(os.fstat(self._file).st_size)
        return self.known

    def __enter__(self) -> Self:
        if self._depth == 0:
            self._take_turn()
            try:
                self._read()
                while self._later:
                    self._write(self._later[0])
                    self._later.pop(0)
            except BaseException:
                self._give_turn()
                raise
        self._depth += 1
        return self

    def __exit__(self, kind: type[BaseException] | None, bad: BaseException | None, at: TracebackType | None) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._give_turn()

    def tell(self, event: AnyEvent) -> None:
        with self:
            self._write(event)

    def tell_later(self, event: AnyEvent) -> None:
        self._later.append(event)
        if self._soon is None:
            self._soon = asyncio.get_running_loop().call_soon(self._tell_now)

    def _tell_now(self) -> None:
        """In one turn, whatever became over in one turn of the event loop; if that cannot be, with the next turn."""
        self._soon = None
        with contextlib.suppress(Unverifiable), self:
            pass

    def close(self) -> None:
        """Give the files back."""
        if self._soon is not None:
            self._soon.cancel()
        os.close(self._file)
        os.close(self._lock)

    def _take_turn(self) -> None:
        begun = time.monotonic()
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                waited = time.monotonic() - begun
                if waited > WAIT_S:
                    told = f"another worker of this sidecar decides something since {WAIT_S:.0f} s; try again"
                    raise Unverifiable(Reason.OVERLOADED, told) from None
                time.sleep(0 if waited < SOON_S else SOON_S)

    def _give_turn(self) -> None:
        fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _read(self) -> None:
        """Know everything; only with the turn."""
        size = os.fstat(self._file).st_size
        while self._take_in(size):
            self._go_on()
            size = os.fstat(self._file).st_size
        if self._end != size:  # whoever wrote the rest died before its end, and so before it did anything
            os.ftruncate(self._file, self._end)

    def _take_in(self, size: int) -> bool:
        """Know what stands in the file up to *size*, whose last record may be half there; whether the journal goes on
        in another file."""
        if size == self._end:
            return False
        data = os.pread(self._file, size - self._end, self._end)
        at, over = 0, False
        while not over and len(data) - at >= LENGTH:
            end = at + LENGTH + int.from_bytes(data[at : at + LENGTH], "big")
            over = end == at + LENGTH
            if over or end > len(data):
                break
            self.memories.apply(self._decode(data[at + LENGTH : end]))
            self.known += 1
            at = end
        self._end += at
        return over

    def _write(self, event: AnyEvent) -> None:
        self._append(self._encode(event))
        self.memories.apply(event)
        if self._end > MAX_BYTES:
            with contextlib.suppress(Unverifiable):  # what was told was told; the file may grow a little more
                self._append(_AGAIN)
                self._end -= LENGTH  # whoever reads that goes on, this worker included if it cannot do so now
                self._go_on()

    def _append(self, record: bytes) -> None:
        framed = len(record).to_bytes(LENGTH, "big") + record
        try:
            written = os.pwrite(self._file, framed, self._end)
            if written != len(framed):
                raise OSError(f"{written} of {len(framed)} bytes were written")
        except OSError as bad:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._end)
            raise self._unwritten(bad) from None
        self._end += len(framed)

    def _unwritten(self, bad: OSError) -> Unverifiable:
        detail = f"what the workers of this sidecar share cannot be written to {self._directory}: {bad}"
        return Unverifiable(Reason.LEDGER_UNAVAILABLE, detail)

    def keep(self) -> None:
        """Look used, so that nobody who cleans up takes the files of workers that had nothing to do for days."""
        for path in (self._directory, *self._directory.iterdir()):
            with contextlib.suppress(FileNotFoundError):
                os.utime(path)

    def _go_on(self) -> None:
        """In the next file; whoever comes first begins it, since whoever filled this one may have died then."""
        here = self._number
        if self._latest() == here:
            self._begin(here + 1)
            (self._directory / _name(here)).unlink(missing_ok=True)
        self._join()

    def _latest(self) -> int:
        return max((int(path.name.removeprefix(FILE)) for path in self._directory.glob(FILE + "*")), default=-1)

    def _begin(self, number: int) -> None:
        """A file that starts with everything that is known."""
        snapshot = self._encode(self.memories.snapshot())
        making = self._directory / "new"
        try:
            making.write_bytes(len(snapshot).to_bytes(LENGTH, "big") + snapshot)
            making.rename(self._directory / _name(number))
        except OSError as bad:
            raise self._unwritten(bad) from None

    def _join(self) -> None:
        """Know what the journal begins with; what follows is read when somebody decides."""
        number = self._latest()
        if number < 0:
            raise Unverifiable(Reason.LEDGER_UNAVAILABLE, f"{self._directory} holds no journal of this sidecar")
        if self._file >= 0:
            os.close(self._file)
        self._file, self._number = os.open(self._directory / _name(number), os.O_RDWR), number
        length = int.from_bytes(os.pread(self._file, LENGTH, 0), "big")
        kept = msgspec.msgpack.decode(os.pread(self._file, length, LENGTH), type=Snapshot)
        self.memories = Memories.of_snapshot(kept)
        self.known += 1
        self._end = LENGTH + length


def _name(number: int) -> str:
    return f"{FILE}{number}"


class Recall:
    """What a pipeline sees of it: the memory of one agent."""

    def __init__(self, agent: str, journal: Journal) -> None:
        self._agent = agent
        self.turn = journal

    def run(self, run: str, now: float) -> Run:
        """What a decision may know of *run*."""
        return self.turn.memories.of(self._agent).run(run, now)

    def rate(self, tool: str, now: float) -> Rate:
        """How often *tool* and all tools were called, and what is in flight."""
        return self.turn.memories.of(self._agent).rate(tool, now)

    def permitted(self, run: str, tool: str, labels: tuple[str, ...], now: float, cents: int) -> None:
        """A call leaves; it is in flight until it has ended."""
        self.turn.tell(Permitted(self.turn.worker, self._agent, run, tool, labels, now, cents))

    def told(self, run: str, tool: str, recalled: Recalled, now: float, until: float) -> None:
        """The gateway knows that the agent did more; or :class:`Unverifiable`, and it is not known here."""
        self.turn.tell(Told(self._agent, run, tool, now, until, recalled))

    def took_back(self, tool: str, at: float, cents: int) -> None:
        """A call that was permitted at that time was never sent."""
        self.turn.tell_later(TookBack(self._agent, tool, at, cents))

    def ended(self) -> None:
        """A call is over."""
        self.turn.tell_later(Ended(self.turn.worker, self._agent))

    def denied(self, run: str, now: float) -> None:
        """A call was refused, for what was asked."""
        self.turn.tell_later(Denied(self._agent, run, now))
