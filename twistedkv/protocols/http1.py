"""HTTP/1.1 on the client port: a fast way for the requests that matter, twisted.web for all others.

A gateway put through twisted.web costs more than the put itself. So a connection begins here: plain requests for unary
gateway methods, the v2 API, ``/health`` and ``/version`` are parsed, called and answered in place, one after the other,
with one write for all answers of a turn. The first request that is anything else hands the connection over to
twisted.web (:mod:`twistedkv.protocols.web`), where it stays.

A connection that waits, as that of a long poll of the v2 API does, costs nothing but memory: one timer looks after all.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IProtocol, IPushProducer, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import datetimeToString
from zope.interface import implementer

from twistedkv.protocols.answers import CORS, STATUS_LINES, Answer, Fields
from twistedkv.protocols.endpoints import Endpoints
from twistedkv.protocols.gateway import Gateway, error_answer, too_long
from twistedkv.protocols.http1routes import Route, Routes
from twistedkv.protocols.http1wire import HEAD_END, MAX_HEAD_BYTES, Refusal, refuse_incomplete
from twistedkv.protocols.rpc import Peer
from twistedkv.protocols.turn import Turn
from twistedkv.protocols.v2site import V2Site
from twistedkv.protocols.web import AccessRules, WebChannel, WebFront

IDLE_TIMEOUT_S: Final = 300.0  # between requests
REQUEST_TIMEOUT_S: Final = 60.0  # from the first byte of a request to its last
CHECK_INTERVAL_S: Final = 10.0  # how late a time-out may be noticed
MAX_WAITING_BYTES: Final = 64 * 1024  # of pipelined requests, before the client is made to wait
BODY_SLACK_BYTES: Final = 64 * 1024  # a body may be twice as long as its message (base64, escapes), and this

_STARTS: Final = {status: line + CORS.block for status, line in STATUS_LINES.items()}
_CHUNKED: Final = b"Transfer-Encoding: chunked\r\n"
_CLOSE: Final = b"Connection: close\r\n\r\n"
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_LAST_CHUNK: Final = b"0\r\n\r\n"

_log = Logger()


class HTTPFront:
    """Everything that HTTP/1.1 on the client port leads to; :meth:`http1_protocol` is for the port.

    Args:
        clock: the reactor, for time-outs and dates.
        gateway: answers ``/v3/...``.
        endpoints: answer the rest.
        rules: who may ask from where.
        v2: answers ``/v2/...``; None: nobody does.
        turn: brackets what streams send, so that each connection writes once.
    """

    def __init__(
        self,
        clock: IReactorTime,
        gateway: Gateway,
        endpoints: Endpoints,
        rules: AccessRules | None = None,
        *,
        v2: V2Site | None = None,
        turn: Turn | None = None,
    ) -> None:
        self.clock = clock
        self.gateway = gateway
        self.endpoints = endpoints
        self.v2 = v2
        self.turn = turn or Turn(clock)
        self.max_body_bytes = 2 * gateway.max_message_bytes + BODY_SLACK_BYTES  # of a request of the gateway
        rules = rules or AccessRules()
        self.routes = Routes(gateway, self.max_body_bytes, v2) if rules.open_to_all else None
        self._web = WebFront(clock, gateway, endpoints, rules, self.max_body_bytes, v2)
        self._date = (-1, b"")  # second, header line
        self._open: dict[HTTP1Connection, None] = {}  # those with time-outs
        self._looking: IDelayedCall | None = None

    def http1_protocol(self, peer: Peer) -> IProtocol:
        """The protocol of one connection."""
        return HTTP1Connection(self, peer)

    def opened(self, connection: HTTP1Connection) -> None:
        """Have ``connection`` looked after from time to time."""
        self._open[connection] = None
        if self._looking is None:
            self._looking = self.clock.callLater(CHECK_INTERVAL_S, self._look)

    def closed(self, connection: HTTP1Connection) -> None:
        """Do not any more. One that is not looked after is no error."""
        self._open.pop(connection, None)
        if not self._open and self._looking is not None:
            self._looking.cancel()
            self._looking = None

    def _look(self) -> None:
        self._looking = self.clock.callLater(CHECK_INTERVAL_S, self._look)
        now_s = self.clock.seconds()
        for connection in list(self._open):
            connection.check(now_s)

    def web_channel(self, peer: Peer) -> WebChannel:
        """twisted.web's protocol for the rest of a connection."""
        return self._web.channel(peer)

    def encode(self, answer: Answer, close: bool, has_body: bool = True) -> bytes:
        """The bytes of an answer, or but for its body of one to a HEAD."""
        status, fields, body, measured = answer
        date = self._date_line()
        if measured and body and has_body and not close:  # as nearly all
            return b"%b%b%bContent-Length: %d\r\n\r\n%b" % (_STARTS[status], fields.block, date, len(body), body)
        if status == HTTPStatus.NO_CONTENT:
            framing = b""  # RFC 9110 §8.6
        elif measured:
            framing = b"Content-Length: %d\r\n" % len(body)
        elif has_body:
            framing = _CHUNKED
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        else:
            framing = b""
        end = _CLOSE if close else b"\r\n"
        return b"".join((_STARTS[status], fields.block, date, framing, end, body if has_body else b""))

    def encode_beginning(self, fields: Fields, close: bool) -> bytes:
        """The bytes of an answer before its chunks."""
        end = _CLOSE if close else b"\r\n"
        return b"".join((_STARTS[200], fields.block, self._date_line(), _CHUNKED, end))

    def _date_line(self) -> bytes:
        now_s = int(self.clock.seconds())
        second, line = self._date
        if now_s != second:
            line = b"Date: " + datetimeToString(now_s) + b"\r\n"
            self._date = (now_s, line)
        return line


