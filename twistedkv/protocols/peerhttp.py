"""HTTP/1.1 as members speak it to each other, without a socket: bodies by length or in chunks, heads of responses.

The streams between members are chunked bodies that never end, and every append travels in one, so reading a chunk costs
one search and one slice. Heads of requests are :mod:`twistedkv.protocols.http1wire`'s. What could be read in two ways
is refused (RFC 9112 §6.3, §7.1).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple, Protocol

MAX_LINE_BYTES: Final = 4096  # of a chunk's size with its extensions
MAX_TRAILER_BYTES: Final = 16 * 1024
LAST_CHUNK: Final = b"0\r\n\r\n"

_STATUS_LINE: Final = re.compile(r"HTTP/1\.([01]) ([1-5][0-9]{2})(?: [^\x00\r\n]*)?")
_FIELD: Final = re.compile(r"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\x00\r\n]*?)[ \t]*")
_CHUNK_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?", re.DOTALL)
_LENGTH: Final = re.compile(r"[0-9]{1,18}", re.ASCII)
_BODILESS: Final = frozenset({204, 304})  # RFC 9110 §15.3.5, §15.4.5


class ProtocolError(Exception):
    """A peer sent what no member sends; its connection is closed."""


class Body(Protocol):
    """Reads one body out of a connection's bytes."""

    done: bool  # nothing more belongs to it
    rest: bytes  # once it is done: what came after it

    def feed(self, data: bytes) -> bytes:
        """The part of the body that ``data`` adds, which may be cut anywhere.

        Raises:
            ProtocolError: it is malformed. Nothing may be fed any more.
        """


class SizedBody:
    """A body whose length was announced."""

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = not length
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        if len(data) < self._left:
            self._left -= len(data)
            return data
        piece, self.rest = data[: self._left], data[self._left :]
        self._left, self.done = 0, True
        return piece


class EndlessBody:
    """A body that ends with the connection."""

    done = False
    rest = b""

    def feed(self, data: bytes) -> bytes:
        return data


class ChunkedBody:
    """A body in chunks (RFC 9112 §7.1). Extensions and trailers are passed over."""

    def __init__(self) -> None:
        self.done = False
        self.rest = b""
        self._held = b""  # the beginning of a line
        self._left = 0  # bytes of the chunk in progress
        self._after_chunk = False  # its line end comes next
        self._trailer_bytes: int | None = None  # None until the last chunk

    def feed(self, data: bytes) -> bytes:
        if self._held:
            data, self._held = self._held + data, b""
        pieces: list[bytes] = []
        position, end = 0, len(data)
        while position < end and not self.done:
            if self._left:
                stop = min(position + self._left, end)
                pieces.append(data[position:stop])
                self._left -= stop - position
                self._after_chunk = not self._left
                position = stop
                continue
            line_end = data.find(b"\r\n", position)
            if line_end < 0:
                if end - position > MAX_LINE_BYTES:
                    raise ProtocolError("a chunked body with a line that does not end")
                break
            self._line(data[position:line_end])
            position = line_end + 2
        if self.done:
            self.rest = data[position:]
        else:
            self._held = data[position:]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _line(self, line: bytes) -> None:
        if self._after_chunk:
            if line:
                raise ProtocolError("a chunk that is longer than it says")
            self._after_chunk = False
        elif self._trailer_bytes is not None:
            self.done = not line
            self._trailer_bytes += len(line) + 2
            if self._trailer_bytes > MAX_TRAILER_BYTES:
                raise ProtocolError("too many trailers")
        else:
            size = _CHUNK_SIZE.fullmatch(line) if len(line) <= MAX_LINE_BYTES else None
            if size is None:
                raise ProtocolError("a chunk without a size")
            self._left = int(size[1], 16)
            if not self._left:
                self._trailer_bytes = 0


def chunk(data: bytes) -> bytes:
    """``data``, which must not be empty, as one chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


class ResponseHead(NamedTuple):
    """Status and header fields of a response."""

    status: int
    fields: Mapping[str, str]  # names in lower case; of several the last
    body: Body
    close: bool  # no further request on this connection


def parse_response(block: bytes) -> ResponseHead:
    """The head of which ``block`` is all up to the blank line.

    Raises:
        ProtocolError: it is malformed or ambiguous.
    """
    lines = block.decode("latin-1").split("\r\n")
    status_line = _STATUS_LINE.fullmatch(lines[0])
    if status_line is None:
        raise ProtocolError("no HTTP/1.1 response")
    fields: dict[str, str] = {}
    for line in lines[1:]:
        field = _FIELD.fullmatch(line)
        if field is None:
            raise ProtocolError("a response with a malformed header")
        name = field[1].lower()
        if name in ("content-length", "transfer-encoding") and fields.get(name, field[2]) != field[2]:
            raise ProtocolError("a response of two lengths")
        fields[name] = field[2]
    status = int(status_line[2])
    close = status_line[1] == "0" or fields.get("connection", "").lower() == "close"
    coding, length = fields.get("transfer-encoding"), fields.get("content-length")
    body: Body
    if status in _BODILESS or status < 200:
        body = SizedBody(0)
    elif coding is not None:
        if coding.lower() != "chunked" or length is not None:
            raise ProtocolError("a response of an unknown transfer coding, or of two lengths")
        body = ChunkedBody()
    elif length is not None:
        if not _LENGTH.fullmatch(length):
            raise ProtocolError("a response whose length is no number")
        body = SizedBody(int(length))
    else:
        body, close = EndlessBody(), True
    return ResponseHead(status, fields, body, close)
