"""A client of etcd's v2 HTTP API that sends and shows the bytes of HTTP/1.1 as they are.

Libraries repair what a test wants to send: targets with ``%zz``, names given twice, a GET with a body. Here a request
is bytes that the caller may form as it likes, and a reply has its header lines in the spelling and order of the wire.
It reads what RFC 9112 has of framing: a length, chunks, no body, interim 1xx answers, the end of the connection.
"""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from tests.functional.processes import ServerProcess

TIMEOUT_S = 30.0
FORM = "application/x-www-form-urlencoded"
_MOST_HEAD_BYTES = 1 << 20
_CHUNK_BYTES = 5
_STATUS_LINE = re.compile(r"HTTP/1\.[01] (\d{3})(?: .*)?$")
_GONE = (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError)
_NO_BODY = frozenset({204, 304})


class ConnectionEnded(Exception):
    """The server closed the connection where more of an answer was due."""


class Unreadable(Exception):
    """What the server sent is no HTTP/1.1."""


class NothingCame(Exception):
    """The server sent nothing within the time."""


class Request(NamedTuple):
    """One request; ``target`` and header values go out as they are.

    ``headers`` do not include ``Host`` and the body's framing, which are added: its length, or chunks of a few bytes.
    """

    method: str
    target: bytes
    body: bytes | None = None
    headers: tuple[tuple[str, str], ...] = ()
    chunked: bool = False

    def encoded(self) -> bytes:
        """The bytes of it."""
        lines = [b"%s %s HTTP/1.1" % (self.method.encode(), self.target), b"Host: 127.0.0.1"]
        lines += [f"{name}: {value}".encode("latin-1") for name, value in self.headers]
        body = self.body or b""
        if self.chunked:
            lines.append(b"Transfer-Encoding: chunked")
            pieces = [body[at : at + _CHUNK_BYTES] for at in range(0, len(body), _CHUNK_BYTES)]
            body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (*pieces, b""))
        elif self.body is not None:
            lines.append(b"Content-Length: %d" % len(body))
        return b"\r\n".join(lines) + b"\r\n\r\n" + body

    def __str__(self) -> str:
        shown = f"{self.method} {self.target[:300].decode('latin-1')}"
        if self.body is not None:
            shown += f" body {self.body[:300]!r}" + (f"… {len(self.body)} bytes" if len(self.body) > 300 else "")
        return shown + "".join(f" [{name}: {value}]" for name, value in self.headers)


