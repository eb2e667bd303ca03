"""A TCP connection whose writes reach the socket at once: the transport under both doors of the client port.

Twisted's own ``transport.write`` queues and sends on the next turn, when epoll says the socket is writable. That is one
system call and one turn more for every answer. Here a write goes to the socket at once as long as nothing is queued,
and only what it does not take is left to Twisted. What arrives is read by a :class:`Poller`, if there is one, up to the
end of the connection, which is left to Twisted again. :mod:`twistedkv.protocols.tls` puts encryption between the two
ends.

Towards TCP this is a protocol; towards the protocol inside it is a transport, a consumer and a push producer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from socket import socket
from typing import Any, Final, cast

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import (
    IConsumer,
    IDelayedCall,
    IProducer,
    IProtocol,
    IPullProducer,
    IPushProducer,
    IReactorTime,
    ITCPTransport,
)
from twisted.internet.main import CONNECTION_LOST
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.tcp import Connection
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from twistedkv.protocols.poller import Poller

READ_BYTES: Final = 65536  # at most, before other connections have their turn
CLOSE_TIMEOUT_S: Final = 10.0  # for a closing connection whose peer does not read what is still queued

_log = Logger()


@implementer(IPullProducer, IPushProducer)
class _Backlog:
    """Learns from TCP whether bytes wait in its buffer.

    Registered as a pull producer it is told exactly when the buffer has run empty, which a push producer is not.
    """

    def __init__(self, filled: Callable[[], None], drained: Callable[[], None]) -> None:
        self.pauseProducing = filled
        self.resumeProducing = drained

    def stopProducing(self) -> None:
        """The connection is lost, which the protocol hears of by itself."""


@implementer(ITCPTransport, IConsumer, IPushProducer)
class DirectTransport(Protocol):
    """Plain TCP for the protocol ``inner``.

    An exception out of ``inner`` is logged with its traceback and ends this connection, not more.

    Args:
        inner: gets this object as its transport once bytes can flow.
        clock: times the close of a connection whose peer does not read.
        on_closed: called last, once, when TCP is gone; also if ``inner`` was never connected.
        poller: reads the socket; None: Twisted does, as with everything that is no socket.
    """

    negotiatedProtocol: bytes | None = None  # ALPN's choice
    common_name: str | None = None  # of the peer's verified certificate
    secure = False
    disconnecting = False  # loseConnection was called; Twisted's line protocols look at this
    transport: Any  # a TCP transport; also an IConsumer, which Twisted's annotation does not say

    def __init__(
        self,
        inner: IProtocol,
        clock: IReactorTime,
        on_closed: Callable[[DirectTransport], None] | None = None,
        poller: Poller | None = None,
    ) -> None:
        self._inner = inner
        self._clock = clock
        self._on_closed = on_closed
        self._producer: IPushProducer | None = None
        self._backlog = _Backlog(self._filled, self._drained)
        self._write_some: Callable[[Any], int | BaseException] | None = None
        self._queued = False  # bytes wait in TCP's own buffer
        self._open = False  # inner may write
        self._inner_connected = False
        self._closing: IDelayedCall | None = None
        self._poller = poller
        self._descriptor = -1  # of the socket, where there is a poller
        self._receive: Callable[[int], bytes]  # of the same

    # --- towards TCP -------------------------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        self._start()
        self._connect_inner()

    def dataReceived(self, data: bytes) -> None:
        if not self.disconnecting:
            self._guard(self._inner.dataReceived, data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._stop_reading()
        self._poller = None  # the number of the descriptor may be another connection's from now on
        self._open, self.disconnecting = False, True
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None
        if self._inner_connected:
            self._inner_connected = False
            if self._producer is not None:
                self._guard(self._producer.stopProducing)
                self._producer = None
            self._guard(self._inner.connectionLost, reason)
        if self._on_closed is not None:
            self._on_closed(self)

    def _start(self) -> None:
        if self._poller is not None and isinstance(self.transport, Connection):
            self._use_socket(self._poller, self.transport.socket)
            return
        self._poller = None
        self._write_some = getattr(self.transport, "writeSomeData", None)
        if self._write_some is None:  # not a socket: all that is known is the high-water mark of its buffer
            self.transport.registerProducer(self._backlog, True)

    # --- the socket --------------------------------------------------------------------------------------------------

    def _use_socket(self, poller: Poller, used: socket) -> None:
        """Read and write ``used`` here, not by Twisted."""
        self._receive = used.recv
        send = used.send

        def write_some(data: Any) -> int | BaseException:
            try:
                return send(data)
            except BlockingIOError:
                return 0
            except OSError:
                return CONNECTION_LOST

        self._write_some = write_some
        self._descriptor = used.fileno()
        self._start_reading(poller)

    def _start_reading(self, poller: Poller) -> None:
        """Have the poller read the socket, or Twisted if that cannot, for there is no descriptor left for it."""
        try:
            poller.add(self._descriptor, self)
        except OSError:
            self._poller = None
            self.transport.startReading()
        else:
            self.transport.stopReading()

    def _stop_reading(self) -> None:
        """Have the poller forget the socket, where it knows it."""
        if self._poller is not None:
            self._poller.remove(self._descriptor)

    # The poller's side.

    def readable(self) -> None:
        """Read once. The end is left to Twisted, which meets it again."""
        try:
            data = self._receive(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.lost(Failure(CONNECTION_LOST))  # as Twisted's reactors do, which say no more either
            return
        if data:
            self.dataReceived(data)
        else:
            self._stop_reading()
            self._poller = None
            self.transport.startReading()

    def lost(self, reason: Failure) -> None:
        """The connection is over."""
        self.transport.connectionLost(reason)

    def _connect_inner(self) -> None:
        self._open = self._inner_connected = True
        self._guard(self._inner.makeConnection, self)

    def _guard(self, call: Callable[..., object], *arguments: object) -> None:
        """Call into the protocol; its failure is its connection's end and does not reach the reactor."""
        try:
            call(*arguments)
        except Exception:
            self._failed()

    def _failed(self) -> None:
        """End the connection of a protocol that has raised what is being handled."""
        _log.failure("closing the connection of {peer}", peer=self.getPeer())
        self.abortConnection()

    # --- bytes out ---------------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send ``data`` now, or as soon as what is queued before it has gone. After the close it is dropped."""
        if self._open and data:
            self._send(data)

    def writeSequence(self, data: Iterable[bytes]) -> None:
        self.write(b"".join(data))

    def _send(self, data: bytes) -> None:
        if self._queued or self._write_some is None:
            self.transport.write(data)
            return
        sent = self._write_some(data)
        if sent != len(data):
            self._queue(data, sent)

    def _queue(self, data: bytes, sent: int | BaseException) -> None:
        """Send on while the socket takes something, which may be less than all, then leave the rest to TCP."""
        rest = memoryview(data)
        while isinstance(sent, int) and sent > 0:
            rest = rest[sent:]
            if not rest:
                return
            sent = cast(Callable[[Any], "int | BaseException"], self._write_some)(rest)
        # A lost connection comes here too: TCP meets the same error on its next turn and ends the connection properly.
        self.transport.write(bytes(rest))
        self.transport.registerProducer(self._backlog, False)
        self._filled()

    def _filled(self) -> None:
        self._queued = True
        if self._producer is not None:
            self._guard(self._producer.pauseProducing)

    def _drained(self) -> None:
        if not self._queued:
            return  # TCP asks every pull producer once when it registers
        self._queued = False
        if self._write_some is not None:
            self.transport.unregisterProducer()
        if self._producer is not None:
            self._guard(self._producer.resumeProducing)

    # --- the transport that inner sees -------------------------------------------------------------------------------

    def loseConnection(self) -> None:
        """Close once everything written is sent and no producer is registered; at the latest after a time-out."""
        if self.disconnecting:
            return
        self.disconnecting = True
        if self._producer is None:
            self._finish()

    def abortConnection(self) -> None:
        """Close now; what is queued is lost."""
        self._open, self.disconnecting = False, True
        self._stop_reading()
        self.transport.abortConnection()

    def loseWriteConnection(self) -> None:
        """Close: half-open connections are of no use to the protocols of this server."""
        self.loseConnection()

    def _finish(self) -> None:
        self._open = False
        self._stop_reading()
        if self._queued:
            self._closing = self._clock.callLater(CLOSE_TIMEOUT_S, self._give_up)
        if self._write_some is None:
            self.transport.unregisterProducer()
        self.transport.loseConnection()

    def _give_up(self) -> None:
        self._closing = None
        self.transport.abortConnection()

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """Have ``producer`` paused while bytes wait for the peer to read.

        Raises:
            ValueError: it is a pull producer.
            RuntimeError: there is one already.
        """
        if not streaming:
            raise ValueError("only push producers are taken here")
        if self._producer is not None:
            raise RuntimeError("a producer is registered already")
        push = cast(IPushProducer, producer)
        if not self._open:
            push.stopProducing()
            return
        self._producer = push
        if self._queued:
            push.pauseProducing()

    def unregisterProducer(self) -> None:
        self._producer = None
        if self.disconnecting and self._open:
            self._finish()

    def pauseProducing(self) -> None:
        """Read no more from the peer until :meth:`resumeProducing`; it feels it by TCP's window."""
        if self._poller is None:
            self.transport.pauseProducing()
        else:
            self._stop_reading()

    def resumeProducing(self) -> None:
        if self.disconnecting:
            return
        if self._poller is None:
            self.transport.resumeProducing()
        else:
            self._start_reading(self._poller)

    def stopProducing(self) -> None:
        self.loseConnection()

    def getPeer(self) -> IPv4Address | IPv6Address:
        return cast("IPv4Address | IPv6Address", self.transport.getPeer())

    def getHost(self) -> IPv4Address | IPv6Address:
        return cast("IPv4Address | IPv6Address", self.transport.getHost())

    def getTcpNoDelay(self) -> bool:
        return bool(self.transport.getTcpNoDelay())

    def setTcpNoDelay(self, enabled: bool) -> None:
        self.transport.setTcpNoDelay(enabled)

    def getTcpKeepAlive(self) -> bool:
        return bool(self.transport.getTcpKeepAlive())

    def setTcpKeepAlive(self, enabled: bool) -> None:
        self.transport.setTcpKeepAlive(enabled)
