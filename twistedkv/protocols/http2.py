"""The two ends of an HTTP/2 connection: who opens streams, and how a connection winds up. RFC 9113 §3.4, §5.1, §6.8."""

from __future__ import annotations

from math import inf
from typing import Final, TypeVar

from twistedkv.protocols import frames
from twistedkv.protocols.connection import Connection
from twistedkv.protocols.frames import MAX_STREAM_ID, ErrorCode, ProtocolError, StreamError
from twistedkv.protocols.keepalive import DEFAULT_KEEPALIVE, Keepalive, PingPolice
from twistedkv.protocols.limits import Limits, calm_down
from twistedkv.protocols.streams import Stream

H = TypeVar("H")  # what a subclass makes of a header block

_DRAIN_PING: Final = b"draining"
_KEEPALIVE_PING: Final = bytes(8)  # as grpc-go's
_DRAIN_TIMEOUT_S: Final = 1.0  # a peer that does not answer the ping in that time is told the end anyway


class ServerConnection(Connection[H]):
    """The server's end: the peer opens streams, and we answer."""

    def __init__(self, limits: Limits, keepalive: Keepalive = DEFAULT_KEEPALIVE) -> None:
        super().__init__(limits)
        self._keepalive = keepalive
        self._police = PingPolice(keepalive.min_time_s) if keepalive.policed else None
        self._pinged_s = -inf  # when the client was last asked for a sign of life
        self._greeted = False
        self._last_id = 0  # of the streams that the client opened
        self._draining = False  # go_away was called
        self._drain_since_s: float | None = None
        self._final_id = MAX_STREAM_ID  # streams above it are not served

    def start(self) -> None:
        """Queue our SETTINGS."""
        limits = self.limits
        self.flow.out += (
            frames.settings(
                (
                    (frames.MAX_CONCURRENT_STREAMS, limits.concurrent_streams),
                    (frames.INITIAL_WINDOW_SIZE, limits.stream_window_bytes),
                    (frames.MAX_HEADER_LIST_SIZE, limits.header_list_bytes),
                )
            ),
            frames.window_update(0, limits.connection_window_bytes - frames.DEFAULT_WINDOW_BYTES),
        )
        self.signal()

    def take_output(self) -> bytes:
        data = super().take_output()
        if self._draining and not self.streams and self._final_id != MAX_STREAM_ID:
            self.closing = True
        return data

    def go_away(self) -> None:
        """Take no new streams, let the open ones finish, then set ``closing``.

        In two steps, so that no request which is under way gets lost (RFC 9113 §6.8): first a GOAWAY that refuses
        nothing and a PING; streams opened before its answer are served; then the GOAWAY that names the last one.
        """
        if not self._draining:
            self._draining = True
            self.flow.out += (frames.goaway(MAX_STREAM_ID, ErrorCode.NO_ERROR), frames.ping(_DRAIN_PING))
            self.signal()

    def expire(self, now_s: float) -> None:
        """Do what is due at ``now_s``; to be called now and then."""
        if self._draining and self._final_id == MAX_STREAM_ID:
            if self._drain_since_s is None:
                self._drain_since_s = now_s
            elif now_s - self._drain_since_s >= _DRAIN_TIMEOUT_S:
                self._finish_drain()

    def keep_alive(self, now_s: float) -> float | None:
        """Ping a client that has been silent for the keepalive's interval.

        Returns:
            When to call this again, ``inf`` for never; or None: the client did not answer, and is to be cut off.
        """
        keepalive = self._keepalive
        if self.closing or not keepalive.pings:
            return inf
        heard_s = self._now_s
        if heard_s < self._pinged_s:
            due_s = self._pinged_s + keepalive.timeout_s
            return due_s if now_s < due_s else None
        due_s = heard_s + keepalive.interval_s
        if now_s >= due_s:
            self._pinged_s = now_s
            self.flow.out.append(frames.ping(_KEEPALIVE_PING))
            self.signal()
            due_s = now_s + keepalive.timeout_s
        return due_s

    def _on_ping(self, flags: int, payload: bytes) -> None:
        super()._on_ping(flags, payload)
        if self._police is not None and not flags & frames.ACK:
            self._police.count(self._now_s, self.flow.progress, self.idle)

    def _on_pong(self, payload: bytes) -> None:
        if self._draining and payload == _DRAIN_PING:
            self._finish_drain()

    def _finish_drain(self) -> None:
        if self._final_id == MAX_STREAM_ID:
            self._final_id = self._last_id
            self.flow.out.append(frames.goaway(self._last_id, ErrorCode.NO_ERROR))
            self.signal()

    def _take_preface(self, data: bytes) -> int:
        if not frames.PREFACE.startswith(data[: len(frames.PREFACE)]):
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "no HTTP/2 preface")
        if len(data) < len(frames.PREFACE):
            return 0
        self._greeted = True
        return len(frames.PREFACE)

    def _is_idle(self, stream_id: int) -> bool:
        return stream_id > self._last_id or not stream_id & 1

    def _last_peer_id(self) -> int:
        return min(self._last_id, self._final_id)

    def _on_block(self, flags: int, stream_id: int, block: bytes) -> None:
        stream = self.streams.get(stream_id)
        if stream is not None:
            self._decoder_only(block)
            if stream.remote_closed:
                raise StreamError(stream_id, ErrorCode.STREAM_CLOSED, "HEADERS after END_STREAM")
            if not flags & frames.END_STREAM:
                raise StreamError(stream_id, ErrorCode.PROTOCOL_ERROR, "trailers without END_STREAM")  # RFC 9113 §8.1
            stream.remote_closed = True
            stream.trailers_received()
            self._remote_end(stream)
            return
        if not stream_id & 1:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "a client's stream id is even")  # RFC 9113 §5.1.1
        if stream_id <= self._last_id:
            self._decoder_only(block)
            if stream_id not in self._reset_ids:
                raise ProtocolError(ErrorCode.STREAM_CLOSED, "HEADERS on a closed stream")
            return
        self._last_id = stream_id
        if stream_id > self._final_id:  # RFC 9113 §6.8: ignored, all of it; the client learns it from the GOAWAY
            self._decoder_only(block)
            self._remember_reset(stream_id)
            return
        head = self._head_of(stream_id, block)
        if len(self.streams) >= self.limits.concurrent_streams:
            raise StreamError(stream_id, ErrorCode.REFUSED_STREAM, "too many streams")  # RFC 9113 §5.1.2
        self._admit(stream_id, head, bool(flags & frames.END_STREAM))

    def _decoder_only(self, block: bytes) -> None:
        """Decode a block that means nothing to us: the decoder's table must follow. RFC 9113 §4.3."""
        changes = self._decoder.changes
        self._decoder.decode(block)
        if self._decoder.changes != changes:
            self._memo.clear()

    def _admit(self, stream_id: int, head: H, ended: bool) -> None:
        """Start a request, having checked that the client deserves more answers."""
        if self.flow.unsent_bytes > self.limits.unsent_bytes:
            raise calm_down("too many unread answers")
        self._open(stream_id, head, ended)

    def _open(self, stream_id: int, head: H, ended: bool) -> None:
        """Serve a new request: put a stream into the table, or answer at once."""
        raise NotImplementedError

    def _local_end(self, stream: Stream) -> None:
        self.streams.pop(stream.stream_id, None)
        if not stream.remote_closed:
            # RFC 9113 §8.1: the answer is complete, the rest of the request is of no interest.
            self._send_reset(stream.stream_id, ErrorCode.NO_ERROR)


