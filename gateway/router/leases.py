"""Leases: which nodes were heard of in their present epoch, not too long ago. Soft state, in memory.

A node renews every two seconds and its lease lasts ten; the gateway that restarts knows no lease until it, or another
gateway, hears of each node again. Asking costs nothing per node: the one that was heard of longest ago stands first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping


class Leases:
    """*now_us* arguments are monotonic microseconds."""

    def __init__(self, ttl_us: int) -> None:
        self._ttl_us = ttl_us
        self._renewed: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self.version = 0
        """Rises when a node is lost or comes back."""

    def renew(self, node: str, epoch: int, now_us: int) -> None:
        """The caller knows that this is the node's present epoch."""
        before = self._renewed.get(node)
        if before is None or before[0] != epoch:
            self.version += 1
        self._renewed[node] = (epoch, now_us)
        self._renewed.move_to_end(node)

    def hear(self, told: Mapping[str, tuple[int, int]]) -> None:
        """Others heard of these nodes: of each the present epoch, and when that was."""
        before = dict(self._renewed)
        news = {
            node: lease
            for node, lease in told.items()
            if node not in before or before[node][0] != lease[0] or before[node][1] < lease[1]
        }
        if not news:
            return
        self.version += any(node not in before or before[node][0] != lease[0] for node, lease in news.items())
        self._renewed = OrderedDict(sorted({**before, **news}.items(), key=lambda item: item[1][1]))

    def expire(self, now_us: int) -> None:
        """Forget those that ran out."""
        while self._renewed:
            node, (_, at_us) = next(iter(self._renewed.items()))
            if now_us - at_us < self._ttl_us:
                return
            del self._renewed[node]
            self.version += 1

    def holds(self, node: str, epoch: int) -> bool:
        """Whether the lease of this epoch runs, as of the last :meth:`expire`."""
        found = self._renewed.get(node)
        return found is not None and found[0] == epoch

    def left_us(self, node: str, epoch: int, now_us: int) -> int:
        """For how long; 0 if it does not run."""
        found = self._renewed.get(node)
        if found is None or found[0] != epoch:
            return 0
        return max(0, self._ttl_us - (now_us - found[1]))
