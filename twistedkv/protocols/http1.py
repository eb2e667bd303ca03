"""HTTP/1.1 on the client port: a fast way for the requests that matter, twisted.web for all others.

A gateway put through twisted.web costs more than the put itself. So a connection begins here: plain requests for unary
gateway methods, ``/health`` and ``/version`` are parsed, called and answered in place, one after the other, with one
write for all answers of a turn. The first request that is anything else hands the connection over to twisted.web
(:mod:`twistedkv.protocols.web`), where it stays.

Heads are remembered: a client that keeps its connection sends the same bytes again, and those lead to the method and
its metadata by one lookup.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IProtocol, IPushProducer, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import datetimeToString
from twisted.web.resource import IResource
from zope.interface import implementer

from twistedkv.errors import RPCError
from twistedkv.protocols.answers import CORS, STATUS_LINES, Answer, Fields
from twistedkv.protocols.endpoints import Endpoints
from twistedkv.protocols.gateway import Gateway, GatewayCall, error_answer, request_head, too_long
from twistedkv.protocols.http1wire import HEAD_END, MAX_HEAD_BYTES, Refusal, parse_head, refuse_incomplete
from twistedkv.protocols.rpc import Head, Kind, Method, Peer
from twistedkv.protocols.web import AccessRules, WebChannel, WebFront

IDLE_TIMEOUT_S: Final = 300.0  # between requests
REQUEST_TIMEOUT_S: Final = 60.0  # from the first byte of a request to its last
CHECK_INTERVAL_S: Final = 10.0  # how late a time-out may be noticed
MAX_WAITING_BYTES: Final = 64 * 1024  # of pipelined requests, before the client is made to wait
BODY_SLACK_BYTES: Final = 64 * 1024  # a body may be twice as long as its message (base64, escapes), and this

_MEMO_ENTRIES: Final = 512
_MEMO_HEAD_BYTES: Final = 2048
_FAST_ENDPOINTS: Final = ("/health", "/version")

_log = Logger()


class Route(NamedTuple):
    """What the head of a request asks for."""

    method: Method | None  # of the gateway
    head: Head | None  # for that method
    endpoint: str  # else, a plain endpoint
    length: int
    close: bool


class HTTPFront:
    """Everything that HTTP/1.1 on the client port leads to; :meth:`http1_protocol` is for the port.

    Args:
        clock: the reactor, for time-outs and dates.
        gateway: answers ``/v3/...``.
        endpoints: answer the rest.
        rules: who may ask from where.
        children: resources for further first path segments, like ``v2``.
    """

    def __init__(
        self,
        clock: IReactorTime,
        gateway: Gateway,
        endpoints: Endpoints,
        rules: AccessRules | None = None,
        children: Iterable[tuple[bytes, IResource]] = (),
    ) -> None:
        self.clock = clock
        self.gateway = gateway
        self.endpoints = endpoints
        self.rules = rules or AccessRules()
        self.max_body_bytes = 2 * gateway.max_message_bytes + BODY_SLACK_BYTES
        self._web = WebFront(clock, gateway, endpoints, self.rules, self.max_body_bytes, children)
        self._routes: dict[bytes, Route] = {}
        self._date = (-1, b"")  # second, header line

    def http1_protocol(self, peer: Peer) -> IProtocol:
        """The protocol of one connection."""
        return HTTP1Connection(self, peer)

    def web_channel(self, peer: Peer) -> WebChannel:
        """twisted.web's protocol for the rest of a connection."""
        return self._web.channel(peer)

    def route(self, block: bytes, peer: Peer) -> Route | None:
        """Where a head leads; None to twisted.web.

        Raises:
            Refusal: nowhere.
        """
        route = self._routes.get(block)
        if route is not None:
            return route
        request = parse_head(block)
        if not request.plain or not self.rules.open_to_all:
            return None
        endpoint, method, head = "", None, None
        if request.method == "GET" and request.target in _FAST_ENDPOINTS and not request.length:
            endpoint = request.target
        elif request.method == "POST" and (method := self.gateway.methods.get(request.target)) is not None:
            if method.kind is not Kind.UNARY:
                return None
            try:
                head = request_head(method.path, request.fields)
            except RPCError:
                return None
        else:
            return None
        route = Route(method, head, endpoint, request.length, request.close)
        if len(block) <= _MEMO_HEAD_BYTES:
            if len(self._routes) >= _MEMO_ENTRIES:
                self._routes.clear()
            self._routes[block] = route
        return route

    def encode(self, answer: Answer, close: bool) -> bytes:
        """The bytes of an answer."""
        now_s = int(self.clock.seconds())
        second, date = self._date
        if now_s != second:
            date = b"Date: " + datetimeToString(now_s) + b"\r\n"
            self._date = (now_s, date)
        length = b"Content-Length: %d\r\n" % len(answer.body)
        last = b"Connection: close\r\n\r\n" if close else b"\r\n"
        head = STATUS_LINES[answer.status], CORS.block, answer.fields.block, date, length, last
        return b"".join((*head, answer.body))


