"""What goes back to an HTTP client: answers, their header fields, and the way they take.

The gateway and the plain endpoints make answers; whoever owns the connection sends them. Neither knows the other: the
:class:`Outlet` is between them.
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Final, NamedTuple, Protocol

MEASURED_BYTES: Final = 2048  # up to which Go's server says how long a body is; net/http/server.go


class Fields:
    """Header fields of an answer, encoded once. ``Date``, ``Content-Length`` and CORS are the connection's to add.

    Args:
        pairs: names and values, in the order in which they go out.
    """

    __slots__ = ("block",)

    def __init__(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        self.block = b"".join(b"%s: %s\r\n" % pair for pair in pairs)

    @classmethod
    def of(cls, block: bytes) -> Fields:
        """Fields that are encoded already, each with its line end."""
        made = cls.__new__(cls)
        made.block = block
        return made

    @property
    def pairs(self) -> tuple[tuple[bytes, bytes], ...]:
        """Names and values, taken apart again."""
        lines = (line.partition(b": ") for line in self.block.split(b"\r\n") if line)
        return tuple((name, value) for name, _, value in lines)


class Answer(NamedTuple):
    """A whole answer."""

    status: int
    fields: Fields
    body: bytes
    measured: bool = True  # false: the body goes out as a chunk, where HTTP has them, instead of with its length


class Outlet(Protocol):
    """The way back for one request: one whole answer, or a body in pieces."""

    @property
    def writable(self) -> bool:
        """False while pieces wait for the client to read."""

    def respond(self, answer: Answer) -> None:
        """Send a whole answer; the request is over."""

    def begin(self, fields: Fields) -> None:
        """Start an answer with status 200 whose body comes in pieces."""

    def write(self, data: bytes) -> None:
        """Send one piece, which is not empty, in this turn of the reactor."""

    def end(self) -> None:
        """The last piece was sent; the request is over."""


NO_FIELDS: Final = Fields(())
JSON: Final = Fields([(b"Content-Type", b"application/json")])
GATEWAY_JSON: Final = Fields([*JSON.pairs, (b"Grpc-Metadata-Content-Type", b"application/grpc")])
TEXT: Final = Fields([(b"Content-Type", b"text/plain; charset=utf-8")])
ERROR_TEXT: Final = Fields([*TEXT.pairs, (b"X-Content-Type-Options", b"nosniff")])  # as Go's http.Error
GET_ONLY: Final = Fields([(b"Allow", b"GET"), *ERROR_TEXT.pairs])
CORS: Final = Fields(
    [
        (b"Access-Control-Allow-Headers", b"accept, content-type, authorization"),
        (b"Access-Control-Allow-Methods", b"POST, GET, OPTIONS, PUT, DELETE"),
        (b"Access-Control-Allow-Origin", b"*"),
    ]
)

STATUS_LINES: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode("ascii") for status in HTTPStatus
}


def error_text(status: int, text: str, fields: Fields = ERROR_TEXT) -> Answer:
    """A plain-text error as Go's ``http.Error`` writes it, line end included."""
    return Answer(status, fields, text.encode("utf-8") + b"\n")


NO_METHOD_HERE: Final = error_text(405, "Method Not Allowed", GET_ONLY)
PAGE_NOT_FOUND: Final = error_text(404, "404 page not found")
