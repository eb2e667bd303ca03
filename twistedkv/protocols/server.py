"""The client port: accepts connections, finds out what they speak, and keeps them until they close or the server stops.

gRPC and HTTP/1.1 share one port. Over TLS, ALPN decides; in plaintext, and for a TLS client without ALPN, the first
bytes do (etcd does the same by cmux, ``server/embed/serve.go``). What is neither is closed without an answer. A
connection that does not say within ten seconds what it is, is closed too.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any, Final, Protocol, runtime_checkable

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IListeningPort,
    IProtocol,
    IPushProducer,
    IReactorFDSet,
)
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from twistedkv.protocols.poller import SUPPORTED, Poller
from twistedkv.protocols.rpc import Peer
from twistedkv.protocols.tls import HandshakeGate, ServerContext, TLSTransport
from twistedkv.protocols.transport import DirectTransport
from twistedkv.protocols.turn import Turn

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113 §3.4
HTTP1_METHODS: Final = tuple(
    method + b" "
    for method in (b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"TRACE", b"CONNECT")
)
OPENINGS: Final[dict[bytes | None, tuple[bytes, ...]]] = {  # what a connection may begin with, by ALPN's choice
    None: (PREFACE, *HTTP1_METHODS),
    b"h2": (PREFACE,),
    b"http/1.1": HTTP1_METHODS,
}
SILENCE_TIMEOUT_S: Final = 10.0  # from the accept, or the end of the handshake, to the first words
TICK_S: Final = 0.05  # how late a deadline may be noticed
KEEPALIVE_TICK_S: Final = 1.0  # how late a client's silence may be noticed
STOP_TIMEOUT_S: Final = 5.0
BACKLOG: Final = 1024

_log = Logger()


class GrpcConnection(Protocol):
    """What the port needs of ``GrpcServerConnection``: bytes in, bytes out, no I/O of its own."""

    on_output: Callable[[], None]
    closing: bool

    @property
    def idle(self) -> bool:
        """No call is open."""

    def start(self) -> None:
        """Queue what the server says first."""

    def receive(self, data: bytes, now_s: float) -> None:
        """Take bytes off the wire; whatever they are, it does not raise."""

    def take_output(self) -> bytes:
        """All that may go out now."""

    def pause_output(self) -> None:
        """The peer does not read what was sent."""

    def resume_output(self) -> None:
        """All that was sent is on its way."""

    def expire(self, now_s: float) -> None:
        """End the calls whose deadline has passed; after ``go_away`` also give up on a client that does not answer."""

    def keep_alive(self, now_s: float) -> float | None:
        """Ask a client that has been silent for long for a sign of life.

        Returns:
            When to call this again, ``inf`` for never; or None: the client did not answer, and is to be cut off.
        """

    def go_away(self) -> None:
        """Take no new calls; ``closing`` turns true when the last one has ended."""

    def lost(self) -> None:
        """The transport is gone."""


@runtime_checkable
class Drainable(Protocol):
    """An HTTP/1.1 protocol that can say goodbye. One that cannot is cut off when the stop's time-out has passed."""

    def go_away(self) -> None:
        """Close after the answer in progress, at once if there is none."""


