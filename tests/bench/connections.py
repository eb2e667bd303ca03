"""Client connections that cost little: non-blocking TLS sockets under one epoll loop, gRPC and HTTP/1.1 on top.

The load generator shares the machine with the server it measures, so it does as little as it can: no reactor, no
threads, requests that were serialised beforehand, one read and one write of a socket for all that is in flight on it.
"""

from __future__ import annotations

import select
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import suppress
from time import perf_counter
from typing import Protocol

from twistedkv.protocols.grpcclient import GrpcClientConnection

_READ_BYTES = 1 << 16  # far more makes Python allocate and map anew for each read
_RECORD_BYTES = 1 << 14  # the most that one TLS record holds (RFC 8446 §5.1)
_CONNECT_TIMEOUT_S = 10.0
_POLL_S = 0.05

Next = Iterator[bytes]
"""Serialised requests; when it ends, the connection sends no more."""


class LoadError(Exception):
    """The server gave an answer that the load did not expect."""


class GrpcLoad:
    """Unary calls of one method over one HTTP/2 connection, a fixed number of them in flight.

    Args:
        path: of the method.
        messages: the requests, as protobuf bytes.
        least_bytes: a shorter answer is a wrong one.
        streams: calls in flight.
        done: called with the seconds that each call took.
    """

    def __init__(
        self, path: str, messages: Next, least_bytes: int, streams: int, done: Callable[[float], None]
    ) -> None:
        self._path = path
        self._messages = messages
        self._least_bytes = least_bytes
        self._streams = streams
        self._done = done
        self._connection = GrpcClientConnection()
        self.in_flight = 0

    def start(self) -> bytes:
        """The first bytes to send."""
        self._connection.start()
        for _ in range(self._streams):
            self._call()
        return self._connection.take_output()

    def receive(self, data: bytes) -> bytes:
        """Bytes came; the bytes to send in return."""
        self._connection.receive(data)
        return self._connection.take_output()

    def _call(self) -> None:
        message = next(self._messages, None)
        if message is None:
            return
        self.in_flight += 1
        started = perf_counter()

        def on_reply(code: int, text: str, answer: bytes) -> None:
            if code or len(answer) < self._least_bytes:
                raise LoadError(f"{self._path}: status {code} {text!r}, {len(answer)} bytes")
            self._done(perf_counter() - started)
            self.in_flight -= 1
            self._call()

        self._connection.call(self._path, message, on_reply)


class HttpLoad:
    """Requests over one HTTP/1.1 keep-alive connection, one at a time.

    Args:
        messages: whole requests, heads included.
        least_bytes: an answer with a shorter body is a wrong one.
        done: called with the seconds that each request took.
    """

    def __init__(self, messages: Next, least_bytes: int, done: Callable[[float], None]) -> None:
        self._messages = messages
        self._least_bytes = least_bytes
        self._done = done
        self._buffer = b""
        self._started = 0.0
        self.in_flight = 0

    def start(self) -> bytes:
        """The first bytes to send."""
        return self._request()

    def receive(self, data: bytes) -> bytes:
        """Bytes came; the bytes to send in return."""
        self._buffer += data
        head, blank, body = self._buffer.partition(b"\r\n\r\n")
        if not blank or not is_whole(head, body):
            return b""
        if not is_success(head) or len(body) < self._least_bytes:
            raise LoadError(self._buffer[:500].decode(errors="replace"))
        self._buffer = b""
        self._done(perf_counter() - self._started)
        self.in_flight -= 1
        return self._request()

    def _request(self) -> bytes:
        message = next(self._messages, None)
        if message is None:
            return b""
        self.in_flight += 1
        self._started = perf_counter()
        return message


def is_success(head: bytes) -> bool:
    """Whether a response says that all went well: OK, or of the v2 API that the key is new."""
    return head.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 201 "))


def is_whole(head: bytes, body: bytes) -> bool:
    """Whether this is one whole response; there is never more than one, for none is asked for."""
    _, found, length = head.lower().partition(b"\r\ncontent-length:")
    if found:
        return len(body) >= int(length.partition(b"\r\n")[0])
    return body.endswith(b"0\r\n\r\n")  # chunked; this cannot be inside compact JSON