def form(method: str, target: bytes, body: bytes, *more: tuple[str, str]) -> Request:
    """A request with a form body, as curl's ``-d`` sends it."""
    return Request(method, target, body, (("Content-Type", FORM), *more))


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer; of a watch that is still open the body is what has come with the head, mostly nothing."""

    status: int
    headers: tuple[tuple[str, str], ...]  # as on the wire
    body: bytes = b""
    interim: tuple[int, ...] = ()  # statuses of 1xx answers before it

    @property
    def chunked(self) -> bool:
        """Whether the body comes in chunks."""
        return (self.one("transfer-encoding") or "").lower() == "chunked"

    def all(self, name: str) -> tuple[str, ...]:
        """The values of every line of this header, whatever its spelling."""
        return tuple(value for each, value in self.headers if each.lower() == name.lower())

    def one(self, name: str) -> str | None:
        """The first value of this header."""
        return next(iter(self.all(name)), None)


class Connection:
    """One connection, opened at once; over TLS where the server serves it."""

    def __init__(self, server: ServerProcess, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._buffer = bytearray()
        self._socket = socket.create_connection(("127.0.0.1", server.port), timeout_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if server.tls:
            context = server.tls.client_context("http/1.1")
            self._socket = context.wrap_socket(self._socket, server_hostname="127.0.0.1")

    def send(self, data: bytes) -> None:
        """Send these bytes.

        A server may answer and close before it has read everything (413, 431): its answer is still to be read then.
        """
        with suppress(*_GONE):
            self._socket.sendall(data)

    def ask(self, request: Request) -> Reply:
        """Send one request and read its answer to the end."""
        self.send(request.encoded())
        return self.read_reply(request.method)

    def read_reply(self, method: str) -> Reply:
        """The next answer with its body; ``method`` is what was asked, because HEAD has none."""
        reply = self.read_head()
        body = b"" if method == "HEAD" or reply.status in _NO_BODY else b"".join(self.read_body(reply))
        return Reply(reply.status, reply.headers, body, reply.interim)

    def read_head(self) -> Reply:
        """The next answer up to the end of its headers."""
        interim: list[int] = []
        while True:
            while (end := self._buffer.find(b"\r\n\r\n")) < 0:
                if len(self._buffer) > _MOST_HEAD_BYTES:
                    raise Unreadable("a head without end")
                self._receive()
            lines = bytes(self._buffer[:end]).decode("latin-1").split("\r\n")
            del self._buffer[: end + 4]
            if not (line := _STATUS_LINE.match(lines[0])):
                raise Unreadable(f"{lines[0][:200]!r} is no status line")
            status = int(line[1])
            if 100 <= status < 200:
                interim.append(status)
                continue
            pairs = tuple((name, value.strip()) for name, _, value in (line.partition(":") for line in lines[1:]))
            return Reply(status, pairs, b"", tuple(interim))

    def read_chunk(self, timeout_s: float | None = None) -> bytes:
        """One chunk of a chunked body; empty at its end.

        Raises:
            NothingCame: not within the time; what has come of it is kept for the next call.
        """
        deadline = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        while (end := self._buffer.find(b"\r\n")) < 0:
            self._receive(deadline)
        try:
            size = int(self._buffer[:end].split(b";")[0], 16)
        except ValueError:
            raise Unreadable(f"{bytes(self._buffer[:200])!r} is no chunk") from None
        while len(self._buffer) < end + 2 + size + 2:
            self._receive(deadline)
        data = bytes(self._buffer[end + 2 : end + 2 + size])
        del self._buffer[: end + 2 + size + 2]
        return data

    def close(self) -> None:
        """Close it, in the middle of an answer too."""
        self._socket.close()

    def read_body(self, reply: Reply) -> Iterator[bytes]:
        """The body that belongs to this head, in the pieces that it comes in."""
        if reply.chunked:
            while chunk := self.read_chunk():
                yield chunk
            return
        length = reply.one("content-length")
        if length is None:
            with suppress(ConnectionEnded):
                while True:
                    self._receive()
            yield bytes(self._buffer)
            self._buffer.clear()
            return
        while len(self._buffer) < int(length):
            self._receive()
        yield bytes(self._buffer[: int(length)])
        del self._buffer[: int(length)]

    def _receive(self, deadline: float | None = None) -> None:
        left = self._timeout_s if deadline is None else deadline - time.monotonic()
        if left <= 0:
            raise NothingCame
        self._socket.settimeout(left)
        try:
            data = self._socket.recv(1 << 16)
        except TimeoutError:
            raise NothingCame from None
        except _GONE:
            data = b""
        finally:
            self._socket.settimeout(self._timeout_s)
        if not data:
            raise ConnectionEnded(f"after {bytes(self._buffer[-200:])!r}")
        self._buffer += data


class V2Client:
    """One keep-alive connection that is opened anew when a server has closed it, and watches beside it."""

    def __init__(self, server: ServerProcess, timeout_s: float = TIMEOUT_S) -> None:
        self.server = server
        self._timeout_s = timeout_s
        self._connection: Connection | None = None

    def ask(self, request: Request) -> Reply:
        """Send one request and read its answer; a connection that the server closed is replaced, once."""
        if self._connection is not None:
            try:
                return self._finish(self._connection, request)
            except ConnectionEnded:
                self.close()
        self._connection = Connection(self.server, self._timeout_s)
        return self._finish(self._connection, request)

    def watch(self, target: bytes) -> Watch:
        """Open a long poll on a connection of its own; returns when the head of the answer is here."""
        return Watch(Connection(self.server, self._timeout_s), Request("GET", target))

    def close(self) -> None:
        """Close the connection; watches have their own."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _finish(self, connection: Connection, request: Request) -> Reply:
        reply = connection.ask(request)
        if (reply.one("connection") or "").lower() == "close":
            self.close()
        return reply


class Watch:
    """A long poll: the head of its answer, and then what comes."""

    def __init__(self, connection: Connection, request: Request) -> None:
        self._connection = connection
        self._partial = b""
        self._ended = False
        self.request = request
        connection.send(request.encoded())
        self.head = connection.read_head()

    def next(self, timeout_s: float = TIMEOUT_S) -> bytes:
        """What came next: one line of JSON, however it was cut into chunks, or empty at the end of the answer.

        An answer that is not chunked, as that of a refused watch, is one line and the end.

        Raises:
            NothingCame: not within the time.
            ConnectionEnded: the connection broke off in the middle of the answer.
        """
        if self._ended:
            return b""
        if not self.head.chunked:
            self._ended = True
            return b"".join(self._connection.read_body(self.head))
        while b"\n" not in self._partial:
            chunk = self._connection.read_chunk(timeout_s)
            if not chunk:
                self._ended = True
                return self._partial
            self._partial += chunk
        line, _, self._partial = self._partial.partition(b"\n")
        return line + b"\n"

    def close(self) -> None:
        """Go away, as a client does that has lost interest."""
        self._connection.close()