@implementer(IPushProducer)
class HTTP1Connection(Protocol):
    """One connection. It is the outlet of its own requests, of which one at a time is being answered.

    Args:
        front: what is shared with other connections.
        peer: the other end.
    """

    transport: Any  # ITransport, IConsumer and IPushProducer
    writable = True  # what is answered here is never answered in pieces

    def __init__(self, front: HTTPFront, peer: Peer) -> None:
        self._front = front
        self._peer = peer
        self._parts: list[bytes] = []  # received, not served
        self._size = 0  # of those
        self._needed = 0  # bytes before it is worth looking again
        self._out: list[bytes] = []  # answers of this turn
        self._serving = False
        self._busy = False  # a request is being answered
        self._call: GatewayCall | None = None
        self._close = False  # after the answer in progress
        self._closed = False
        self._blocked = False  # the client does not read
        self._waiting = False  # the client was told to wait
        self._since_s = 0.0  # when this request or this idleness began
        self._timer: IDelayedCall | None = None
        self._web: WebChannel | None = None

    def connectionMade(self) -> None:
        self._since_s = self._front.clock.seconds()
        self._timer = self._front.clock.callLater(CHECK_INTERVAL_S, self._check)
        self.transport.registerProducer(self, True)

    def dataReceived(self, data: bytes) -> None:
        if self._web is not None:
            self._web.dataReceived(data)
            return
        if self._closed:
            return
        if not self._size:
            self._since_s = self._front.clock.seconds()
        self._parts.append(data)
        self._size += len(data)
        if self._busy or self._blocked:
            if self._size > MAX_WAITING_BYTES and not self._waiting:
                self._waiting = True
                self.transport.pauseProducing()
        elif self._size >= self._needed:
            self._serve()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._closed = True
        self._stop_timer()
        if self._web is not None:
            self._web.connectionLost(reason)
        elif self._call is not None:
            call, self._call = self._call, None
            call.cancel()
        self._busy = False

    def go_away(self) -> None:
        """Close after the answer in progress, at once if there is none."""
        if self._web is not None:
            self._web.go_away()
        elif self._busy:
            self._close = True
        else:
            self._end()

    def pauseProducing(self) -> None:
        self._blocked = True

    def resumeProducing(self) -> None:
        self._blocked = False
        if not self._busy:
            self._serve()

    def stopProducing(self) -> None:
        self._blocked = True

    # The outlet of a unary call. Streams are answered by twisted.web.

    def respond(self, answer: Answer) -> None:
        """Answer the request in progress, and go on with the next."""
        if not self._busy:
            return  # the client is gone
        self._busy = False
        self._call = None
        self._out.append(self._front.encode(answer, self._close))
        if not self._serving:
            self._serve()

    def begin(self, fields: Fields) -> None:
        raise ValueError("streams are answered by twisted.web")

    def write(self, data: bytes) -> None:
        raise ValueError("streams are answered by twisted.web")

    def end(self) -> None:
        raise ValueError("streams are answered by twisted.web")

    def _serve(self) -> None:
        """Answer what has arrived, as far as it can be answered now."""
        self._serving = True
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        position = 0
        try:
            while not self._busy and not self._blocked and not self._close and position < len(data):
                taken = self._serve_one(data, position)
                if not taken:
                    break
                position += taken
        except Refusal as refusal:
            self._refuse(refusal)
        self._serving = False
        if self._web is not None:
            return  # it has the rest
        if position < len(data):
            self._parts.insert(0, data[position:])
        self._size = sum(map(len, self._parts))
        if position:
            self._since_s = self._front.clock.seconds()
        self._flush()

    def _serve_one(self, data: bytes, position: int) -> int:
        """Take the request at ``position``; its length in bytes, 0 if it is not complete or was handed over."""
        self._needed = 0
        head_end = data.find(HEAD_END, position)
        if head_end < 0 or head_end - position > MAX_HEAD_BYTES:
            refuse_incomplete(data[position : position + MAX_HEAD_BYTES + 1])
            return 0
        route = self._front.route(data[position:head_end], self._peer)
        if route is None:
            self._hand_over(data[position:])
            return 0
        begin = head_end + len(HEAD_END)
        end = begin + route.length
        if route.length > self._front.max_body_bytes:
            self._close = self._busy = True
            error = too_long(route.length, self._front.gateway.max_message_bytes)
            self.respond(error_answer(error.code, str(error)))
            return len(data) - position
        if end > len(data):
            self._needed = end - position
            return 0
        self._busy = True
        self._close = route.close
        if route.method is not None and route.head is not None:
            call = self._front.gateway.call(route.method, route.head, self._peer, data[begin:end], self)
            if call is not None and not call.done:
                self._call = call
        else:
            self._ask(route.endpoint)
        return end - position

    def _ask(self, endpoint: str) -> None:
        answer: Deferred[Answer] = self._front.endpoints.answer("GET", endpoint, {})
        answer.addCallback(self.respond)
        answer.addErrback(self._failed)

    def _failed(self, failure: Failure) -> None:
        _log.failure("cannot answer a request", failure)
        self.transport.abortConnection()

    def _refuse(self, refusal: Refusal) -> None:
        """Go's answer to what it cannot parse, and the end of the connection."""
        lines = (
            STATUS_LINES[refusal.status],
            b"Content-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n",
            refusal.text.encode("ascii"),
        )
        self._out.append(b"".join(lines))
        self._close = True

    def _flush(self) -> None:
        if self._closed:
            return
        if self._out:
            out = self._out[0] if len(self._out) == 1 else b"".join(self._out)
            self._out.clear()
            self.transport.write(out)
        if self._close and not self._busy:
            self._end()
        elif self._waiting and not self._busy and not self._blocked:
            self._waiting = False
            self.transport.resumeProducing()

    def _hand_over(self, data: bytes) -> None:
        """Give the connection to twisted.web, beginning with ``data``."""
        self._stop_timer()
        if self._out:
            self.transport.write(b"".join(self._out))
            self._out.clear()
        self.transport.unregisterProducer()
        if self._waiting:
            self._waiting = False
            self.transport.resumeProducing()
        self._web = self._front.web_channel(self._peer)
        self._web.makeConnection(self.transport)
        self._web.dataReceived(data)

    def _end(self) -> None:
        self._closed = True
        self._stop_timer()
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def _check(self) -> None:
        """Close a connection that is idle, or that does not finish its request, or does not read its answers."""
        self._timer = self._front.clock.callLater(CHECK_INTERVAL_S, self._check)
        if self._busy:
            return
        passed_s = self._front.clock.seconds() - self._since_s
        if self._size and not self._blocked:
            if passed_s >= REQUEST_TIMEOUT_S:
                self.transport.abortConnection()
        elif passed_s >= IDLE_TIMEOUT_S:
            if self._blocked:
                self.transport.abortConnection()
            else:
                self._end()

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
