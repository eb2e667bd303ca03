"""What one connection may cost us: the limits against abuse, and the counters that hold a peer to them.

Crossing a limit ends the connection by GOAWAY with ENHANCE_YOUR_CALM (RFC 9113 §10.5), except too many concurrent
streams, which refuses the one stream. The defaults leave room for the busiest well-behaved client we know: grpc-go
sends one PING a round trip while it estimates the bandwidth, and a client that cancels all its watches resets all
their streams at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from twistedkv.protocols.frames import ErrorCode, ProtocolError


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one connection; every one of them is for a single connection, not for the server."""

    concurrent_streams: int = 4096  # advertised; a stream above it is refused
    header_list_bytes: int = (
        65536  # advertised; sum of RFC 9113 §6.5.2 sizes of one header list, and of its encoded bytes
    )
    continuation_frames: int = 16  # CONTINUATION frames of one header block
    control_frames_per_s: int = 10_000  # PING, SETTINGS, RST_STREAM, PRIORITY, empty DATA and unknown frames together
    resets_per_s: int = (
        2_000  # streams reset by the peer, or by us for the peer's fault ("rapid reset", "made you reset")
    )
    unsent_bytes: int = 64 << 20  # answers that wait for the peer to read, when it asks for yet more
    held_bytes: int = 64 << 20  # requests that are incomplete, or wait for a paused call
    connection_window_bytes: int = 16 << 20  # receive window of the connection
    stream_window_bytes: int = 1 << 20  # receive window of a stream: what a paused call lets in
    send_buffer_bytes: int = 64 << 10  # a stream with this much queued is not writable


class RateLimit:
    """At most ``limit`` events in a window of one second.

    Args:
        limit: events allowed a window.
        what: the events, for the GOAWAY's debug data.
    """

    __slots__ = ("_count", "_limit", "_since_s", "_what")

    def __init__(self, limit: int, what: str) -> None:
        self._limit = limit
        self._what = what
        self._since_s = 0.0
        self._count = 0

    def count(self, now_s: float) -> None:
        """Count one event.

        Raises:
            ProtocolError: it is one too many for its window.
        """
        if now_s - self._since_s >= 1.0:
            self._since_s = now_s
            self._count = 0
        self._count += 1
        if self._count > self._limit:
            raise calm_down(f"too many {self._what}")


def calm_down(text: str) -> ProtocolError:
    """The error for a peer that crossed a limit."""
    return ProtocolError(ErrorCode.ENHANCE_YOUR_CALM, text)
