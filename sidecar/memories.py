"""What one sidecar remembers of all its agents, as a fold over events: the same in each of its workers."""

from __future__ import annotations

import msgspec

from sidecar.memory import Memory
from trust.identity.replay import Nonces
from trust.recalled import Recalled


class Event(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Something that must be known to whoever decides next. Times are Unix seconds."""


class Permitted(Event, frozen=True, tag="p"):
    """A call leaves *worker*; it costs ``cents`` and will bring ``labels`` into its run."""

    worker: int
    agent: str
    run: str
    tool: str
    labels: tuple[str, ...]
    at: float
    cents: int


class Ended(Event, frozen=True, tag="e"):
    """A call that *worker* had in flight is over."""

    worker: int
    agent: str


class Denied(Event, frozen=True, tag="d"):
    """A call was refused, for what was asked."""

    agent: str
    run: str
    at: float


class Spent(Event, frozen=True, tag="n"):
    """A guest's signature was used."""

    nonce: str
    expires_at: float


class Told(Event, frozen=True, tag="t"):
    """The gateway knows that an agent did so much before its next call of *tool* in *run*, through other sidecars
    too; what it counted holds ``until`` then."""

    agent: str
    run: str
    tool: str
    at: float
    until: float
    recalled: Recalled


class TookBack(Event, frozen=True, tag="b"):
    """A call that was permitted ``at`` a time was never sent."""

    agent: str
    tool: str
    at: float
    cents: int


class Gone(Event, frozen=True, tag="g"):
    """*worker* is started again: nothing is in flight with it."""

    worker: int


AnyEvent = Permitted | Ended | Denied | Spent | Told | TookBack | Gone


class Snapshot(msgspec.Struct):
    """Memories, to be encoded."""

    labels_keep_s: int
    agents: dict[str, Memory]
    nonces: list[tuple[float, str]]


class Memories:
    """By agent, and the nonces of guests."""

    def __init__(self, labels_keep_s: int) -> None:
        self._labels_keep_s = labels_keep_s
        self._agents: dict[str, Memory] = {}
        self.nonces = Nonces()

    @classmethod
    def of_snapshot(cls, kept: Snapshot) -> Memories:
        """The memories that :meth:`snapshot` gave."""
        made = cls(kept.labels_keep_s)
        made._agents, made.nonces = kept.agents, Nonces(kept.nonces)
        return made

    def snapshot(self) -> Snapshot:
        """All of it."""
        return Snapshot(self._labels_keep_s, self._agents, self.nonces.kept)

    def of(self, agent: str) -> Memory:
        """What is known of *agent*; a new agent did nothing."""
        found = self._agents.get(agent)
        if found is None:
            found = self._agents[agent] = Memory(self._labels_keep_s)
        return found

    def apply(self, event: AnyEvent) -> None:
        """*event* happened."""
        match event:
            case Permitted():
                memory = self.of(event.agent)
                memory.permitted(event.run, event.tool, event.labels, event.at, event.cents)
                memory.began(event.worker)
            case Ended():
                self.of(event.agent).ended(event.worker)
            case Denied():
                self.of(event.agent).denied(event.run, event.at)
            case Spent():
                self.nonces.remember(event.nonce, event.expires_at)
            case Told():
                self.of(event.agent).told(event.run, event.tool, event.recalled, event.at, event.until)
            case TookBack():
                self.of(event.agent).took_back(event.tool, event.at, event.cents)
            case Gone():
                for memory in self._agents.values():
                    memory.gone(event.worker)
