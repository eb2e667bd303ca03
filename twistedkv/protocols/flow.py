"""Flow control: how much may go out, in whose turn, and how much the peer may send. RFC 9113 §5.2, §6.9."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from twistedkv.protocols import frames
from twistedkv.protocols.frames import HEAD, ErrorCode, ProtocolError, StreamError
from twistedkv.protocols.streams import Stream

_HEAD_PACK: Final = HEAD.pack


class Inflow:
    """The receive window of a connection: what arrives is counted, and given back when half of the window is used.

    Args:
        window_bytes: the whole window; the owner announces it by a WINDOW_UPDATE at the start.
    """

    __slots__ = ("_half_bytes", "_window_bytes", "used_bytes")

    def __init__(self, window_bytes: int) -> None:
        self._window_bytes = window_bytes
        self._half_bytes = window_bytes // 2
        self.used_bytes = 0  # received since the last credit; never above the window

    def take(self, size: int) -> int:
        """Count ``size`` arriving bytes and return the credit that is due now, mostly 0.

        Raises:
            ProtocolError: the peer sent more than the window (RFC 9113 §6.9.1).
        """
        self.used_bytes += size
        if self.used_bytes < self._half_bytes:
            return 0
        if self.used_bytes > self._window_bytes:
            raise ProtocolError(ErrorCode.FLOW_CONTROL_ERROR, "connection window exceeded")
        credit, self.used_bytes = self.used_bytes, 0
        return credit


class Outflow:
    """The way out of a connection: finished frames, and the streams whose data waits for a window.

    Data that fits all windows becomes a frame at once. The rest waits in its stream's queue; the streams take turns of
    one frame each, so that a large answer does not hold up small ones (RFC 9113 §5.2.1 leaves the order to us).

    Args:
        send_buffer_bytes: queue length above which a stream is ``stuffed``.
    """

    __slots__ = (
        "_credited_bytes",
        "_header_blocks",
        "_send_buffer_bytes",
        "initial_window",
        "max_frame_bytes",
        "out",
        "paused",
        "prefix",
        "quick_bytes",
        "turns",
        "unsent_bytes",
        "window",
    )

    def __init__(self, send_buffer_bytes: int) -> None:
        self._send_buffer_bytes = send_buffer_bytes
        self.out: list[bytes] = []  # frames for the transport, in order
        self.window = frames.DEFAULT_WINDOW_BYTES  # the connection's send window
        self._credited_bytes = frames.DEFAULT_WINDOW_BYTES  # all that ever was in ``window``
        self._header_blocks = 0  # sent by send_headers
        self.initial_window = frames.DEFAULT_WINDOW_BYTES  # of the peer's SETTINGS
        self.max_frame_bytes = frames.DEFAULT_FRAME_BYTES  # of the peer's SETTINGS
        self.paused = False  # the transport is full: no DATA frame is made
        self.prefix = b""  # opens the next header block: HPACK's size update, where one is due
        self.turns: deque[Stream] = deque()  # streams with queued data that their own window lets out
        self.unsent_bytes = 0  # sum of all queues
        # The largest DATA frame that a stream which has sent nothing may send without any further look than at
        # ``window``; 0 while something stands in the way.
        self.quick_bytes = 0
        self.reckon()

    @property
    def progress(self) -> int:
        """A number that grows with every answer: with any DATA that went out, and with any header block without it.

        It is worked out from the window, so that those who send have nothing to count.
        """
        return self._credited_bytes - self.window + self._header_blocks

    def reckon(self) -> None:
        """Set ``quick_bytes`` anew, after any of what it depends on changed."""
        free = not (self.paused or self.turns or self.prefix)
        self.quick_bytes = min(self.max_frame_bytes, self.initial_window) if free else 0

    def send_headers(self, stream_id: int, block: bytes, flags: int) -> None:
        """Send a header block at once: header frames know no flow control."""
        if self.prefix:
            block, self.prefix = self.prefix + block, b""
            self.reckon()
        self._header_blocks += 1
        self.out.append(frames.headers_frames(stream_id, block, flags, self.max_frame_bytes))

    def send_data(self, stream: Stream, data: bytes) -> None:
        """Send ``data``, or queue what the windows do not let out."""
        size = len(data)
        if (
            not stream.queue
            and size <= self.window
            and size <= self.initial_window + stream.send_delta
            and size <= self.max_frame_bytes
            and not self.paused
            and not self.turns
        ):
            self.window -= size
            stream.send_delta -= size
            self.out += (_HEAD_PACK(size << 8, 0, stream.stream_id), data)
            return
        if stream.queue is None:
            stream.queue = bytearray()
        stream.queue += data
        self.unsent_bytes += size
        if len(stream.queue) > self._send_buffer_bytes:
            stream.stuffed = True
        self.line_up(stream)

    def end(self, stream: Stream, tail: bytes) -> bool:
        """End our half of ``stream`` after what is queued; whether that is sent already.

        Args:
            tail: the block of the trailers, or empty to end by an empty DATA frame.
        """
        stream.local_closed = True
        if stream.queue:
            stream.tail = tail
            return False
        self._send_tail(stream.stream_id, tail)
        return True

    def line_up(self, stream: Stream) -> None:
        """Give ``stream`` its turn if it has data to send and a window to send it in."""
        if stream.queue and not stream.in_turn and self.initial_window + stream.send_delta > 0:
            stream.in_turn = True
            self.turns.append(stream)
            self.quick_bytes = 0

    def drop(self, stream: Stream) -> None:
        """Forget what ``stream`` has queued."""
        if stream.queue:
            self.unsent_bytes -= len(stream.queue)
            stream.queue = None
            stream.tail = None

    def pump(self) -> tuple[list[Stream], list[Stream]]:
        """Make frames of queued data as far as windows and transport allow.

        Returns:
            The streams that are all sent, tail included, and those that have room in their send buffer again.
        """
        ended: list[Stream] = []
        relieved: list[Stream] = []
        turns = self.turns
        while turns and self.window > 0 and not self.paused:
            stream = turns.popleft()
            queue = stream.queue
            room = min(self.window, self.initial_window + stream.send_delta, self.max_frame_bytes)
            if not queue or room <= 0:  # dropped meanwhile; or shut, and the next credit lines it up again
                stream.in_turn = False
                continue
            data = bytes(queue[:room])
            del queue[:room]
            size = len(data)
            self.window -= size
            self.unsent_bytes -= size
            stream.send_delta -= size
            self.out += (_HEAD_PACK(size << 8, frames.DATA, stream.stream_id), data)
            if stream.stuffed and len(queue) <= self._send_buffer_bytes:
                stream.stuffed = False
                relieved.append(stream)
            if queue:
                turns.append(stream)
                continue
            stream.in_turn = False
            if stream.tail is not None:
                self._send_tail(stream.stream_id, stream.tail)
                stream.tail = None
                ended.append(stream)
        self.reckon()
        return ended, relieved

    def credit_connection(self, increment: int) -> None:
        """The peer's WINDOW_UPDATE for the connection. RFC 9113 §6.9.1."""
        self.window += increment
        self._credited_bytes += increment
        if self.window > frames.MAX_WINDOW_BYTES:
            raise ProtocolError(ErrorCode.FLOW_CONTROL_ERROR, "connection window above 2^31-1")

    def credit_stream(self, stream: Stream, increment: int) -> None:
        """The peer's WINDOW_UPDATE for a stream. RFC 9113 §6.9.1."""
        stream.send_delta += increment
        if self.initial_window + stream.send_delta > frames.MAX_WINDOW_BYTES:
            raise StreamError(stream.stream_id, ErrorCode.FLOW_CONTROL_ERROR, "stream window above 2^31-1")
        self.line_up(stream)

    def set_initial_window(self, size: int, streams: Iterable[Stream]) -> None:
        """The peer's INITIAL_WINDOW_SIZE moves the window of every open stream, even below zero. RFC 9113 §6.9.2."""
        self.initial_window = size
        for stream in streams:
            if size + stream.send_delta > frames.MAX_WINDOW_BYTES:
                raise ProtocolError(ErrorCode.FLOW_CONTROL_ERROR, "stream window above 2^31-1")
            self.line_up(stream)
        self.reckon()

    def _send_tail(self, stream_id: int, tail: bytes) -> None:
        if tail:
            self.send_headers(stream_id, tail, frames.END_STREAM)
        else:
            self.out.append(frames.frame(frames.DATA, frames.END_STREAM, stream_id))