@implementer(IPushProducer)
class HTTP1Connection(Protocol):
    """One connection. It is the outlet of its own requests, of which one at a time is being answered.

    Args:
        front: what is shared with other connections.
        peer: the other end.
    """

    transport: Any  # ITransport, IConsumer and IPushProducer

    def __init__(self, front: HTTPFront, peer: Peer) -> None:
        self._front = front
        self._peer = peer
        self._parts: list[bytes] = []  # received, not served
        self._size = 0  # of those
        self._needed = 0  # bytes before it is worth looking again
        self._out: list[bytes] = []  # what goes out in this turn, or waits for the client to read
        self._serving = False
        self._busy = False  # a request is being answered
        self._begun = False  # in pieces
        self._has_body = True  # its answer has one, since it is no HEAD
        self._cancel: Callable[[], None] | None = None  # when the client goes
        self._told = False  # that the body of the request that has begun is wanted
        self._close = False  # after the answer in progress
        self._closed = False
        self._blocked = False  # the client does not read
        self._waiting = False  # the client was told to wait
        self._since_s = 0.0  # when this request or this idleness began
        self._web: WebChannel | None = None

    @property
    def writable(self) -> bool:
        """False while the client does not read."""
        return not self._blocked

    def connectionMade(self) -> None:
        self._since_s = self._front.clock.seconds()
        self._front.opened(self)
        self.transport.registerProducer(self, True)

    def dataReceived(self, data: bytes) -> None:
        if self._web is not None:
            self._web.dataReceived(data)
            return
        if self._closed:
            return
        must_wait = self._busy or self._blocked
        if not self._size:
            self._since_s = self._front.clock.seconds()
            if not must_wait:
                self._serve(data)
                self._flush_soon()
                return
        self._parts.append(data)
        self._size += len(data)
        if must_wait:
            if self._size > MAX_WAITING_BYTES and not self._waiting:
                self._waiting = True
                self.transport.pauseProducing()
        elif self._size >= self._needed:
            self._serve(self._received())
            self._flush_soon()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._closed = True
        self._front.closed(self)
        if self._web is not None:
            self._web.connectionLost(reason)
        else:
            self._gone()

    def go_away(self) -> None:
        """Close after the answer in progress, at once if there is none."""
        if self._web is not None:
            self._web.go_away()
        elif self._begun:  # what would be the end of a stream, but to its client, that sees it cut off
            self._gone()
            self._end()
        elif self._busy:
            self._close = True
        else:
            self._end()

    def pauseProducing(self) -> None:
        self._blocked = True

    def resumeProducing(self) -> None:
        self._blocked = False
        self.flush()

    def stopProducing(self) -> None:
        self._blocked = True

    def check(self, now_s: float) -> None:
        """Close a connection that is idle, or that does not finish its request, or does not read its answers."""
        if self._busy:
            return
        passed_s = now_s - self._since_s
        if self._size and not self._blocked:
            if passed_s >= REQUEST_TIMEOUT_S:
                self.transport.abortConnection()
        elif passed_s >= IDLE_TIMEOUT_S:
            if self._blocked:
                self.transport.abortConnection()
            else:
                self._end()

    # The turn's side: what streams have sent goes out, and what waits behind one that has ended is served. That is not
    # done where they send, which may be in the middle of a change.

    def flush(self) -> None:
        if self._serving:
            return  # which ends with this
        if self._size and not self._busy and not self._closed and self._web is None:
            self._serve(self._received())
        self._flush()

    def abort(self) -> None:
        self.transport.abortConnection()

    # The outlet of the request in progress.

    def respond(self, answer: Answer) -> None:
        """Answer the request in progress, and go on with the next."""
        if not self._busy:
            return  # the client is gone
        self._answered()
        self._send(self._front.encode(answer, self._close, self._has_body))

    def begin(self, fields: Fields) -> None:
        if self._busy:
            self._begun = True
            self._send(self._front.encode_beginning(fields, self._close))

    def write(self, data: bytes) -> None:
        if self._busy:
            self._send(b"%x\r\n%b\r\n" % (len(data), data))

    def end(self) -> None:
        if self._busy:
            self._answered()
            self._send(_LAST_CHUNK)

    def _answered(self) -> None:
        self._cancel = None
        self._busy = False
        if self._begun:
            self._begun = False
            self._since_s = self._front.clock.seconds()

    def _gone(self) -> None:
        """Nobody waits any more for the answer in progress."""
        self._busy = self._begun = False
        cancel, self._cancel = self._cancel, None
        if cancel is not None:
            cancel()

    def _send(self, data: bytes) -> None:
        """Have ``data`` sent at the end of this turn."""
        self._out.append(data)
        if not self._serving:
            self._front.turn.mark(self)

    def _received(self) -> bytes:
        """Take all that has arrived."""
        data = b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        return data

    def _serve(self, data: bytes) -> None:
        """Answer what has arrived, as far as it can be answered now."""
        self._serving = True
        position, size = 0, len(data)
        try:
            while position < size and not self._busy and not self._blocked and not self._close:
                taken = self._serve_one(data, position)
                if not taken:
                    break
                position += taken
        except Refusal as refusal:
            self._refuse(refusal)
        self._serving = False
        if self._web is not None:
            return  # it has the rest
        if position < size:
            self._parts.append(data[position:] if position else data)
            self._size = size - position
        if position:
            self._since_s = self._front.clock.seconds()  # when what comes next began, or idleness

    def _serve_one(self, data: bytes, position: int) -> int:
        """Take the request at ``position``; its length in bytes, 0 if it is not complete or was handed over."""
        self._needed = 0
        head_end = data.find(HEAD_END, position)
        if head_end < 0 or head_end - position > MAX_HEAD_BYTES:
            refuse_incomplete(data[position : position + MAX_HEAD_BYTES + 1])
            return 0
        routes = self._front.routes
        route = None if routes is None else routes.find(data[position:head_end])
        if route is None:
            self._hand_over(data[position:])
            return 0
        begin = head_end + len(HEAD_END)
        end = begin + route.length
        if route.length > route.limit_bytes:
            self._close = self._busy = True
            self.respond(self._too_long(route))
            return len(data) - position
        if route.expects and not self._told:
            self._told = True
            self._out.append(_CONTINUE)
        if end > len(data):
            self._needed = end - position
            return 0
        self._told = False
        self._busy = True
        self._close = route.close
        self._answer(route, data[begin:end])
        return end - position

    def _answer(self, route: Route, body: bytes) -> None:
        cancel: Callable[[], None] | None = None
        if route.v2 is not None:
            self._has_body = route.v2.method != "HEAD"
            cancel = route.v2.serve(body, self._peer, self)
        else:
            self._has_body = True
            if route.method is None or route.head is None:
                self._ask(route.endpoint)
            elif (call := self._front.gateway.call(route.method, route.head, self._peer, body, self)) is not None:
                cancel = call.cancel
        if self._busy:
            self._cancel = cancel

    def _too_long(self, route: Route) -> Answer:
        self._has_body = True
        if route.v2 is not None and self._front.v2 is not None:
            return self._front.v2.too_long
        error = too_long(route.length, self._front.gateway.max_message_bytes)
        return error_answer(error.code, str(error))

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

    def _flush_soon(self) -> None:
        """Send what was answered, together with what others are, if there is a turn to its end."""
        if self._out or self._close or self._waiting:
            if self._front.turn.is_open:
                self._front.turn.mark(self)
            else:
                self._flush()

    def _flush(self) -> None:
        if self._closed or self._web is not None:
            return
        if self._blocked and (self._busy or not self._close):
            return  # what is not sent here is shared with others
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
        self._front.closed(self)
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
        if self._out:
            self.transport.write(b"".join(self._out))
            self._out.clear()
        self._closed = True
        self._front.closed(self)
        self.transport.unregisterProducer()
        self.transport.loseConnection()
