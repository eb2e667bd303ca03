"""gRPC, the server's side of a connection: requests become calls, replies become frames. No I/O.

The usual request, a HEADERS frame with headers seen before and one DATA frame with one message and END_STREAM, both in
one read, is taken in one step by ``_take_whole``: one :class:`GrpcCall` is made and no other object. Its reply, where
it fits the windows, is written in one step as well. Everything else goes frame by frame through
:class:`ServerConnection`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Final, Protocol

from twistedkv.errors import Code, KVError, RPCError
from twistedkv.protocols import frames
from twistedkv.protocols.frames import END_HEADERS, END_STREAM, HEAD, WORD, ErrorCode, StreamError
from twistedkv.protocols.grpcframes import PREFIX_BYTES, WHOLE, MessageReader, frame_message
from twistedkv.protocols.grpcheads import Request, parse_request, trailers, trailers_only
from twistedkv.protocols.headers import Fields
from twistedkv.protocols.http2 import ServerConnection
from twistedkv.protocols.keepalive import DEFAULT_KEEPALIVE, Keepalive
from twistedkv.protocols.limits import Limits, calm_down
from twistedkv.protocols.rpc import Call, CallObserver, MethodTable, Peer
from twistedkv.protocols.status import DEADLINE_EXCEEDED_TEXT, LogFailure, status_of
from twistedkv.protocols.streams import Stream

_REQUESTS: Final = 256  # parsed requests remembered per connection, and
_REQUEST_BYTES: Final = 2048  # the most that the headers of one may add up to

_WHOLE_PACK: Final = WHOLE.pack
_WHOLE_UNPACK: Final = WHOLE.unpack_from
_HEAD_UNPACK: Final = HEAD.unpack_from
_WORD_PACK: Final = WORD.pack

_OK_BLOCK: Final = trailers(0, "")
_OK_START: Final = HEAD.pack(len(_OK_BLOCK) << 8 | frames.HEADERS, END_HEADERS | END_STREAM, 0)[:5]


class RPCObserver(CallObserver, Protocol):
    """Who counts calls and bytes."""

    def received(self, size: int) -> None:
        """So many bytes came from the wire."""

    def sent(self, size: int) -> None:
        """So many bytes go to the wire."""


class GrpcCall(Call, Stream):
    """One RPC over HTTP/2: the call as its handler sees it, and the stream as the connection keeps it."""

    __slots__ = ("connection", "request", "stream_id")

    connection: GrpcServerConnection
    request: Request
    stream_id: int

    remote_closed = True  # of a quick call; the others start with what their HEADERS say
    deadline_s: float = inf
    _headed = False  # the answer's HEADERS went out
    _reader: MessageReader | None = None  # of a call that is not quick
    _held_bytes = 0  # what of the request waits in the reader
    _body_bytes = 0  # all that came of it, for a content-length
    _handed = False  # a whole request reached its handler
    _half_closed = False  # on_half_close was called
    _paused = False
    _delivering = False

    # --- what the handler calls ---------------------------------------------------------------------

    @property
    def writable(self) -> bool:
        return not (self.stuffed or self.connection.flow.paused)

    def reply(self, message: bytes) -> None:
        if self.done:
            return
        self.done = True
        connection = self.connection
        flow = connection.flow
        size = len(message) + PREFIX_BYTES
        if size <= flow.quick_bytes and size <= flow.window and self.remote_closed and not self._headed:
            flow.window -= size
            request = self.request
            stream_id = self.stream_id
            word = _WORD_PACK(stream_id)
            flow.out += (
                request.answer_start,
                word,
                request.answer_block,
                _WHOLE_PACK(size << 8, 0, stream_id, 0, size - PREFIX_BYTES),
                message,
                _OK_START,
                word,
                _OK_BLOCK,
            )
            del connection.streams[stream_id]
            if not connection.quiet:
                connection.signal()
        else:
            self._send_head()
            flow.send_data(self, frame_message(message))
            connection.end(self, _OK_BLOCK)
        if self._reader is not None:
            self._release()
        if connection.observer is not None:
            connection.observer.handled(self, 0)

    def fail(self, error: BaseException) -> None:
        if not self.done:
            self._finish(*status_of(error, self.head.path, self.connection.log_failure, not self.request.whole))

    def send(self, message: bytes) -> None:
        if self.done:
            return
        connection = self.connection
        if not self._headed:
            self._send_head()
        connection.flow.send_data(self, frame_message(message))
        if connection.observer is not None:
            connection.observer.message_sent(self)
        if not connection.quiet:
            connection.signal()

    def finish(self) -> None:
        if not self.done:
            self._finish(0, "")

    def interrupt(self, error: KVError) -> None:
        self.cut(int(error.code), error.text)

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        if self._reader is not None and not (self.done or self._delivering):
            self._deliver(self._reader)

    # --- what the connection calls ------------------------------------------------------------------

    def begin(self) -> None:
        """Give a call of a streaming method to its handler; others wait for their message."""
        self._reader = MessageReader(self.connection.max_message_bytes, self.request.gzip)
        if not self.request.whole:
            self._run(self.method.handler, self)
        if self.remote_closed and not self.done:
            self.data_received(b"")

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        if self.done or reader is None:
            return  # a late request body: it gets no credit
        length = self.request.content_length
        if length is not None:
            self._body_bytes += len(data)
            if self._body_bytes > length or (self.remote_closed and self._body_bytes != length):
                raise StreamError(self.stream_id, ErrorCode.PROTOCOL_ERROR, "body differs from content-length")
        reader.feed(data)
        self._account(len(reader))
        self._deliver(reader)

    def trailers_received(self) -> None:
        self.data_received(b"")

    def closed(self, code: int) -> None:
        self._abandon(Code.CANCELLED)

    def room(self) -> None:
        if self.on_writable is not None and not self.done:
            self._run(self.on_writable)

    def cut(self, code: int, text: str) -> None:
        """End the call with a status that its handler did not choose, and tell it."""
        if not self.done:
            self._finish(code, text)
            if self.on_cancel is not None:
                self._run(self.on_cancel)

    def time_out(self) -> None:
        """The deadline has come: end the call now, whatever of its answer still waits for the client.

        Where some does, its last message may be out in part, and trailers would make that a broken answer. grpc-go and
        grpc-core take a reset with CANCEL after the deadline for DEADLINE_EXCEEDED.
        """
        if self.queue:
            self.connection.reset(self, ErrorCode.CANCEL)
            self._abandon(Code.DEADLINE_EXCEEDED)
        else:
            self.cut(int(Code.DEADLINE_EXCEEDED), DEADLINE_EXCEEDED_TEXT)

    def broke(self, error: Exception) -> None:
        """The handler, or a callback of it, raised ``error``."""
        if self.done:
            self.connection.log_failure(error, self.head.path)
        else:
            self.fail(error)

    # --- private ------------------------------------------------------------------------------------

    def _run(self, callback: Callable[..., None], *args: object) -> None:
        try:
            callback(*args)
        except Exception as error:
            self.broke(error)

    def _send_head(self) -> None:
        if not self._headed:
            self._headed = True
            self.connection.flow.send_headers(self.stream_id, self.request.answer_block, 0)

    def _finish(self, code: int, text: str) -> None:
        self.done = True
        self._release()
        tail = trailers(code, text) if self._headed else trailers_only(self.request.content_type, code, text)
        connection = self.connection
        connection.end(self, tail)
        if connection.observer is not None:
            connection.observer.handled(self, code)

    def _abandon(self, code: Code) -> None:
        """The stream is gone before the call had ended: count it as ``code``, and tell the handler."""
        if not self.done:
            self.done = True
            self._release()
            observer = self.connection.observer
            if observer is not None:
                observer.handled(self, int(code))
            if self.on_cancel is not None:
                self._run(self.on_cancel)

    def _release(self) -> None:
        self._reader = None
        self._account(0)

    def _account(self, held_bytes: int) -> None:
        """Tell the connection how much of the request waits here."""
        more = held_bytes - self._held_bytes
        self._held_bytes = held_bytes
        self.connection.hold(more)

    def _deliver(self, reader: MessageReader) -> None:
        """Hand on what came: whole messages, then the end; and give credit for it unless the call is paused."""
        self._delivering = True
        try:
            if self.request.whole:
                self._deliver_request(reader)
            else:
                self._deliver_messages(reader)
        except RPCError as error:
            # grpc-go: a body that ends inside a message is UNKNOWN to a unary handler, and INTERNAL to a stream's.
            self.cut(int(error.code), error.text)
        finally:
            self._delivering = False
        if not self.done:
            self._account(len(reader))
            if not self._paused:
                self.connection.credit(self)

    def _deliver_request(self, reader: MessageReader) -> None:
        """Start the handler once the request is all there; grpc-go ignores what follows the message, so do we."""
        if not self._handed:
            message = reader.next()
            if message is not None:
                self._handed = True
                self.message = message
        if not self.remote_closed:
            return
        if self._handed:
            self._run(self.method.handler, self)
        elif len(reader):
            raise RPCError(Code.UNKNOWN, "unexpected EOF")
        else:
            raise RPCError(
                Code.INTERNAL, "cardinality violation: received no request message from non-client-streaming RPC"
            )

    def _deliver_messages(self, reader: MessageReader) -> None:
        while not (self._paused or self.done):
            message = reader.next()
            if message is None:
                break
            if self.connection.observer is not None:
                self.connection.observer.message_received(self)
            if self.on_message is not None:
                self._run(self.on_message, message)
        if self.remote_closed and not (self._paused or self.done or self._half_closed):
            if len(reader):
                raise RPCError(Code.INTERNAL, "unexpected EOF")
            self._half_closed = True
            if self.on_half_close is not None:
                self._run(self.on_half_close)


class GrpcServerConnection(ServerConnection[Request]):
    """A gRPC server's end of one HTTP/2 connection, without I/O.

    The transport calls :meth:`start` once, :meth:`receive` with what it reads, and writes what :meth:`take_output`
    gives: after each :meth:`receive`, and whenever ``on_output`` is called. It closes once ``closing`` is set and all
    is written.

    Args:
        methods: what can be called.
        peer: given to every call.
        limits: what the peer may cost us.
        max_message_bytes: the longest request message.
        log_failure: told of exceptions of handlers that are no refusals.
        observer: told of calls and bytes.
        keepalive: how often the client may ping, and when it is pinged.
    """

    def __init__(
        self,
        methods: MethodTable,
        peer: Peer,
        limits: Limits,
        max_message_bytes: int,
        log_failure: LogFailure,
        observer: RPCObserver | None = None,
        keepalive: Keepalive = DEFAULT_KEEPALIVE,
    ) -> None:
        super().__init__(limits, keepalive)
        self.max_message_bytes = max_message_bytes
        self.log_failure = log_failure
        self.observer = observer
        self._methods = methods
        self._peer = peer
        self._requests: dict[Fields, Request] = {}
        self._held_bytes = 0  # request bytes that no handler got yet, of all calls
        self._soonest_s = inf  # no open call's deadline is before it
        # The longest message of a request that is taken in one step: it came in one frame.
        self._quick_bytes = min(max_message_bytes, frames.DEFAULT_FRAME_BYTES - PREFIX_BYTES)

    def receive(self, data: bytes, now_s: float) -> None:
        if self.observer is not None:
            self.observer.received(len(data))
        super().receive(data, now_s)

    def take_output(self) -> bytes:
        data = super().take_output()
        if self.observer is not None:
            self.observer.sent(len(data))
        return data

    def expire(self, now_s: float) -> None:
        """End the calls whose deadline has come; looks at them only when one may be due."""
        super().expire(now_s)
        if now_s < self._soonest_s:
            return
        calls = [stream for stream in self.streams.values() if isinstance(stream, GrpcCall)]
        self._soonest_s = min((call.deadline_s for call in calls if call.deadline_s > now_s), default=inf)
        for call in calls:
            if call.deadline_s <= now_s:
                call.time_out()

    def hold(self, size: int) -> None:
        """Count ``size`` more, or fewer, bytes of requests that wait.

        Raises:
            ProtocolError: they are too many.
        """
        self._held_bytes += size
        if size > 0 and self._held_bytes > self.limits.held_bytes:
            raise calm_down("too many incomplete requests")

    def _take_whole(self, data: bytes, at: int, end: int) -> int:
        streams = self.streams
        memo = self._memo
        limits = self.limits
        quick_bytes = self._quick_bytes
        peer = self._peer
        arrived = 0
        while end - at > frames.HEAD_BYTES:
            word, flags, stream_id = _HEAD_UNPACK(data, at)
            body = at + frames.HEAD_BYTES + (word >> 8)
            if word & 0xFF != frames.HEADERS or flags != END_HEADERS or body + WHOLE.size > end:
                break
            data_word, data_flags, data_id, packed, size = _WHOLE_UNPACK(data, body)
            stop = body + WHOLE.size + size
            if (
                data_word != (size + PREFIX_BYTES) << 8  # a DATA frame, of this message alone
                or data_flags != END_STREAM
                or data_id != stream_id
                or packed
                or stop > end
                or size > quick_bytes
                or not self._last_id < stream_id <= self._final_id
                or not stream_id & 1
                or len(streams) >= limits.concurrent_streams
                or self.flow.unsent_bytes > limits.unsent_bytes
                or body - at > frames.DEFAULT_FRAME_BYTES + frames.HEAD_BYTES
            ):
                break
            self._last_id = stream_id
            block = data[at + frames.HEAD_BYTES : body]
            request = memo.get(block)
            if request is None:
                try:
                    request = self._head_of(stream_id, block)
                except StreamError as error:
                    self._fail_stream(error)
                    at = body
                    break
            method = request.method
            if method is None or not request.quick:
                self._open(stream_id, request, False)
                at = body
                break
            arrived += size + PREFIX_BYTES
            at = stop
            head = request.head
            call = GrpcCall(method, head, peer, data[stop - size : stop])
            call.connection = self
            call.request = request
            call.stream_id = stream_id
            streams[stream_id] = call
            if head.timeout_s is not None:
                self._set_deadline(call, head.timeout_s)
            if self.observer is not None:
                self.observer.started(call)
            try:
                method.handler(call)
            except Exception as error:
                call.broke(error)
            if self.closing:  # the handler ended the connection
                return end
        if arrived:
            credit = self._inflow.take(arrived)
            if credit:
                self.flow.out.append(frames.window_update(0, credit))
        return at

    def _parse_head(self, stream_id: int, fields: Fields) -> Request:
        """Parse what is new; a request that differs only in its grpc-timeout is not."""
        timeout: bytes | None = None
        for number, (name, value) in enumerate(fields):
            if name == b"grpc-timeout":
                timeout = value
                fields = fields[:number] + fields[number + 1 :]
                break
        request = self._requests.get(fields)
        if request is None:
            request = parse_request(stream_id, fields, self._methods)
            if sum(len(name) + len(value) for name, value in fields) <= _REQUEST_BYTES:
                if len(self._requests) >= _REQUESTS:
                    self._requests.clear()
                self._requests[fields] = request
        return request if timeout is None else request.with_timeout(timeout)

    def _open(self, stream_id: int, head: Request, ended: bool) -> None:
        method = head.method
        if head.refusal is not None or method is None:
            if head.refusal is not None:
                self.flow.send_headers(stream_id, head.refusal, END_STREAM)
            if not ended:
                self._send_reset(stream_id, ErrorCode.NO_ERROR)
            return
        call = GrpcCall(method, head.head, self._peer)
        call.connection = self
        call.request = head
        call.stream_id = stream_id
        call.remote_closed = ended
        self.streams[stream_id] = call
        if head.head.timeout_s is not None:
            self._set_deadline(call, head.head.timeout_s)
        if self.observer is not None:
            self.observer.started(call)
        call.begin()

    def _set_deadline(self, call: GrpcCall, timeout_s: float) -> None:
        call.deadline_s = deadline_s = self._now_s + timeout_s
        if deadline_s < self._soonest_s:
            self._soonest_s = deadline_s
