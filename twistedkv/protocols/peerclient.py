"""Connections to the peer ports of others: dialling, and one HTTP/1.1 exchange at a time.

A :class:`PeerClient` only cuts what comes into heads and bodies; its :class:`Listener` knows what was asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.interfaces import IAddress, IDelayedCall, IStreamClientEndpoint
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.python.failure import Failure

from twistedkv.optiontypes import Url
from twistedkv.peering import Reply
from twistedkv.protocols.http1wire import HEAD_END, MAX_HEAD_BYTES
from twistedkv.protocols.peerhttp import Body, EndlessBody, ProtocolError, ResponseHead, parse_response
from twistedkv.protocols.tls import ClientContext, HandshakeGate, TLSTransport
from twistedkv.protocols.transport import DirectTransport

DIAL_TIMEOUT_S: Final = 5.0
ANSWER_TIMEOUT_S: Final = 5.0  # for questions that a member answers at once
MAX_ANSWER_BYTES: Final = 16 * 1024 * 1024

Allows = Callable[[DirectTransport], bool]


class Listener(Protocol):
    """Hears of one connection. ``lost`` comes last, and exactly once."""

    def connected(self) -> None:
        """Requests can be written."""

    def head(self, head: ResponseHead) -> None:
        """A response begins."""

    def body(self, data: bytes) -> None:
        """A part of its body, never empty."""

    def end(self) -> None:
        """The response is over; another request may follow if its head did not say otherwise."""

    def lost(self, reason: Failure) -> None:
        """There is no connection, or none any more; a ProtocolError if the peer is to blame."""


class PeerClient(TwistedProtocol):
    """One connection. A ProtocolError that the listener raises ends it."""

    transport: Any  # a DirectTransport

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._held = b""  # of a head
        self._body: Body | None = None
        self._reason: Failure | None = None
        self._cancel: Callable[[], None] | None = None
        self._told = False
        self.allows: Allows | None = None

    def write(self, data: bytes) -> None:
        """Send a request or a part of one."""
        self.transport.write(data)

    def abort(self) -> None:
        """Give it up, connected or not; the listener hears of its end, at once if it was not connected."""
        if self.transport is not None:
            self.transport.abortConnection()
        elif self._cancel is not None:
            self._cancel()

    def drop(self) -> None:
        """Give it up; the listener hears nothing any more."""
        self._told = True
        self.abort()

    # --- towards the dialler -----------------------------------------------------------------------------------------

    def dialling(self, cancel: Callable[[], None]) -> None:
        """An attempt begins that ``cancel`` gives up."""
        self._cancel = cancel

    def failed(self, reason: Failure) -> None:
        """The attempt is over, or the connection."""
        if not self._told:
            self._told = True
            self._listener.lost(self._reason or reason)

    # --- towards the transport ---------------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)
        self.transport.setTcpKeepAlive(True)
        if self.allows is not None and not self.allows(self.transport):
            self._reason = Failure(ProtocolError("its certificate is not one of those that are allowed"))
            self.transport.abortConnection()
        else:
            self._listener.connected()

    def dataReceived(self, data: bytes) -> None:
        if self._reason is not None:
            return
        try:
            if self._body is not None and not self._held:
                data = self._feed(self._body, data)
            while data:
                data = self._begin(data)
        except ProtocolError:
            self._reason = Failure()
            self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.failed(reason)

    def _begin(self, data: bytes) -> bytes:
        """Take a head from ``data`` and the body behind it; what is left over."""
        data = self._held + data
        end = data.find(HEAD_END)
        if end < 0:
            if len(data) > MAX_HEAD_BYTES:
                raise ProtocolError("a response whose head does not end")
            self._held = data
            return b""
        self._held = b""
        head = parse_response(data[:end])
        data = data[end + len(HEAD_END) :]
        if head.status < 200:
            return data  # RFC 9110 §15.2: the real one follows
        self._listener.head(head)
        if head.body.done:
            self._listener.end()
            return data
        self._body = head.body
        return self._feed(head.body, data) if data else b""

    def _feed(self, body: Body, data: bytes) -> bytes:
        piece = body.feed(data)
        if piece:
            self._listener.body(piece)
        if not body.done:
            return b""
        self._body = None
        self._listener.end()
        return body.rest


class UrlPicker:
    """The URLs of one peer: one is in use until it fails, then the next (etcd rafthttp/urlpick.go)."""

    def __init__(self, urls: Sequence[Url]) -> None:
        self._urls = tuple(urls)
        self._next = 0

    @property
    def picked(self) -> Url:
        """The URL to try now."""
        return self._urls[self._next]

    def failed(self, url: Url) -> None:
        """``url`` did not work; whoever else found that out before has moved on already."""
        if url == self._urls[self._next]:
            self._next = (self._next + 1) % len(self._urls)


class Asker:
    """Asks one peer one thing at a time, on a connection that it keeps."""

    def __init__(self, dialler: Dialler, urls: UrlPicker) -> None:
        self._dialler = dialler
        self._urls = urls
        self._url = urls.picked
        self._client: PeerClient | None = None
        self._connected = False
        self._request: Callable[[Url], bytes] | None = None
        self._waiting: Deferred[Reply] | None = None
        self._timeout: IDelayedCall | None = None
        self._head: ResponseHead | None = None
        self._body = b""

    @property
    def busy(self) -> bool:
        """Whether an answer is due."""
        return self._waiting is not None

    def ask(self, request: Callable[[Url], bytes], timeout_s: float = ANSWER_TIMEOUT_S) -> Deferred[Reply]:
        """The answer to ``request``, which is made for the URL that is dialled.

        Fails if there is none in time, or the connection is lost; whether the peer has got the request is not known
        then.

        Raises:
            ValueError: an answer is due.
        """
        if self._waiting is not None:
            raise ValueError("the answer before is still due")
        waiting = self._waiting = Deferred(lambda _: self.close())
        self._request = request
        self._timeout = self._dialler.reactor.callLater(timeout_s, self.close)
        if self._connected and self._client is not None:
            self._client.write(request(self._url))
        else:
            self._url = self._urls.picked
            self._client = PeerClient(self)
            self._dialler.dial(self._url, self._client)
        return waiting

    def close(self) -> None:
        """Give up the connection, and with it the answer that is due."""
        client, self._client, self._connected = self._client, None, False
        self._fail(Failure(TimeoutError("no answer")))
        if client is not None:
            client.drop()

    # What the connection says.

    def connected(self) -> None:
        if self._client is not None and self._request is not None:
            self._connected = True
            self._client.write(self._request(self._url))

    def head(self, head: ResponseHead) -> None:
        if self._waiting is None:
            raise ProtocolError("an answer to nothing")
        self._head, self._body = head, b""

    def body(self, data: bytes) -> None:
        if len(self._body) + len(data) > MAX_ANSWER_BYTES:
            raise ProtocolError("an answer that is too long")
        self._body += data

    def end(self) -> None:
        head, waiting = self._head, self._taken()
        if head is None or waiting is None:
            return
        if head.close and self._client is not None:
            client, self._client, self._connected = self._client, None, False
            client.drop()
        waiting.callback(Reply(head.status, head.fields, self._body))

    def lost(self, reason: Failure) -> None:
        self._client, self._connected = None, False
        head = self._head
        if head is not None and isinstance(head.body, EndlessBody):
            self.end()
        else:
            self._fail(reason)

    def _fail(self, reason: Failure) -> None:
        waiting = self._taken()
        if waiting is not None:
            self._urls.failed(self._url)
            waiting.errback(reason)

    def _taken(self) -> Deferred[Reply] | None:
        if self._timeout is not None:
            if self._timeout.active():
                self._timeout.cancel()
            self._timeout = None
        waiting, self._waiting, self._head, self._request = self._waiting, None, None, None
        return waiting


class Dialler:
    """Makes connections to peers.

    Args:
        context: for https; made with ``http/1.1`` as the only protocol. ``None`` cannot dial https.
        allows: a last look at a verified peer, as ``--peer-cert-allowed-cn`` asks for.
    """

    def __init__(self, reactor: Any, context: ClientContext | None, allows: Allows | None = None) -> None:
        self.reactor = reactor
        self._context = context
        self._allows = allows

    def dial(self, url: Url, client: PeerClient) -> None:
        """Connect ``client``, whose listener hears what comes of it, never before this returns."""
        client.allows = self._allows
        _Attempt(self.reactor, client, url, self._context if url.secure else None).begin()


class _Attempt(Factory):
    noisy = False

    def __init__(self, reactor: Any, client: PeerClient, url: Url, context: ClientContext | None) -> None:
        self._reactor = reactor
        self._client = client
        self._url = url
        self._context = context
        self._tcp: Deferred[Any] | None = None
        self._transport: DirectTransport | None = None
        self._connecting: IDelayedCall | None = None

    def begin(self) -> None:
        self._client.dialling(self._give_up)
        self._connecting = self._reactor.callLater(0, self._connect)

    def _connect(self) -> None:
        self._connecting = None
        if self._url.secure and self._context is None:
            self._client.failed(Failure(ValueError(f"no certificate authority to verify {self._url} by")))
            return
        self._tcp = _endpoint(self._reactor, self._url).connect(self)
        self._tcp.addErrback(self._client.failed)

    def buildProtocol(self, addr: IAddress | None) -> DirectTransport:
        if self._context is None:
            self._transport = DirectTransport(self._client, self._reactor)
        else:
            self._transport = TLSTransport(
                self._client,
                self._reactor,
                self._context.wrap_for(self._url.host),
                HandshakeGate(),  # its own: nobody waits behind this handshake
                on_refused=self._client.failed,
                handshake_timeout_s=DIAL_TIMEOUT_S,
            )
        return self._transport

    def _give_up(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
            self._client.failed(Failure(CancelledError()))
        elif self._transport is not None:
            self._transport.abortConnection()
        elif self._tcp is not None:
            self._tcp.cancel()


def _endpoint(reactor: Any, url: Url) -> IStreamClientEndpoint:
    if isIPAddress(url.host):
        return TCP4ClientEndpoint(reactor, url.host, url.port, DIAL_TIMEOUT_S)
    if isIPv6Address(url.host):
        return TCP6ClientEndpoint(reactor, url.host, url.port, DIAL_TIMEOUT_S)
    return HostnameEndpoint(reactor, url.host, url.port, DIAL_TIMEOUT_S)
