"""Stand-ins that several tests share: sockets without a network, and the smallest thing that speaks to the client
port."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from twisted.internet.abstract import FileDescriptor
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IProtocol, ITCPTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from zope.interface import implementer

from twistedkv.protocols.rpc import Peer

# --- a network in memory -------------------------------------------------------------------------------------------


@implementer(ITCPTransport)
class FakeSocket(FileDescriptor):
    """Twisted's own buffering and producer rules over a socket that takes as many bytes as ``room`` says."""

    def __init__(self, reactor: MemoryReactorClock, protocol: IProtocol, room: int = 1 << 40) -> None:
        super().__init__(reactor)
        self.protocol = protocol
        self.room = room
        self.limit = 1 << 40  # most bytes that one system call takes
        self.wire = bytearray()  # sent, not yet at the other end
        self.sends = 0  # system calls
        self.options: dict[str, bool] = {}
        self.connected = 1

    def connect(self) -> None:
        """What the reactor does with an accepted or established connection."""
        self.startReading()
        self.protocol.makeConnection(self)

    def writeSomeData(self, data: bytes) -> int:
        self.sends += 1
        taken = min(len(data), self.room, self.limit)
        self.room -= taken
        self.wire += data[:taken]
        return taken

    def abortConnection(self) -> None:
        if self.connected:
            self.reactor.callLater(0, self.connectionLost, Failure(ConnectionAborted()))

    def connectionLost(self, reason: Failure) -> None:
        if self.connected:
            super().connectionLost(reason)
            self.protocol.connectionLost(reason)

    def turn(self) -> bool:
        """Let the reactor write, once; whether there was something to do."""
        if not self.connected or self not in self.reactor.getWriters() or (not self.room and self._waiting()):
            return False
        end = self.doWrite()
        if end is not None:
            self.connectionLost(Failure(end))
        return True

    def _waiting(self) -> bool:
        return len(self.dataBuffer) > self.offset or bool(self._tempDataLen)

    def loseWriteConnection(self) -> None:
        self.loseConnection()

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", "192.0.2.7", 4711)

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", "192.0.2.1", 2379)

    def setTcpNoDelay(self, enabled: bool) -> None:
        self.options["nodelay"] = enabled

    def getTcpNoDelay(self) -> bool:
        return self.options.get("nodelay", False)

    def setTcpKeepAlive(self, enabled: bool) -> None:
        self.options["keepalive"] = enabled

    def getTcpKeepAlive(self) -> bool:
        return self.options.get("keepalive", False)


class Wire:
    """One connection between two protocols.

    Args:
        cut: most bytes that arrive in one read.
    """

    def __init__(self, reactor: MemoryReactorClock, client: IProtocol, server: IProtocol, cut: int = 65536) -> None:
        self.reactor = reactor
        self.cut = cut
        self.client = FakeSocket(reactor, client)
        self.server = FakeSocket(reactor, server)
        self.server.connect()
        self.client.connect()

    def pump(self) -> None:
        """Carry bytes, and the news of a close, until nothing moves."""
        moved = True
        while moved:
            self.reactor.advance(0)
            moved = self.client.turn() | self.server.turn()
            moved |= self._carry(self.client, self.server) | self._carry(self.server, self.client)

    def _carry(self, source: FakeSocket, target: FakeSocket) -> bool:
        if not target.connected or target not in self.reactor.getReaders():
            return False
        if source.wire:
            data = bytes(source.wire[: self.cut])
            del source.wire[: self.cut]
            target.protocol.dataReceived(data)
            return True
        if source.connected:
            return False
        target.connectionLost(Failure(ConnectionDone()))
        return True


class Recorder(Protocol):
    """Keeps what happens to it. ``reply``, if set, makes the answer to what came in."""

    def __init__(self, reply: Callable[[bytes], bytes] | None = None) -> None:
        self.reply = reply
        self.received = b""
        self.reads = 0
        self.made = 0
        self.lost: list[Failure] = []
        self.paused = False
        self.stopped = False

    def connectionMade(self) -> None:
        self.made += 1

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        self.reads += 1
        if self.reply is not None and self.transport is not None:
            self.transport.write(self.reply(data))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.append(reason)

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False

    def stopProducing(self) -> None:
        self.stopped = True


# --- gRPC without HTTP/2 ---------------------------------------------------------------------------------------------


class FakeGrpc:
    """The interface of ``GrpcServerConnection`` without a codec: echoes, and does what a few words tell it to.

    ``hold`` in the input opens a call that :meth:`answer` ends; ``quit`` makes it want to close; ``crash`` raises,
    which the real one never does.
    """

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.on_output: Callable[[], None] = lambda: None
        self.closing = False
        self.idle = True
        self.due_s: float | None = inf  # what keep_alive returns
        self.received = b""
        self.log: list[str] = []
        self._output = b""

    def start(self) -> None:
        self.log.append("start")
        self._output += b"<settings>"

    def receive(self, data: bytes, now_s: float) -> None:
        self.received += data
        self._output += data
        if b"hold" in data:
            self.idle = False
        if b"quit" in data:
            self.closing = True
        if b"crash" in data:
            raise RuntimeError("crash in receive")

    def answer(self, data: bytes) -> None:
        """A reply that comes from outside of :meth:`receive`."""
        self._output += data
        self.idle = True
        if "go_away" in self.log:
            self.closing = True
        self.on_output()

    def take_output(self) -> bytes:
        output, self._output = self._output, b""
        if b"crash-late" in output:
            raise RuntimeError("crash in take_output")
        return output

    def pause_output(self) -> None:
        self.log.append("pause")

    def resume_output(self) -> None:
        self.log.append("resume")

    def expire(self, now_s: float) -> None:
        self.log.append(f"expire {now_s:.2f}")

    def keep_alive(self, now_s: float) -> float | None:
        self.log.append(f"keep_alive {now_s:.2f}")
        return self.due_s

    def go_away(self) -> None:
        self.log.append("go_away")
        self.closing = self.idle

    def lost(self) -> None:
        self.log.append("lost")
