"""One write a connection and turn: connections with output are remembered and flushed together at the turn's end.

Within one turn of the reactor a batch of committed entries may answer a hundred calls on ten connections. Each of those
connections should then encrypt once and call ``send`` once.
"""

from __future__ import annotations

from typing import Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

_log = Logger()


class Flushable(Protocol):
    """A connection that may have output waiting."""

    def flush(self) -> None:
        """Send what may go out now."""

    def abort(self) -> None:
        """End the connection after a failure of :meth:`flush`."""


class Turn:
    """Collects the connections with output. ``with turn:`` brackets nest; the end of the outermost one flushes."""

    def __init__(self, reactor: IReactorTime) -> None:
        self._reactor = reactor
        self._depth = 0
        self._marked: dict[Flushable, None] = {}
        self._scheduled = False

    def mark(self, connection: Flushable) -> None:
        """Have ``connection`` flushed: when the bracket ends, or outside of one as the reactor's next deed."""
        self._marked[connection] = None
        if not self._depth and not self._scheduled:
            self._schedule()

    def flush(self) -> None:
        """Flush who is marked by now, because what is done next takes long; others may be marked after it."""
        if self._marked:
            self._flush()

    @property
    def is_open(self) -> bool:
        """Whether there is a bracket now."""
        return self._depth > 0

    def __enter__(self) -> None:
        self._depth += 1

    def __exit__(self, *exception: object) -> None:
        if self._depth == 1 and self._marked:
            self._flush()
        self._depth -= 1

    def _schedule(self) -> None:
        self._scheduled = True
        self._reactor.callLater(0, self._on_next_turn)

    def _on_next_turn(self) -> None:
        self._scheduled = False
        self._depth += 1
        self.__exit__()

    def _flush(self) -> None:
        # One pass only. Who is marked by it, because a stream sent more when there was room, has to wait for the next
        # turn: a stream without end would otherwise keep the reactor in here.
        marked, self._marked = self._marked, {}
        for connection in marked:
            try:
                connection.flush()
            except Exception:
                _log.failure("cannot flush a connection")
                connection.abort()
        if self._marked and not self._scheduled:
            self._schedule()
