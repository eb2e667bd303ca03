"""A member with a v2 store, a clock, and Raft's numbers, for tests of requests for keys."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import Clock

from tests.protocols.v2tree import TreeMember
from twistedkv.errors import KVError
from twistedkv.v2watch import V2Hub


class KeysMember(TreeMember):
    """What :class:`~twistedkv.protocols.v2keys.KeysEndpoint` asks of a member.

    Args:
        clock: tells the time.
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.reactor: IReactorTime = clock
        sink = self.directory.sink
        assert isinstance(sink, V2Hub)
        self.v2hub = sink
        self.term = 2
        self.reading: list[tuple[Callable[[], None], Callable[[KVError], None]]] | None = None  # held, once a list

    @property
    def committed(self) -> int:
        """Some entries more than changes."""
        return self.directory.index + 100

    def when_readable(self, ready: Callable[[], None], fail: Callable[[KVError], None]) -> None:
        """At once, unless it is to be held."""
        if self.reading is None:
            super().when_readable(ready, fail)
        else:
            self.reading.append((ready, fail))
