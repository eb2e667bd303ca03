"""gRPC, the client's side of a connection, without I/O: calls become frames, answers become callbacks.

Made for few instructions a call: header blocks are built once per method, the usual answer (HEADERS, one DATA frame
with one message, trailers, all in one read) is taken in one step. Deadlines are sent, and kept by the server;
reconnecting, balancing and retries are left to the owner.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from twistedkv.errors import Code, RPCError
from twistedkv.protocols import frames
from twistedkv.protocols.frames import END_HEADERS, END_STREAM, HEAD, MAX_STREAM_ID, ErrorCode, StreamError
from twistedkv.protocols.grpcframes import (
    PREFIX_BYTES,
    WHOLE,
    MessageReader,
    decode_status_text,
    format_timeout,
    frame_message,
)
from twistedkv.protocols.headers import Fields, encode_block
from twistedkv.protocols.http2 import ClientConnection
from twistedkv.protocols.limits import Limits
from twistedkv.protocols.streams import Stream

OnReply = Callable[[int, str, bytes], None]  # code, text, message: the message is empty unless the code is 0
OnMessage = Callable[[bytes], None]
OnEnd = Callable[[int, str], None]  # code, text
Metadata = Sequence[tuple[str, str]]

_BLOCKS: Final = 256  # request header blocks remembered per connection
_MAX_MESSAGE_BYTES: Final = 2**31 - 1  # what an etcd client accepts
_NO_TRAILERS: Final = "server closed the stream without sending trailers"

_WHOLE_PACK: Final = WHOLE.pack
_WHOLE_UNPACK: Final = WHOLE.unpack_from
_HEAD_UNPACK: Final = HEAD.unpack_from
_HEAD_PACK: Final = HEAD.pack

# gRPC codes for an answer that is no gRPC. Source: grpc/grpc doc/http-grpc-status-mapping.md
_CODE_OF_HTTP: Final = {
    b"400": Code.INTERNAL,
    b"401": Code.UNAUTHENTICATED,
    b"403": Code.PERMISSION_DENIED,
    b"404": Code.UNIMPLEMENTED,
    b"429": Code.UNAVAILABLE,
    b"502": Code.UNAVAILABLE,
    b"503": Code.UNAVAILABLE,
    b"504": Code.UNAVAILABLE,
}
# gRPC codes for RST_STREAM. Source: grpc/grpc doc/PROTOCOL-HTTP2.md, "Errors"
_CODE_OF_RESET: Final = {
    ErrorCode.REFUSED_STREAM: Code.UNAVAILABLE,
    ErrorCode.CANCEL: Code.CANCELLED,
    ErrorCode.ENHANCE_YOUR_CALM: Code.RESOURCE_EXHAUSTED,
    ErrorCode.INADEQUATE_SECURITY: Code.PERMISSION_DENIED,
}


class Answer(NamedTuple):
    """What a header block of an answer says: a head, trailers, or both in one."""

    code: int | None  # of grpc-status; or of :status, where that is no 200; None in a plain head
    text: str
    gzip: bool
    is_head: bool  # it has a :status
    interim: bool  # a 1xx: the real one follows


class _ClientStream(Stream):
    """What both kinds of calls share: the way to their connection, and how they end."""

    stream_id = 0  # until it is opened
    connection: GrpcClientConnection
    done = False
    _headed = False
    _reader: MessageReader | None = None

    def answered(self, answer: Answer) -> None:
        """A header block of the answer came."""
        if answer.interim:
            return
        if self.remote_closed:
            if answer.code is None:
                self._drop(int(Code.INTERNAL), _NO_TRAILERS)
            else:
                self.ended(answer.code, answer.text)
                if self.stream_id in self.connection.streams and (self.queue or not self.local_closed):
                    # RFC 9113 §8.1: the answer is complete, the rest of our request is of no use to anybody.
                    self.connection.reset(self, ErrorCode.CANCEL)
        elif answer.code is not None:  # not gRPC's: a body may follow, which nobody wants
            self._drop(answer.code, answer.text)
        elif self._headed:
            self._drop(int(Code.INTERNAL), "server sent a second head")
        else:
            self._headed = True
            self._reader = MessageReader(_MAX_MESSAGE_BYTES, answer.gzip)

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        if reader is None:
            raise StreamError(self.stream_id, ErrorCode.PROTOCOL_ERROR, "DATA before HEADERS")
        reader.feed(data)
        try:
            while not self.done and (message := reader.next()) is not None:
                self.got(message)
        except RPCError as error:
            self._drop(int(error.code), error.text)
            return
        if self.done:
            return
        if self.remote_closed:
            self._drop(int(Code.INTERNAL), _NO_TRAILERS)
        else:
            self.connection.credit(self)

    def trailers_received(self) -> None:
        """Part of ``answered``, which knows what the trailers say."""

    def closed(self, code: int) -> None:
        if code == ErrorCode.NO_ERROR and self.done:
            return
        try:
            status = _CODE_OF_RESET.get(ErrorCode(code), Code.INTERNAL)
            name = ErrorCode(code).name
        except ValueError:
            status, name = Code.INTERNAL, str(code)
        self.ended(int(status), f"stream terminated by RST_STREAM with error code: {name}")

    def got(self, message: bytes) -> None:
        """One message of the answer."""
        raise NotImplementedError

    def ended(self, code: int, text: str) -> None:
        """The status of the answer, or why there is none; at most one counts."""
        raise NotImplementedError

    def _drop(self, code: int, text: str) -> None:
        """End the call before its server did."""
        if self.stream_id in self.connection.streams:
            self.connection.reset(self, ErrorCode.CANCEL)
        self.ended(code, text)


class UnaryCall(_ClientStream):
    """One unary call that waits for its answer."""

    def __init__(self, connection: GrpcClientConnection, on_reply: OnReply) -> None:
        self.connection = connection
        self.on_reply = on_reply
        self._message: bytes | None = None

    def got(self, message: bytes) -> None:
        if self._message is not None:
            self._drop(int(Code.INTERNAL), "more than one message answers a unary call")
        else:
            self._message = message

    def ended(self, code: int, text: str) -> None:
        if self.done:
            return
        self.done = True
        if code:
            self.on_reply(code, text, b"")
        elif self._message is None:
            self.on_reply(int(Code.INTERNAL), "no message answers a unary call", b"")
        else:
            self.on_reply(0, text, self._message)

    def cancel(self) -> None:
        """Ask for no answer any more; ``on_reply`` is told CANCELLED."""
        if not self.done:
            self._drop(int(Code.CANCELLED), "context canceled")


class ClientStream(_ClientStream):
    """A call that sends and takes any number of messages."""

    def __init__(self, connection: GrpcClientConnection, on_message: OnMessage, on_end: OnEnd) -> None:
        self.connection = connection
        self.on_message = on_message
        self.on_end = on_end
        self._early: list[bytes] = []  # framed messages, until the server lets the stream open

    def send(self, message: bytes) -> None:
        """Send one message."""
        if self.done or self.local_closed:
            return
        if not self.stream_id:
            self._early.append(frame_message(message))
            return
        self.connection.flow.send_data(self, frame_message(message))
        self.connection.signal()

    def half_close(self) -> None:
        """Say that no further message comes."""
        if self.done or self.local_closed:
            return
        if not self.stream_id:
            self.local_closed = True
            return
        self.connection.end(self, b"")

    def cancel(self) -> None:
        """End the call; ``on_end`` is told CANCELLED."""
        if not self.done:
            self._drop(int(Code.CANCELLED), "context canceled")

    def opened(self) -> None:
        """The stream has its id: send what waited for that."""
        for framed in self._early:
            self.connection.flow.send_data(self, framed)
        self._early.clear()
        if self.local_closed:
            self.connection.end(self, b"")

    def got(self, message: bytes) -> None:
        self.on_message(message)

    def ended(self, code: int, text: str) -> None:
        if not self.done:
            self.done = True
            self.on_end(code, text)


class GrpcClientConnection(ClientConnection[Answer]):
    """A gRPC client's end of one HTTP/2 connection, without I/O.

    The owner calls :meth:`start`, :meth:`receive` with what it reads, and writes what :meth:`take_output` gives: after
    each :meth:`receive`, and whenever ``on_output`` is called. Callbacks run inside :meth:`receive`.

    Args:
        authority: the :authority of requests.
        scheme: "https" over TLS, else "http".
        limits: receive windows, and what a server may cost us.
        user_agent: sent with every request.
    """

    def __init__(
        self,
        authority: str = "localhost",
        scheme: str = "https",
        limits: Limits | None = None,
        user_agent: str = "twistedkv",
    ) -> None:
        super().__init__(limits or Limits())
        self._blocks: dict[tuple[str, tuple[tuple[str, str], ...]], bytes] = {}
        self._opening = ((b":method", b"POST"), (b":scheme", scheme.encode()), (b":authority", authority.encode()))
        self._closing = (
            (b"content-type", b"application/grpc"),
            (b"user-agent", user_agent.encode()),
            (b"te", b"trailers"),
        )
        self._unopened: deque[tuple[_ClientStream, bytes, bytes | None]] = deque()

    def call(
        self,
        path: str,
        message: bytes,
        on_reply: OnReply,
        metadata: Metadata = (),
        timeout: float | None = None,
    ) -> UnaryCall:
        """Make a unary call; ``on_reply`` gets its code, text and message, once."""
        call = UnaryCall(self, on_reply)
        block = self._blocks.get((path, tuple(metadata))) or self._make_block(path, metadata)
        if timeout is not None:
            block += encode_block(((b"grpc-timeout", format_timeout(timeout)),))
        flow = self.flow
        size = len(message) + PREFIX_BYTES
        stream_id = self._next_id
        if (
            size <= flow.quick_bytes
            and size <= flow.window
            and len(self.streams) < self._peer_streams
            and len(block) <= flow.max_frame_bytes
            and stream_id < self._last_served_id
            and not self.closing
            and not self._unopened
        ):
            self._next_id = stream_id + 2
            flow.window -= size
            call.stream_id = stream_id
            call.local_closed = True
            self.streams[stream_id] = call
            flow.out += (
                _HEAD_PACK(len(block) << 8 | frames.HEADERS, END_HEADERS, stream_id),
                block,
                _WHOLE_PACK(size << 8, END_STREAM, stream_id, 0, size - PREFIX_BYTES),
                message,
            )
            if not self.quiet:
                self.signal()
        else:
            self._unopened.append((call, block, frame_message(message)))
            self._open_waiting()
        return call

    def open_stream(
        self,
        path: str,
        on_message: OnMessage,
        on_end: OnEnd,
        metadata: Metadata = (),
        timeout: float | None = None,
    ) -> ClientStream:
        """Open a call of any kind: ``on_message`` gets each message of the answer, ``on_end`` its status, once."""
        stream = ClientStream(self, on_message, on_end)
        block = self._blocks.get((path, tuple(metadata))) or self._make_block(path, metadata)
        if timeout is not None:
            block += encode_block(((b"grpc-timeout", format_timeout(timeout)),))
        self._unopened.append((stream, block, None))
        self._open_waiting()
        return stream

    def receive(self, data: bytes, now_s: float = 0.0) -> None:
        super().receive(data, now_s)
        if self._unopened:
            self._open_waiting()

    def lost(self) -> None:
        self.closing = True
        for stream in list(self.streams.values()):
            if isinstance(stream, _ClientStream):
                stream.ended(int(Code.UNAVAILABLE), "transport is closing")
        super().lost()
        self._open_waiting()

    # --- private ------------------------------------------------------------------------------------

    def _make_block(self, path: str, metadata: Metadata) -> bytes:
        own = tuple((name.lower().encode(), value.encode()) for name, value in metadata)
        block = encode_block((*self._opening, (b":path", path.encode()), *self._closing, *own))
        if len(self._blocks) >= _BLOCKS:
            self._blocks.clear()
        self._blocks[path, tuple(metadata)] = block
        return block

    def _open_waiting(self) -> None:
        """Open streams in their order, as many as the server allows (RFC 9113 §5.1.2); refuse them once it leaves."""
        while self._unopened:
            leaving = self.closing or self._last_served_id != MAX_STREAM_ID or self._next_id > MAX_STREAM_ID
            if not leaving and len(self.streams) >= self._peer_streams:
                return
            stream, block, framed = self._unopened.popleft()
            if leaving:
                stream.ended(int(Code.UNAVAILABLE), "transport is closing")
            elif not stream.done:
                self._open(stream, block, framed)

    def _open(self, stream: _ClientStream, block: bytes, framed: bytes | None) -> None:
        stream.stream_id = self._next_id
        self._next_id += 2
        self.streams[stream.stream_id] = stream
        self.flow.send_headers(stream.stream_id, block, 0)
        if framed is not None:
            self.flow.send_data(stream, framed)
            self.end(stream, b"")
        elif isinstance(stream, ClientStream):
            stream.opened()
        self.signal()

    def _take_whole(self, data: bytes, at: int, end: int) -> int:
        streams = self.streams
        memo = self._memo
        arrived = 0
        while end - at > frames.HEAD_BYTES:
            word, flags, stream_id = _HEAD_UNPACK(data, at)
            body = at + frames.HEAD_BYTES + (word >> 8)
            if word & 0xFF != frames.HEADERS or flags != END_HEADERS or body + WHOLE.size > end:
                break
            data_word, data_flags, data_id, packed, size = _WHOLE_UNPACK(data, body)
            tail = body + WHOLE.size + size
            if (
                data_word != (size + PREFIX_BYTES) << 8  # a DATA frame, of this message alone
                or data_flags
                or data_id != stream_id
                or packed
                or tail + frames.HEAD_BYTES > end
                or size > frames.DEFAULT_FRAME_BYTES - PREFIX_BYTES
            ):
                break
            tail_word, tail_flags, tail_id = _HEAD_UNPACK(data, tail)
            stop = tail + frames.HEAD_BYTES + (tail_word >> 8)
            if (
                tail_word & 0xFF != frames.HEADERS
                or tail_flags != END_HEADERS | END_STREAM
                or tail_id != stream_id
                or stop > end
            ):
                break
            # Both blocks must be known: decoding one here would leave the other to a decoder that is ahead of it.
            head = memo.get(data[at + frames.HEAD_BYTES : body])
            trailer = memo.get(data[tail + frames.HEAD_BYTES : stop])
            call = streams.get(stream_id)
            if (
                head is None
                or trailer is None
                or head.code is not None
                or head.interim
                or not head.is_head
                or trailer.code is None
                or trailer.is_head
                or type(call) is not UnaryCall
                or not call.local_closed
                or call.queue
                or call._headed
            ):
                break
            arrived += size + PREFIX_BYTES
            at = stop
            del streams[stream_id]
            call.done = True
            call.on_reply(trailer.code, trailer.text, b"" if trailer.code else data[tail - size : tail])
            if self.closing:
                return end
        if arrived:
            credit = self._inflow.take(arrived)
            if credit:
                self.flow.out.append(frames.window_update(0, credit))
        return at

    def _parse_head(self, stream_id: int, fields: Fields) -> Answer:
        http_status = content_type = grpc_status = None
        text, gzip = "", False
        for name, value in fields:
            if name == b":status":
                http_status = value
            elif name == b"content-type":
                content_type = value
            elif name == b"grpc-status":
                grpc_status = value
            elif name == b"grpc-message":
                text = decode_status_text(value)
            elif name == b"grpc-encoding":
                gzip = value == b"gzip"
        code: int | None = None
        if grpc_status is not None:
            code = int(grpc_status[:9]) if grpc_status.isdigit() else int(Code.UNKNOWN)
        elif http_status is not None and http_status != b"200":
            code = int(_CODE_OF_HTTP.get(http_status, Code.UNKNOWN))
            text = f"unexpected HTTP status code received from server: {http_status.decode('ascii', 'replace')}"
        elif http_status is not None and (content_type is None or not content_type.startswith(b"application/grpc")):
            code = int(Code.UNKNOWN)
            text = f"unexpected content-type {(content_type or b'').decode('ascii', 'replace')!r}"
        interim = http_status is not None and http_status[:1] == b"1"
        return Answer(code, text, gzip, http_status is not None, interim)

    def _on_answer(self, stream: Stream, head: Answer) -> None:
        if isinstance(stream, _ClientStream):
            stream.answered(head)