class Load(Protocol):
    """What happens over one connection."""

    @property
    def in_flight(self) -> int:
        """Requests that wait for their answer."""

    def start(self) -> bytes:
        """The first bytes to send."""

    def receive(self, data: bytes) -> bytes:
        """Take what came; what is to be sent for it."""


class _Link:
    """One socket under a load. TLS runs in memory, so that all records that came are read with one system call.

    Args:
        raw: connected and blocking; it stays so for the handshake.
        load: what to do over it.
        context: for TLS; ``None`` for plaintext.
        host: the name that the server's certificate must hold.
    """

    def __init__(self, raw: socket.socket, load: Load, context: ssl.SSLContext | None, host: str) -> None:
        self.load = load
        self.unsent = b""  # on the wire's side of TLS
        self._socket = raw
        self._tls: ssl.SSLObject | None = None
        if context is not None:
            self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
            self._shake_hands(self._tls)
        raw.setblocking(False)

    def send(self, data: bytes) -> None:
        """Send ``data`` after what waits, as far as the socket takes it."""
        if self._tls is not None and data:
            self._tls.write(data)
            data = self._outgoing.read()
        data = self.unsent + data if self.unsent else data
        if data:
            with suppress(BlockingIOError):  # the loop tries again when there is room
                data = data[self._socket.send(data) :]
        self.unsent = data

    def read(self) -> bytes:
        """What has come and can be read.

        Raises:
            LoadError: the server closed the connection.
        """
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return b""
        if not data:
            raise LoadError("the server closed the connection")
        if self._tls is None:
            return data
        self._incoming.write(data)
        records = []
        with suppress(ssl.SSLWantReadError):  # of the last record the rest may still be to come
            while self._incoming.pending:
                records.append(self._tls.read(_RECORD_BYTES))
        return b"".join(records)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _shake_hands(self, tls: ssl.SSLObject) -> None:
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._socket.sendall(self._outgoing.read())
                self._incoming.write(self._socket.recv(_READ_BYTES))
        self._socket.sendall(self._outgoing.read())


class Loop:
    """All connections of one load.

    Args:
        address: of the server.
        context: for TLS; ``None`` for plaintext.
    """

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext | None) -> None:
        self._address = address
        self._context = context
        self._links: dict[int, _Link] = {}
        self._poll = select.epoll()

    def add(self, load: Load) -> None:
        """Connect, which blocks, and send the first requests."""
        raw = socket.create_connection(self._address, timeout=_CONNECT_TIMEOUT_S)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = self._links[raw.fileno()] = _Link(raw, load, self._context, self._address[0])
        self._poll.register(raw.fileno(), select.EPOLLIN)
        link.send(load.start())

    def send(self, load: Load, data: bytes) -> None:
        """Send more over the connection of ``load``, outside of :meth:`turn`."""
        for number, link in self._links.items():
            if link.load is load:
                link.send(data)
                self._poll.modify(number, select.EPOLLIN | (select.EPOLLOUT if link.unsent else 0))

    def stop_reading(self, load: Load) -> None:
        """Leave unread what comes over the connection of ``load``, until :meth:`read_again`."""
        for number, link in self._links.items():
            if link.load is load:
                self._poll.unregister(number)

    def read_again(self, load: Load) -> None:
        """Undo :meth:`stop_reading`."""
        for number, link in self._links.items():
            if link.load is load:
                self._poll.register(number, select.EPOLLIN)

    def turn(self) -> None:
        """Wait shortly for readiness, and serve what is ready."""
        for number, _ in self._poll.poll(_POLL_S):
            link = self._links[number]
            waited = bool(link.unsent)
            data = link.read()
            answer = link.load.receive(data) if data else b""
            if answer or waited:
                link.send(answer)
                if waited or link.unsent:
                    self._poll.modify(number, select.EPOLLIN | (select.EPOLLOUT if link.unsent else 0))

    @property
    def in_flight(self) -> int:
        """Requests that wait for their answer."""
        return sum(link.load.in_flight for link in self._links.values())

    def close(self) -> None:
        """Close every connection."""
        for link in self._links.values():
            link.close()
        self._poll.close()
