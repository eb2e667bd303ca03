"""gRPC on top of HTTP/2 streams: message framing, timeouts, status texts.

Source: grpc/grpc ``doc/PROTOCOL-HTTP2.md``. A message is 1 byte compressed flag, 4 bytes length, big-endian, then the
message. Error codes and texts are grpc-go's (``rpc_util.go``, ``internal/transport/http_util.go``).
"""

from __future__ import annotations

import re
import zlib
from struct import Struct
from typing import Final

from twistedkv.errors import Code, RPCError

DEFAULT_MAX_MESSAGE_BYTES: Final = 2097152  # etcd: max-request-bytes (1.5 MiB) and 512 KiB for overhead

PREFIX: Final = Struct(">BI")  # compressed flag, length
PREFIX_BYTES: Final = PREFIX.size
WHOLE: Final = Struct(">IBIBI")  # the head of a DATA frame and of the one message that fills it

_UNITS_S: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_MAX_TIMEOUT_DIGITS: Final = 8
_GZIP: Final = 31  # zlib's wbits for a gzip stream
_ESCAPED: Final = re.compile(rb"[^ -$&-~]")  # all but printable ASCII without the percent sign
_ESCAPE: Final = re.compile(rb"%([0-9A-Fa-f]{2})")


def frame_message(message: bytes) -> bytes:
    """``message`` as it goes into DATA frames, uncompressed."""
    return PREFIX.pack(0, len(message)) + message


class MessageReader:
    """Whole messages out of a byte stream that is cut anywhere.

    Args:
        max_message_bytes: the longest message, packed or not.
        gzip: the stream's grpc-encoding is gzip; else it is identity.
    """

    __slots__ = ("_buffer", "_gzip", "_max_message_bytes")

    def __init__(self, max_message_bytes: int, gzip: bool = False) -> None:
        self._buffer = bytearray()
        self._max_message_bytes = max_message_bytes
        self._gzip = gzip

    def __len__(self) -> int:
        """Bytes held: incomplete messages, and whole ones that nobody asked for yet."""
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        """Add bytes; :meth:`next` says what they gave."""
        self._buffer += data

    def next(self) -> bytes | None:
        """The next whole message, or None until there is one.

        Raises:
            RPCError: the message is too long, or of a coding that was not announced.
        """
        buffer = self._buffer
        if len(buffer) < PREFIX_BYTES:
            return None
        flag, size = PREFIX.unpack_from(buffer)
        if flag:
            self._check_flag(flag)
        if size > self._max_message_bytes:  # told before the body is here, so that it never is
            raise RPCError(
                Code.RESOURCE_EXHAUSTED,
                f"grpc: received message larger than max ({size} vs. {self._max_message_bytes})",
            )
        end = PREFIX_BYTES + size
        if len(buffer) < end:
            return None
        message = bytes(memoryview(buffer)[PREFIX_BYTES:end])
        del buffer[:end]
        return self._unpack(message) if flag else message

    def _check_flag(self, flag: int) -> None:
        if flag != 1:
            raise RPCError(Code.INTERNAL, f"grpc: received unexpected payload format {flag}")
        if not self._gzip:
            raise RPCError(Code.INTERNAL, "grpc: compressed flag set with identity or empty encoding")

    def _unpack(self, packed: bytes) -> bytes:
        limit = self._max_message_bytes
        unpacker = zlib.decompressobj(_GZIP)
        try:
            message = unpacker.decompress(packed, limit + 1)  # never more than that, whatever was packed
        except zlib.error as error:
            raise RPCError(Code.INTERNAL, f"grpc: failed to decompress the received message {error}") from None
        if len(message) > limit:
            raise RPCError(
                Code.RESOURCE_EXHAUSTED,
                f"grpc: received message after decompression larger than max ({len(message)} vs. {limit})",
            )
        if not unpacker.eof:
            raise RPCError(Code.INTERNAL, "grpc: failed to decompress the received message unexpected EOF")
        return message


def parse_timeout(text: bytes) -> float:
    """Seconds of a grpc-timeout value: at most 8 digits and a unit.

    Raises:
        RPCError: it is anything else.
    """
    digits, unit = text[:-1], text[-1:]
    if unit not in _UNITS_S or not digits.isdigit() or len(digits) > _MAX_TIMEOUT_DIGITS:
        raise RPCError(Code.INTERNAL, f"malformed grpc-timeout: {text.decode('ascii', 'backslashreplace')}")
    return int(digits) * _UNITS_S[unit]


def format_timeout(timeout_s: float) -> bytes:
    """``timeout_s`` as a grpc-timeout value, in the finest unit whose 8 digits hold it; below zero is zero."""
    most = 10**_MAX_TIMEOUT_DIGITS - 1
    for unit in (b"n", b"u", b"m", b"S", b"M", b"H"):
        count = max(0, round(timeout_s / _UNITS_S[unit]))
        if count <= most:
            return b"%d%b" % (count, unit)
    return b"%dH" % most


def encode_status_text(text: str) -> bytes:
    """A grpc-message value: UTF-8, with all but printable ASCII percent-encoded."""
    return _ESCAPED.sub(lambda match: b"%%%02X" % match[0][0], text.encode("utf-8", "surrogateescape"))


def decode_status_text(value: bytes) -> str:
    """The text of a grpc-message value; a broken escape stands for itself."""
    return _ESCAPE.sub(lambda match: bytes((int(match[1], 16),)), value).decode("utf-8", "replace")
