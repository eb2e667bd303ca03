"""A gRPC client on Twisted, for members that talk to members, for load generators and for tests.

:func:`connect` gives a :class:`GrpcClient` over plaintext or TLS. :meth:`GrpcClient.unary` is the comfortable form,
with a Deferred for each call; :meth:`GrpcClient.call` is the bare one, which costs no object per call beyond the
codec's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.interfaces import IAddress, IPushProducer, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from twistedkv.errors import Code, RPCError
from twistedkv.protocols.grpcclient import (
    ClientStream,
    GrpcClientConnection,
    Metadata,
    OnEnd,
    OnMessage,
    OnReply,
    UnaryCall,
)
from twistedkv.protocols.tls import ClientContext, HandshakeGate, TLSTransport
from twistedkv.protocols.transport import DirectTransport
from twistedkv.protocols.turn import Turn

CONNECT_TIMEOUT_S: Final = 10.0
CALL_TIMEOUT_S: Final = 10.0


@implementer(IPushProducer)
class GrpcClient(Protocol):
    """One connection to a gRPC server. Calls made in one turn of the reactor leave in one write.

    Args:
        authority: host and port as the server is called.
        turn: shared by the connections of one process; its own if None.
    """

    transport: Any  # a DirectTransport

    def __init__(self, reactor: Any, authority: str, secure: bool, turn: Turn | None = None) -> None:
        self._reactor = reactor
        self._turn = turn or Turn(reactor)
        self._grpc = GrpcClientConnection(authority, "https" if secure else "http")
        self._grpc.on_output = self._on_output
        self._blocked = False
        self._lost = False
        self.on_connected: Callable[[], None] | None = None  # called once, when calls can be made
        self._waiting: list[Deferred[None]] = []

    # --- calls -------------------------------------------------------------------------------------------------------

    def unary(
        self, path: str, message: bytes, timeout_s: float = CALL_TIMEOUT_S, metadata: Metadata = ()
    ) -> Deferred[bytes]:
        """The reply to one message. The server learns of the deadline too.

        Fails with :class:`RPCError`: what the server says; DEADLINE_EXCEEDED when it says nothing in time;
        UNAVAILABLE when the connection is gone.
        """

        def on_reply(code: int, text: str, body: bytes) -> None:
            if code == Code.OK:
                reply.callback(body)
            else:
                reply.errback(RPCError(Code(code) if code <= Code.UNAUTHENTICATED else Code.UNKNOWN, text))

        def give_up(_: Deferred[bytes]) -> None:
            call.on_reply = _ignore
            call.cancel()

        reply: Deferred[bytes] = Deferred(give_up)
        call = self.call(path, message, on_reply, metadata, timeout_s)
        return reply.addTimeout(timeout_s, self._reactor, _deadline_exceeded)

    def call(
        self, path: str, message: bytes, on_reply: OnReply, metadata: Metadata = (), timeout_s: float | None = None
    ) -> UnaryCall:
        """Send one message; ``on_reply`` gets the status code, its text and the reply, exactly once.

        On a closed connection it is called before this returns.
        """
        return self._grpc.call(path, message, on_reply, metadata, timeout_s)

    def open_stream(
        self, path: str, on_message: OnMessage, on_end: OnEnd, metadata: Metadata = (), timeout_s: float | None = None
    ) -> ClientStream:
        """A call with a stream on at least one side; ``on_end`` gets the status."""
        return self._grpc.open_stream(path, on_message, on_end, metadata, timeout_s)

    def close(self) -> Deferred[None]:
        """Close the connection; calls in progress fail. Fires when it is gone."""
        if self.transport is not None:
            self._end()
        return self.when_lost()

    def when_lost(self) -> Deferred[None]:
        """Fires when the connection is gone, whoever closed it."""
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        if self._lost:
            self._tell_waiting()
        return waiting

    # --- towards the transport ---------------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)
        self.transport.registerProducer(self, True)
        with self._turn:
            self._grpc.start()
            self._turn.mark(self)
        connected, self.on_connected = self.on_connected, None
        if connected is not None:
            connected()

    def dataReceived(self, data: bytes) -> None:
        with self._turn:
            self._grpc.receive(data, self._reactor.seconds())
            self._turn.mark(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._lost = True
        with self._turn:
            self._grpc.lost()
        self._tell_waiting()

    def _tell_waiting(self) -> None:
        told, self._waiting = self._waiting, []
        for waiting in told:
            waiting.callback(None)

    def _on_output(self) -> None:
        self._turn.mark(self)

    def flush(self) -> None:
        """Send what may go out, unless the server does not read."""
        if self._blocked or self._lost or self.transport is None:
            return
        output = self._grpc.take_output()
        if output:
            self.transport.write(output)
        if self._grpc.closing:
            self._end()

    def _end(self) -> None:
        self.transport.unregisterProducer()  # a transport with one waits for it before it closes
        self.transport.loseConnection()

    def abort(self) -> None:
        self.transport.abortConnection()

    def pauseProducing(self) -> None:
        self._blocked = True
        self._grpc.pause_output()

    def resumeProducing(self) -> None:
        self._blocked = False
        with self._turn:
            self._grpc.resume_output()
            self._turn.mark(self)

    def stopProducing(self) -> None:
        """The connection is lost; :meth:`connectionLost` follows."""


def connect(
    reactor: Any,
    host: str,
    port: int,
    context: ClientContext | None,
    turn: Turn | None = None,
    timeout_s: float = CONNECT_TIMEOUT_S,
) -> Deferred[GrpcClient]:
    """A connection to a gRPC server, ready for calls; its handshake is done. Cancelling gives it up.

    Args:
        host: a name or an address; with TLS the server's certificate must be valid for it.
        context: None speaks plaintext.
    """
    authority = f"[{host}]:{port}" if isIPv6Address(host) else f"{host}:{port}"
    client = GrpcClient(reactor, authority, context is not None, turn)
    return _Attempt(reactor, client, host, context, timeout_s).begin(port)


class _Attempt(Factory):
    """One connection in the making: TCP first, then TLS."""

    noisy = False

    def __init__(
        self, reactor: Any, client: GrpcClient, host: str, context: ClientContext | None, timeout_s: float
    ) -> None:
        self._reactor = reactor
        self._client = client
        self._host = host
        self._context = context
        self._timeout_s = timeout_s
        self._ready: Deferred[GrpcClient] = Deferred(self._give_up)
        self._tcp: Deferred[Any] | None = None
        self._transport: DirectTransport | None = None

    def begin(self, port: int) -> Deferred[GrpcClient]:
        """Fires with the client when it can call; fails with what TCP or TLS says."""
        self._client.on_connected = self._succeeded
        self._tcp = _endpoint(self._reactor, self._host, port, self._timeout_s).connect(self)
        self._tcp.addErrback(self._failed)
        return self._ready

    def buildProtocol(self, addr: IAddress | None) -> DirectTransport:
        if self._context is None:
            self._transport = DirectTransport(self._client, self._reactor)
        else:
            self._transport = TLSTransport(
                self._client,
                self._reactor,
                self._context.wrap_for(self._host),
                HandshakeGate(),  # its own: nobody waits behind this handshake
                on_refused=self._failed,
                handshake_timeout_s=self._timeout_s,
            )
        return self._transport

    def _succeeded(self) -> None:
        if not self._ready.called:
            self._ready.callback(self._client)

    def _failed(self, failure: Failure) -> None:
        if not self._ready.called:
            self._ready.errback(failure)

    def _give_up(self, cancelled: Deferred[GrpcClient]) -> None:
        if self._transport is not None:
            self._transport.abortConnection()
        elif self._tcp is not None:
            self._tcp.cancel()


def _endpoint(reactor: Any, host: str, port: int, timeout_s: float) -> IStreamClientEndpoint:
    if isIPAddress(host):
        return TCP4ClientEndpoint(reactor, host, port, timeout_s)
    if isIPv6Address(host):
        return TCP6ClientEndpoint(reactor, host, port, timeout_s)
    return HostnameEndpoint(reactor, host, port, timeout_s)


def _ignore(code: int, text: str, message: bytes) -> None:
    """The answer to a call that nobody waits for."""


def _deadline_exceeded(_: object, timeout_s: float) -> bytes:
    raise RPCError(Code.DEADLINE_EXCEEDED, f"no reply within {timeout_s:g} s")
