"""Who waits for the state to reach an index of the log."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count


class ApplyWait:
    """Those who wait, by the index that they wait for. Source: etcd ``pkg/wait/wait_time.go``."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._numbers = count()  # so that who came first is told first

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, index: int, reached: Callable[[], None]) -> None:
        """Have ``reached`` called by :meth:`applied` once the state has ``index``."""
        heappush(self._heap, (index, next(self._numbers), reached))

    def applied(self, index: int) -> None:
        """The state has applied the log up to ``index``."""
        heap = self._heap
        while heap and heap[0][0] <= index:
            heappop(heap)[2]()