class ClientConnection(Connection[H]):
    """The client's end: we open streams, and the peer answers."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self._next_id = 1
        self._peer_streams = MAX_STREAM_ID  # how many streams the server lets us have open
        self._last_served_id = MAX_STREAM_ID  # of the server's GOAWAY; below MAX_STREAM_ID no stream is opened

    def start(self) -> None:
        """Queue the preface and our SETTINGS."""
        limits = self.limits
        self.flow.out += (
            frames.PREFACE,
            frames.settings(
                (
                    (frames.ENABLE_PUSH, 0),
                    (frames.INITIAL_WINDOW_SIZE, limits.stream_window_bytes),
                    (frames.MAX_HEADER_LIST_SIZE, limits.header_list_bytes),
                )
            ),
            frames.window_update(0, limits.connection_window_bytes - frames.DEFAULT_WINDOW_BYTES),
        )
        self.signal()

    def take_output(self) -> bytes:
        data = super().take_output()
        if self._last_served_id != MAX_STREAM_ID and not self.streams:
            self.closing = True
        return data

    def _is_idle(self, stream_id: int) -> bool:
        return stream_id >= self._next_id or not stream_id & 1

    def _on_concurrency(self, streams: int) -> None:
        self._peer_streams = streams

    def _on_goaway(self, last_id: int, code: int, debug: bytes) -> None:
        """Streams above ``last_id`` were not served (RFC 9113 §6.8); those below may still end well."""
        self._last_served_id = min(last_id, MAX_STREAM_ID - 1)
        for stream_id in [stream_id for stream_id in self.streams if stream_id > last_id]:
            stream = self.streams[stream_id]
            self._forget(stream)
            stream.closed(ErrorCode.REFUSED_STREAM)

    def _on_block(self, flags: int, stream_id: int, block: bytes) -> None:
        head = self._head_of(stream_id, block)
        stream = self.streams.get(stream_id)
        if stream is None:
            self._check_missing(stream_id)
            return
        if stream.remote_closed:
            raise StreamError(stream_id, ErrorCode.STREAM_CLOSED, "HEADERS after END_STREAM")
        if flags & frames.END_STREAM:
            stream.remote_closed = True
        self._on_answer(stream, head)
        self._remote_end(stream)

    def _on_answer(self, stream: Stream, head: H) -> None:
        """The server's header block on ``stream``: its head, or with ``remote_closed`` its trailers."""
        raise NotImplementedError

    def _local_end(self, stream: Stream) -> None:
        self._remote_end(stream)
