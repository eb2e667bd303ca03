"""HTTP/2 frames: numbers, layout, building and parsing. What a frame means is decided in ``http2``.

Source: RFC 9113 §4 (layout), §6 (frame definitions), §7 (error codes). A frame is 9 bytes of head (24 bits length, 8
bits type, 8 bits flags, 1 reserved bit, 31 bits stream id, all big-endian) and ``length`` bytes of payload. The head
is read and written as two words: length and type share the first one.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from struct import Struct
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113 §3.4

# Frame types, RFC 9113 §6. Plain integers: they are compared once or more for every frame on the wire.
DATA: Final = 0x0
HEADERS: Final = 0x1
PRIORITY: Final = 0x2
RST_STREAM: Final = 0x3
SETTINGS: Final = 0x4
PUSH_PROMISE: Final = 0x5
PING: Final = 0x6
GOAWAY: Final = 0x7
WINDOW_UPDATE: Final = 0x8
CONTINUATION: Final = 0x9

# Flags, RFC 9113 §6.
END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITY_FLAG: Final = 0x20

# Settings, RFC 9113 §6.5.2.
HEADER_TABLE_SIZE: Final = 0x1
ENABLE_PUSH: Final = 0x2
MAX_CONCURRENT_STREAMS: Final = 0x3
INITIAL_WINDOW_SIZE: Final = 0x4
MAX_FRAME_SIZE: Final = 0x5
MAX_HEADER_LIST_SIZE: Final = 0x6

HEAD_BYTES: Final = 9
DEFAULT_FRAME_BYTES: Final = 16384  # RFC 9113 §4.2: the least, and what holds until SETTINGS say otherwise
MAX_FRAME_BYTES: Final = 2**24 - 1
DEFAULT_WINDOW_BYTES: Final = 65535  # RFC 9113 §6.9.2
DEFAULT_TABLE_BYTES: Final = 4096  # RFC 9113 §6.5.2
MAX_WINDOW_BYTES: Final = 2**31 - 1  # RFC 9113 §6.9.1
MAX_STREAM_ID: Final = 2**31 - 1

HEAD: Final = Struct(">IBI")  # length << 8 | type, flags, stream id
WORD: Final = Struct(">I")
_SETTING = Struct(">HI")
_GOAWAY = Struct(">II")


class ErrorCode(IntEnum):
    """Why a stream or a connection ends. Source: RFC 9113 §7."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


class ProtocolError(Exception):
    """The peer broke the protocol: the whole connection ends by GOAWAY with ``code``. RFC 9113 §5.4.1."""

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class StreamError(Exception):
    """The peer broke the protocol on one stream, which ends by RST_STREAM with ``code``. RFC 9113 §5.4.2."""

    def __init__(self, stream_id: int, code: ErrorCode, text: str) -> None:
        super().__init__(text)
        self.stream_id = stream_id
        self.code = code


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return HEAD.pack(len(payload) << 8 | kind, flags, stream_id) + payload


def headers_frames(stream_id: int, block: bytes, flags: int, max_frame_bytes: int) -> bytes:
    """A whole header block as HEADERS and, where it is longer than a frame, CONTINUATION frames. RFC 9113 §4.3.

    Args:
        flags: END_STREAM or 0.
    """
    if len(block) <= max_frame_bytes:
        return frame(HEADERS, flags | END_HEADERS, stream_id, block)
    parts = [block[at : at + max_frame_bytes] for at in range(0, len(block), max_frame_bytes)]
    return b"".join(
        frame(
            CONTINUATION if number else HEADERS,
            (0 if number else flags) | (END_HEADERS if number == len(parts) - 1 else 0),
            stream_id,
            part,
        )
        for number, part in enumerate(parts)
    )


def settings(pairs: Iterable[tuple[int, int]]) -> bytes:
    """A SETTINGS frame of (identifier, value) pairs."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*pair) for pair in pairs))


SETTINGS_ACK: Final = frame(SETTINGS, ACK, 0)


def ping(payload: bytes, ack: bool = False) -> bytes:
    """A PING frame; ``payload`` is 8 opaque bytes."""
    return frame(PING, ACK if ack else 0, 0, payload)


def rst_stream(stream_id: int, code: ErrorCode) -> bytes:
    """A RST_STREAM frame."""
    return frame(RST_STREAM, 0, stream_id, WORD.pack(code))


def goaway(last_id: int, code: ErrorCode, debug: bytes = b"") -> bytes:
    """A GOAWAY frame: streams above ``last_id`` were not and will not be served."""
    return frame(GOAWAY, 0, 0, _GOAWAY.pack(last_id, code) + debug)


def window_update(stream_id: int, increment: int) -> bytes:
    """A WINDOW_UPDATE frame; stream 0 is the connection."""
    return frame(WINDOW_UPDATE, 0, stream_id, WORD.pack(increment))


def parse_settings(payload: bytes) -> list[tuple[int, int]]:
    """The (identifier, value) pairs of a SETTINGS payload, in their order; values checked.

    Raises:
        ProtocolError: the length is no multiple of six, or a value is outside what RFC 9113 §6.5.2 allows.
    """
    if len(payload) % _SETTING.size:
        raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS length is no multiple of 6")
    pairs = list(_SETTING.iter_unpack(payload))
    for name, value in pairs:
        if name == ENABLE_PUSH and value > 1:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "ENABLE_PUSH is neither 0 nor 1")
        if name == INITIAL_WINDOW_SIZE and value > MAX_WINDOW_BYTES:
            raise ProtocolError(ErrorCode.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE above 2^31-1")
        if name == MAX_FRAME_SIZE and not DEFAULT_FRAME_BYTES <= value <= MAX_FRAME_BYTES:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "MAX_FRAME_SIZE outside 2^14..2^24-1")
    return pairs


def parse_word(payload: bytes) -> int:
    """The single 32-bit word of a RST_STREAM payload, or of a WINDOW_UPDATE's with the reserved bit still in it.

    Raises:
        ProtocolError: the payload is not 4 bytes (RFC 9113 §6.4, §6.9: a connection error).
    """
    if len(payload) != WORD.size:
        raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "frame payload is not 4 bytes")
    word: int = WORD.unpack(payload)[0]
    return word


def parse_goaway(payload: bytes) -> tuple[int, int, bytes]:
    """Last stream id, error code and debug data of a GOAWAY payload.

    Raises:
        ProtocolError: the payload is shorter than 8 bytes.
    """
    if len(payload) < _GOAWAY.size:
        raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY shorter than 8 bytes")
    last_id, code = _GOAWAY.unpack_from(payload)
    return last_id & MAX_STREAM_ID, code, payload[_GOAWAY.size :]


def unpad(flags: int, payload: bytes) -> bytes:
    """The payload of a DATA or HEADERS frame without padding and priority fields. RFC 9113 §6.1, §6.2.

    Raises:
        ProtocolError: the padding is as long as the payload or longer, or a field is cut short.
    """
    start, end = 0, len(payload)
    if flags & PADDED:
        if not payload:
            raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "padded frame without a pad length")
        start, end = 1, end - payload[0]
    if flags & PRIORITY_FLAG:
        start += 5  # RFC 9113 §5.3.2: read and ignored
    if start > end:
        raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "padding exceeds the frame")
    return payload[start:end]
