"""What both ends of an HTTP/2 connection share: frames in, stream states, settings, flow control. RFC 9113.

No I/O: bytes go in by ``receive`` and come out by ``take_output``. Which end opens streams and how a connection winds
up is added in ``http2``; what a header block means and what travels on the streams is added by ``grpc`` and
``grpcclient``. Those may also take whole requests or answers in one go, past the frame by frame path. Server push,
priorities and CONNECT are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic, TypeVar

from twistedkv.protocols import frames
from twistedkv.protocols.flow import Inflow, Outflow
from twistedkv.protocols.frames import HEAD, HEAD_BYTES, MAX_STREAM_ID, ErrorCode, ProtocolError, StreamError
from twistedkv.protocols.headers import NO_TABLE, Fields, HeaderDecoder
from twistedkv.protocols.limits import Limits, RateLimit, calm_down
from twistedkv.protocols.streams import Stream

_MEMO_BLOCKS: Final = 256  # header blocks remembered per connection, and
_MEMO_BLOCK_BYTES: Final = 1024  # the longest that is
_RESET_IDS: Final = 256  # streams that we ended first, remembered to ignore what was under way on them

_UNPACK_HEAD: Final = HEAD.unpack_from

H = TypeVar("H")  # what a subclass makes of a header block


def _no_listener() -> None:
    """Where output is announced until a transport listens."""


class Connection(Generic[H]):
    """One end of an HTTP/2 connection.

    Attributes:
        on_output: called when output became available outside of :meth:`receive`, at most once until
            :meth:`take_output`.
        closing: the transport is to be closed once what :meth:`take_output` gave is written.
    """

    def __init__(self, limits: Limits) -> None:
        self.on_output: Callable[[], None] = _no_listener
        self.closing = False
        self.flow = Outflow(limits.send_buffer_bytes)
        self.limits = limits
        self._inflow = Inflow(limits.connection_window_bytes)
        self._decoder = HeaderDecoder(limits.header_list_bytes)
        self._memo: dict[bytes, H] = {}  # blocks that left the decoder's table alone, void when the table changes
        self.streams: dict[int, Stream] = {}
        self._reset_ids: dict[int, None] = {}
        self._control_rate = RateLimit(limits.control_frames_per_s, "control frames")
        self._reset_rate = RateLimit(limits.resets_per_s, "resets")
        self._partial = b""  # the bytes of an incomplete frame
        self._block: bytearray | None = None  # a header block that waits for CONTINUATION frames
        self._block_head = (0, 0)  # its stream and flags
        self._continuations = 0
        self._greeted = True  # the peer's preface is complete: for a client's peer it is its SETTINGS alone
        self._settled = False  # the peer's first SETTINGS came
        self.quiet = False  # output is sure to be taken: we are inside receive, or have called on_output
        self._unread_bytes = 0  # output made while the transport was full, and
        self._unread_frames = 0  # how many elements of flow.out are counted in it
        self._now_s = 0.0

    @property
    def idle(self) -> bool:
        """No stream is open."""
        return not self.streams

    # --- what the transport calls -------------------------------------------------------------------

    def receive(self, data: bytes, now_s: float) -> None:
        """Take bytes from the wire, cut anywhere; never raises for what they hold."""
        if self.closing:
            return
        self._now_s = now_s
        self.quiet = True
        if self._partial:
            data = self._partial + data
        try:
            done = self._take_frames(data)
            self._partial = data[done:] if done < len(data) else b""
            if self.flow.paused:
                self._count_unread()
        except ProtocolError as error:
            self._abort(error)

    def take_output(self) -> bytes:
        """Everything that may go out now."""
        flow = self.flow
        if flow.turns:
            self.quiet = True
            self._pump()
        self.quiet = False
        if not flow.out:
            return b""
        data = b"".join(flow.out)
        flow.out.clear()
        self._unread_frames = 0
        return data

    def pause_output(self) -> None:
        """The transport's buffer is full: frame no DATA until :meth:`resume_output`."""
        self.flow.paused = True
        self.flow.reckon()

    def resume_output(self) -> None:
        """The transport has room again."""
        self.flow.paused = False
        self._unread_bytes = 0
        self.flow.reckon()
        for stream in list(self.streams.values()):
            if not stream.stuffed:
                stream.room()
        if self.flow.turns:
            self.signal()

    def lost(self) -> None:
        """The transport is gone: every open stream is told, nothing more goes out."""
        self.closing = True
        self._drop_streams(ErrorCode.CANCEL)
        self.flow.out.clear()

    def _count_unread(self) -> None:
        """Hold a peer that does not read to a limit: flow control holds back DATA, but not acks and refusals."""
        out = self.flow.out
        self._unread_bytes += sum(map(len, out[self._unread_frames :]))
        self._unread_frames = len(out)
        if self._unread_bytes > self.limits.unsent_bytes:
            raise calm_down("too much unread output")

    # --- what streams call --------------------------------------------------------------------------

    def signal(self) -> None:
        """Say that output is available, unless it is known already."""
        if not self.quiet:
            self.quiet = True
            self.on_output()

    def credit(self, stream: Stream) -> None:
        """Give the peer credit for what was consumed on ``stream``, once it is half of the window."""
        if stream.unconsumed_bytes >= self.limits.stream_window_bytes // 2 and not stream.remote_closed:
            self.flow.out.append(frames.window_update(stream.stream_id, stream.unconsumed_bytes))
            stream.unconsumed_bytes = 0
            self.signal()

    def end(self, stream: Stream, tail: bytes) -> None:
        """End our half of ``stream`` by the trailers in ``tail``, or without any where it is empty."""
        if self.flow.end(stream, tail):
            self._local_end(stream)
        self.signal()

    def reset(self, stream: Stream, code: ErrorCode) -> None:
        """End ``stream`` by RST_STREAM; its owner knows and is not told."""
        self._send_reset(stream.stream_id, code)
        self._forget(stream)
        self.signal()

    # --- frames -------------------------------------------------------------------------------------

    def _take_frames(self, data: bytes) -> int:
        """Take every whole frame of ``data`` and return where the first incomplete one begins."""
        at, end = 0, len(data)
        if not self._greeted:
            at = self._take_preface(data)
            if not at:
                return 0
        while end - at >= HEAD_BYTES:
            word, flags, stream_id = _UNPACK_HEAD(data, at)
            kind = word & 0xFF
            if kind == frames.HEADERS and flags == frames.END_HEADERS and self._settled and self._block is None:
                after = self._take_whole(data, at, end)
                if after > at:
                    at = after
                    continue
            length = word >> 8
            if length > frames.DEFAULT_FRAME_BYTES:  # we announce no larger one
                raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "frame too large")
            start = at + HEAD_BYTES
            if start + length > end:
                break
            at = start + length
            try:
                self._take_frame(kind, flags, stream_id & MAX_STREAM_ID, data[start:at])
            except StreamError as error:
                self._fail_stream(error)
            if self.closing:
                return end
        return at

    def _take_preface(self, data: bytes) -> int:
        """Check the peer's preface and return where its frames begin, 0 while it is incomplete."""
        raise NotImplementedError

    def _take_whole(self, data: bytes, at: int, end: int) -> int:
        """Take what is whole from the HEADERS frame at ``at`` on, the quick way; return where that ends, or ``at``."""
        return at

    def _take_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if self._block is not None and kind != frames.CONTINUATION:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "header block interrupted")  # RFC 9113 §4.3
        if not self._settled and kind != frames.SETTINGS:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "first frame is not SETTINGS")  # RFC 9113 §3.4
        if kind == frames.DATA:
            self._on_data(flags, stream_id, payload)
        elif kind == frames.HEADERS:
            self._on_headers(flags, stream_id, payload)
        elif kind == frames.WINDOW_UPDATE:
            self._on_window_update(stream_id, payload)
        elif kind == frames.CONTINUATION:
            self._on_continuation(flags, stream_id, payload)
        else:
            self._control_rate.count(self._now_s)
            if kind == frames.RST_STREAM:
                self._on_rst_stream(stream_id, payload)
            elif kind == frames.PRIORITY:
                if not stream_id:
                    raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
                if len(payload) != 5:
                    raise StreamError(stream_id, ErrorCode.FRAME_SIZE_ERROR, "PRIORITY is not 5 bytes")
            elif kind == frames.PUSH_PROMISE:
                raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE")  # a client's is wrong, ours is off
            elif kind in (frames.SETTINGS, frames.PING, frames.GOAWAY):
                if stream_id:
                    raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "connection frame on a stream")
                if kind == frames.SETTINGS:
                    self._on_settings(flags, payload)
                elif kind == frames.PING:
                    self._on_ping(flags, payload)
                else:
                    self._on_goaway(*frames.parse_goaway(payload))
            # RFC 9113 §4.1: a frame of unknown type is ignored

    def _on_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        size = len(payload)
        credit = self._inflow.take(size)
        if credit:
            self.flow.out.append(frames.window_update(0, credit))
        stream = self.streams.get(stream_id)
        if stream is None:
            self._check_missing(stream_id)
            return
        if stream.remote_closed:
            raise StreamError(stream_id, ErrorCode.STREAM_CLOSED, "DATA after END_STREAM")
        if flags & frames.PADDED:
            payload = frames.unpad(flags & frames.PADDED, payload)
        stream.unconsumed_bytes += size
        if stream.unconsumed_bytes > self.limits.stream_window_bytes:
            raise StreamError(stream_id, ErrorCode.FLOW_CONTROL_ERROR, "stream window exceeded")
        if flags & frames.END_STREAM:
            stream.remote_closed = True
        elif not payload:
            self._control_rate.count(self._now_s)
        stream.data_received(payload)
        self._remote_end(stream)

    def _on_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if not stream_id:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "HEADERS on stream 0")
        if flags & (frames.PADDED | frames.PRIORITY_FLAG):
            payload = frames.unpad(flags, payload)
        if flags & frames.END_HEADERS:
            self._on_block(flags, stream_id, payload)
        else:
            self._block = bytearray(payload)
            self._block_head = (stream_id, flags)
            self._continuations = 0

    def _on_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        if self._block is None or stream_id != self._block_head[0]:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without its HEADERS")  # RFC 9113 §6.10
        self._continuations += 1
        self._block += payload
        if self._continuations > self.limits.continuation_frames or len(self._block) > self.limits.header_list_bytes:
            raise calm_down("header block too large")
        if flags & frames.END_HEADERS:
            block, self._block = bytes(self._block), None
            self._on_block(self._block_head[1], stream_id, block)

    def _on_block(self, flags: int, stream_id: int, block: bytes) -> None:
        """Take a whole header block."""
        raise NotImplementedError

    def _head_of(self, stream_id: int, block: bytes) -> H:
        """What ``block`` means, from the memo where it can be.

        Raises:
            StreamError: its fields are malformed (RFC 9113 §8.1.1).
        """
        head = self._memo.get(block)
        if head is None:
            changes = self._decoder.changes
            fields = self._decoder.decode(block)
            if self._decoder.changes != changes and self._memo:
                self._memo.clear()
            head = self._parse_head(stream_id, fields)
            if self._decoder.changes == changes and len(block) <= _MEMO_BLOCK_BYTES:
                if len(self._memo) >= _MEMO_BLOCKS:
                    self._memo.clear()
                self._memo[block] = head
        return head

    def _parse_head(self, stream_id: int, fields: Fields) -> H:
        """What ``fields`` mean; the answer is kept for equal blocks, so it holds nothing of the stream."""
        raise NotImplementedError

    def _on_rst_stream(self, stream_id: int, payload: bytes) -> None:
        code = frames.parse_word(payload)
        stream = self.streams.get(stream_id)
        if stream is None:
            self._check_not_idle(stream_id)
            return
        self._reset_rate.count(self._now_s)
        self._forget(stream)
        stream.closed(code)

    def _on_window_update(self, stream_id: int, payload: bytes) -> None:
        increment = frames.parse_word(payload) & frames.MAX_WINDOW_BYTES
        if not stream_id:
            if not increment:
                raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
            self.flow.credit_connection(increment)
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            self._check_not_idle(stream_id)
        elif not increment:
            raise StreamError(stream_id, ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
        else:
            self.flow.credit_stream(stream, increment)

    def _on_settings(self, flags: int, payload: bytes) -> None:
        if flags & frames.ACK:
            if payload:
                raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS ack with a payload")
            return
        self._settled = True
        for name, value in frames.parse_settings(payload):
            if name == frames.INITIAL_WINDOW_SIZE:
                self.flow.set_initial_window(value, self.streams.values())
            elif name == frames.MAX_FRAME_SIZE:
                self.flow.max_frame_bytes = value
            elif name == frames.HEADER_TABLE_SIZE and value < frames.DEFAULT_TABLE_BYTES:
                # We never insert, so one update to 0 satisfies whatever the peer's table shrinks to.
                self.flow.prefix = NO_TABLE
            elif name == frames.MAX_CONCURRENT_STREAMS:
                self._on_concurrency(value)
        self.flow.reckon()
        self.flow.out.append(frames.SETTINGS_ACK)

    def _on_concurrency(self, streams: int) -> None:
        """The peer allows so many streams of ours."""

    def _on_ping(self, flags: int, payload: bytes) -> None:
        if len(payload) != 8:
            raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "PING is not 8 bytes")
        if flags & frames.ACK:
            self._on_pong(payload)
        else:
            self.flow.out.append(frames.ping(payload, ack=True))

    def _on_pong(self, payload: bytes) -> None:
        """The peer answered a PING of ours."""

    def _on_goaway(self, last_id: int, code: int, debug: bytes) -> None:
        """The peer takes no further stream."""

    # --- the life of streams ------------------------------------------------------------------------

    def _is_idle(self, stream_id: int) -> bool:
        """No frame opened that stream yet."""
        raise NotImplementedError

    def _check_not_idle(self, stream_id: int) -> None:
        """A frame came that is legal on closed streams, but not on idle ones (RFC 9113 §5.1)."""
        if not stream_id or self._is_idle(stream_id):
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "frame on an idle stream")

    def _check_missing(self, stream_id: int) -> None:
        """A frame came on a stream that is not open: legal only if under way when we ended that. RFC 9113 §5.1."""
        self._check_not_idle(stream_id)
        if stream_id not in self._reset_ids:
            raise StreamError(stream_id, ErrorCode.STREAM_CLOSED, "frame on a closed stream")

    def _fail_stream(self, error: StreamError) -> None:
        """End a stream for the peer's fault, and count that (the "made you reset" attack)."""
        self._reset_rate.count(self._now_s)
        self._send_reset(error.stream_id, error.code)
        stream = self.streams.get(error.stream_id)
        if stream is not None:
            self._forget(stream)
            stream.closed(error.code)

    def _send_reset(self, stream_id: int, code: ErrorCode) -> None:
        self.flow.out.append(frames.rst_stream(stream_id, code))
        self._remember_reset(stream_id)

    def _remember_reset(self, stream_id: int) -> None:
        """Ignore what may still come on a stream that ended on our side first."""
        self._reset_ids[stream_id] = None
        if len(self._reset_ids) > _RESET_IDS:
            del self._reset_ids[next(iter(self._reset_ids))]

    def _forget(self, stream: Stream) -> None:
        """Take ``stream`` out of the table, with what it has queued."""
        self.flow.drop(stream)
        self.streams.pop(stream.stream_id, None)

    def _local_end(self, stream: Stream) -> None:
        """Our END_STREAM went out."""
        raise NotImplementedError

    def _remote_end(self, stream: Stream) -> None:
        """Close ``stream`` if both sides ended it and all is sent."""
        if stream.remote_closed and stream.local_closed and not stream.queue:
            self.streams.pop(stream.stream_id, None)

    def _pump(self) -> None:
        """Frame what is queued; streams that have room again may send, and take part in the same turn."""
        relieved = True
        while relieved:
            ended, streams = self.flow.pump()
            for stream in ended:
                self._local_end(stream)
            for stream in streams:
                stream.room()
            relieved = bool(streams)

    def _abort(self, error: ProtocolError) -> None:
        """End the connection for the peer's fault."""
        self.flow.out.append(frames.goaway(self._last_peer_id(), error.code, error.text.encode()))
        self.closing = True
        self._partial = b""
        self._drop_streams(error.code)

    def _last_peer_id(self) -> int:
        """The last stream of the peer that we may have acted on."""
        return 0

    def _drop_streams(self, code: int) -> None:
        streams, self.streams = self.streams, {}
        for stream in streams.values():
            self.flow.drop(stream)
            stream.closed(code)
