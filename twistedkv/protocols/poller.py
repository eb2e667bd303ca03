"""Reads many connections in one turn of the reactor, each at the cost of a call.

Whatever the reactor finds to be readable it calls by way of a logging context, with a look whether it is still open,
and reads by several calls more. For one request over one connection that is a tenth of all that its answer costs. But
an epoll instance is a file descriptor itself, readable when one of its own is (epoll(7)): so the reactor has one reader
here, and the connections behind it are read directly.

Their answers go out together. A client that gets one after the other while we are at work on the next sleeps and is
woken up for each, and to wake somebody up costs more than the rest of the system call, most of all in a virtual
machine. But nobody waits long for the requests of others.
"""

from __future__ import annotations

import select
from time import perf_counter
from typing import Any, Final, Protocol

from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.internet.main import CONNECTION_LOST
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from twistedkv.protocols.turn import Turn

MOST_HELD_S: Final = 0.001  # how long an answer may wait for what is done for other connections
SUPPORTED: Final = hasattr(select, "epoll")  # Linux; elsewhere the reactor reads as it always does

_log = Logger()


class Polled(Protocol):
    """A connection that is read."""

    def readable(self) -> None:
        """There is something to read, the end and a failure among that."""

    def lost(self, reason: Failure) -> None:
        """It is over, for a reason that is not its own."""


@implementer(IReadDescriptor)
class Poller:
    """The connections that are read in one go. Level-triggered: one that is not read to its end comes again.

    It has a descriptor, and a place in the reactor, only while there are connections.

    Args:
        reactor: has to be able to wait for file descriptors.
        turn: brackets what is read at once, so that answers go out together.
    """

    def __init__(self, reactor: IReactorFDSet, turn: Turn) -> None:
        self._reactor = reactor
        self._turn = turn
        self._epoll: Any = None  # select.epoll, which not every platform has
        self._connections: dict[int, Polled] = {}

    def add(self, descriptor: int, connection: Polled) -> None:
        """Tell ``connection`` whenever there is something to read. One that is here already stays as it is.

        Raises:
            OSError: the kernel does not take it; nothing has changed.
        """
        if descriptor in self._connections:
            return
        if self._epoll is None:
            self._epoll = select.epoll()
            try:
                self._epoll.register(descriptor, select.EPOLLIN)
                self._reactor.addReader(self)
            except BaseException:
                self._close()
                raise
        else:
            self._epoll.register(descriptor, select.EPOLLIN)
        self._connections[descriptor] = connection

    def remove(self, descriptor: int) -> None:
        """Do not any more. It has to be open still, or the kernel has forgotten it already."""
        if self._connections.pop(descriptor, None) is None:
            return
        if self._connections:
            try:
                self._epoll.unregister(descriptor)
            except OSError:
                return  # it is closed
        else:
            self._reactor.removeReader(self)
            self._close()

    def _close(self) -> None:
        self._epoll.close()
        self._epoll = None

    # The reactor's side.

    def fileno(self) -> int:
        """Of the epoll instance; -1 while there is none."""
        return -1 if self._epoll is None else int(self._epoll.fileno())

    def doRead(self) -> None:
        """Read every connection that has something now."""
        connections, turn = self._connections, self._turn
        with turn:
            flushed_s = perf_counter()
            for descriptor, _ in self._epoll.poll(0):
                connection = connections.get(descriptor)
                if connection is None:
                    continue  # what was read before has ended it
                try:
                    connection.readable()
                except Exception:
                    _log.failure("cannot read a connection")
                    self._drop(descriptor, connection)
                now_s = perf_counter()
                if now_s - flushed_s > MOST_HELD_S:
                    turn.flush()
                    flushed_s = now_s

    def logPrefix(self) -> str:
        return "connections"

    def connectionLost(self, reason: Failure) -> None:
        """The reactor stops, and does not know of the connections."""
        for connection in list(self._connections.values()):
            connection.lost(reason)

    def _drop(self, descriptor: int, connection: Polled) -> None:
        """End a connection that failed in a way it should not."""
        self.remove(descriptor)
        try:
            connection.lost(Failure(CONNECTION_LOST))
        except Exception:
            _log.failure("cannot end a connection")