@implementer(IPushProducer)
class ClientConnection(TwistedProtocol):
    """One accepted connection: silent first, then gRPC or HTTP/1.1 until it ends."""

    transport: Any  # a DirectTransport

    def __init__(self, port: ClientPort) -> None:
        self._port = port
        self._turn = port.turn
        self._seconds = port.reactor.seconds
        self._opening = b""  # what came before it was clear what is spoken
        self._silence: IDelayedCall | None = None
        self._grpc: GrpcConnection | None = None
        self._http1: IProtocol | None = None
        self._blocked = False  # the peer does not read

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)
        self.transport.setTcpKeepAlive(True)
        self._silence = self._port.reactor.callLater(SILENCE_TIMEOUT_S, self._silent)

    def dataReceived(self, data: bytes) -> None:
        grpc = self._grpc
        if grpc is not None:
            with self._turn:
                grpc.receive(data, self._seconds())
                self._turn.mark(self)
            if not grpc.idle:
                self._port.watch_deadlines()
        elif self._http1 is not None:
            with self._turn:
                self._http1.dataReceived(data)
        else:
            self._open(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._stop_waiting()
        if self._grpc is not None:
            self._port.grpc_connections.pop(self, None)
            with self._turn:  # cancelled calls may let others on other connections go on
                self._grpc.lost()
        elif self._http1 is not None:
            self._http1.connectionLost(reason)

    # --- what is spoken ----------------------------------------------------------------------------------------------

    def _open(self, data: bytes) -> None:
        self._opening += data
        opening = self._opening
        grpc_factory = self._port.grpc_factory
        for start in OPENINGS.get(self.transport.negotiatedProtocol, ()):
            if start is PREFACE and grpc_factory is None:
                continue
            if opening.startswith(start):
                self._stop_waiting()
                self._opening = b""
                if start is PREFACE and grpc_factory is not None:
                    self._open_grpc(opening, grpc_factory(self._peer()))
                else:
                    self._open_http1(opening)
                return
            if start.startswith(opening):
                return  # cut in the middle; the rest may decide
        _log.info("{peer} speaks nothing that is served here", peer=self.transport.getPeer())
        self._stop_waiting()
        self.transport.loseConnection()

    def _open_grpc(self, opening: bytes, grpc: GrpcConnection) -> None:
        self._grpc = grpc
        grpc.on_output = self._on_output
        self._port.grpc_connections[self] = None
        self.transport.registerProducer(self, True)
        grpc.start()
        self.dataReceived(opening)
        self._port.watch_keepalive(self.keep_alive(self._seconds()))
        if self._port.stopping:
            self.go_away()

    def _open_http1(self, opening: bytes) -> None:
        http1 = self._http1 = self._port.http1_factory(self._peer())
        http1.makeConnection(self.transport)
        self.dataReceived(opening)

    def _peer(self) -> Peer:
        address = self.transport.getPeer()
        host, port = (address.host, address.port) if isinstance(address, IPv4Address | IPv6Address) else ("", 0)
        return Peer(host, port, self.transport.common_name, self.transport.secure)

    def _silent(self) -> None:
        self._silence = None
        _log.info("{peer} connected and said nothing", peer=self.transport.getPeer())
        self.transport.abortConnection()

    def _stop_waiting(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None

    # --- gRPC's output -----------------------------------------------------------------------------------------------

    def _on_output(self) -> None:
        self._turn.mark(self)

    def flush(self) -> None:
        """Send what gRPC has to say, unless the peer does not read: then it stays where its size is bounded."""
        grpc = self._grpc
        if grpc is None or (self._blocked and not grpc.closing):
            return
        output = grpc.take_output()
        if output:
            self.transport.write(output)
        if grpc.closing:
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    def abort(self) -> None:
        self.transport.abortConnection()

    def pauseProducing(self) -> None:
        self._blocked = True
        if self._grpc is not None:
            self._grpc.pause_output()

    def resumeProducing(self) -> None:
        self._blocked = False
        if self._grpc is not None:
            with self._turn:
                self._grpc.resume_output()
                self._turn.mark(self)

    def stopProducing(self) -> None:
        """The connection is lost; :meth:`connectionLost` follows."""

    # --- time and the end --------------------------------------------------------------------------------------------

    def expire(self, now_s: float) -> bool:
        """End the calls whose deadline has passed, or a farewell that takes too long; whether more may fall due."""
        grpc = self._grpc
        if grpc is None or (grpc.idle and not self._port.stopping):
            return False
        grpc.expire(now_s)
        return self._port.stopping or not grpc.idle

    def keep_alive(self, now_s: float) -> float:
        """Ping the client if it was silent for long, or cut it off if it still is; when to look again."""
        due_s = inf if self._grpc is None else self._grpc.keep_alive(now_s)
        if due_s is not None:
            return due_s
        _log.info("{peer} is silent and does not answer a ping", peer=self.transport.getPeer())
        self.abort()
        return inf

    def go_away(self) -> None:
        """Close when the calls in progress have ended."""
        if self._grpc is not None:
            self._grpc.go_away()
            self._turn.mark(self)
        elif isinstance(self._http1, Drainable):
            self._http1.go_away()
        elif self._http1 is None:
            self.transport.abortConnection()


class ClientPort:
    """All listeners of one server for clients, and the connections that came through them.

    Args:
        grpc_factory: makes the codec of one gRPC connection; None: only HTTP/1.1 is spoken here.
        http1_factory: makes the protocol of one HTTP/1.1 connection; twisted.web's work.
        turn: shared with whoever answers calls.
        gate: bounds the TLS handshakes under way, over all listeners.
    """

    def __init__(
        self,
        reactor: Any,  # IReactorTCP and IReactorTime
        grpc_factory: Callable[[Peer], GrpcConnection] | None,
        http1_factory: Callable[[Peer], IProtocol],
        turn: Turn,
        gate: HandshakeGate | None = None,
    ) -> None:
        self.reactor = reactor
        self.grpc_factory = grpc_factory
        self.http1_factory = http1_factory
        self.turn = turn
        self.grpc_connections: dict[ClientConnection, None] = {}
        self.stopping = False
        self._said_goodbye = False
        self._gate = gate or HandshakeGate()
        self._poller = Poller(reactor, turn) if SUPPORTED and IReactorFDSet.providedBy(reactor) else None
        self._listeners: list[IListeningPort] = []
        self._open: dict[DirectTransport, ClientConnection] = {}
        self._ticking: IDelayedCall | None = None
        self._stopped: list[Deferred[None]] = []
        self._deadline: IDelayedCall | None = None
        self._keepalive: IDelayedCall | None = None

    def listen(self, host: str, port: int, context: ServerContext | None) -> IListeningPort:
        """Accept connections on one address; TLS if there is a ``context``, plaintext if it is None.

        Raises:
            CertificateError: the certificate files cannot be used.
            twisted.internet.error.CannotListenError: the address is taken.
        """
        if context is not None:
            context.current()
        listener: IListeningPort = self.reactor.listenTCP(port, ClientFactory(self, context), BACKLOG, host)
        self._listeners.append(listener)
        return listener

    def build(self, context: ServerContext | None) -> DirectTransport:
        """The two protocols of one new connection, the outer one of which is TCP's."""
        connection = ClientConnection(self)
        transport: DirectTransport
        if context is None:
            transport = DirectTransport(connection, self.reactor, self._closed, self._poller)
        else:
            transport = TLSTransport(
                connection, self.reactor, context.wrap, self._gate, self._closed, poller=self._poller
            )
        self._open[transport] = connection
        return transport

    def watch_deadlines(self) -> None:
        """Tick while calls are open; without any, the port costs nothing."""
        if self._ticking is None:
            self._ticking = self.reactor.callLater(TICK_S, self._tick)

    def _tick(self) -> None:
        self._ticking = None
        now_s = self.reactor.seconds()
        with self.turn:
            for connection in list(self.grpc_connections):  # a list, since an expired call may close its connection
                if connection.expire(now_s):
                    self.watch_deadlines()

    def watch_keepalive(self, due_s: float) -> None:
        """Look for silent clients at ``due_s``, unless that is to happen before anyway.

        One timer serves all connections: they have one interval, so a new one is never due before the others, and what
        a client says only puts its time off. Nothing is done when messages come; who is due is worked out when the
        timer runs out.
        """
        if self._keepalive is None and due_s < inf and self.grpc_connections:
            wait_s = max(due_s - self.reactor.seconds(), KEEPALIVE_TICK_S)
            self._keepalive = self.reactor.callLater(wait_s, self._keep_alive)

    def _keep_alive(self) -> None:
        self._keepalive = None
        now_s = self.reactor.seconds()
        with self.turn:
            dues_s = [connection.keep_alive(now_s) for connection in list(self.grpc_connections)]
        self.watch_keepalive(min(dues_s, default=inf))

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> Deferred[None]:
        """Stop listening, let calls in progress end, then close. Fires when every connection is gone, at the latest
        soon after ``timeout_s``.
        """
        stopped: Deferred[None] = Deferred()
        self._stopped.append(stopped)
        if not self.stopping:
            self.stopping = True
            closed = gatherResults([maybeDeferred(listener.stopListening) for listener in self._listeners])
            closed.addErrback(lambda failure: _log.failure("cannot stop listening", failure))
            closed.addCallback(lambda _: self._say_goodbye(timeout_s))
        else:
            self._finish()
        return stopped

    def _say_goodbye(self, timeout_s: float) -> None:
        self._said_goodbye = True
        self._deadline = self.reactor.callLater(timeout_s, self._cut_off)
        self.watch_deadlines()
        with self.turn:
            for transport, connection in list(self._open.items()):
                if connection.connected:
                    connection.go_away()
                else:
                    transport.abortConnection()  # in the middle of its handshake
        self._finish()

    def _cut_off(self) -> None:
        self._deadline = None
        _log.info("cutting off {count} connections", count=len(self._open))
        for transport in list(self._open):
            transport.abortConnection()
        self._finish()

    def _closed(self, transport: DirectTransport) -> None:
        self._open.pop(transport, None)
        if self.stopping:
            self._finish()

    def _finish(self) -> None:
        if self._open or not self._said_goodbye:
            return
        for timer in (self._deadline, self._ticking, self._keepalive):
            if timer is not None:
                timer.cancel()
        self._deadline = self._ticking = self._keepalive = None
        stopped, self._stopped = self._stopped, []
        for waiting in stopped:
            waiting.callback(None)


class ClientFactory(Factory):
    """Twisted's side of one listener."""

    noisy = False

    def __init__(self, port: ClientPort, context: ServerContext | None) -> None:
        self._port = port
        self._context = context

    def buildProtocol(self, addr: IAddress | None) -> DirectTransport | None:
        return None if self._port.stopping else self._port.build(self._context)
