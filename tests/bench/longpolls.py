"""The v2 keys API under load: its requests, and long polls with one writer (etcd ``client/v2/keys.go`` sends alike).

Everything is over HTTP/1.1 connections that are kept. A long poll has a connection of its own; when it has its event,
it asks for the next one by ``waitIndex``, so that nothing is missed between two polls.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64encode
from collections.abc import Callable
from random import Random

from tests.bench.connections import LoadError, is_success, is_whole

_MODIFIED = re.compile(rb'"modifiedIndex":(\d+)')  # the node's comes first, the previous node's after it


def set_request(address: str, key: bytes, value: bytes) -> bytes:
    """The request that sets ``key`` on the server at ``address``; neither key nor value may need escapes."""
    form = b"value=" + value
    return (
        b"PUT /v2/keys/%s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/x-www-form-urlencoded\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (key, address.encode(), len(form), form)
    )


def get_request(address: str, key: bytes, query: bytes = b"") -> bytes:
    """The request that gets ``key``; ``query`` with its question mark."""
    return b"GET /v2/keys/%s%s HTTP/1.1\r\nHost: %s\r\n\r\n" % (key, query, address.encode())


def text_of(dice: Random, size: int) -> bytes:
    """A random value of ``size`` bytes that needs no escapes in a form nor in JSON."""
    return urlsafe_b64encode(dice.randbytes(size))[:size]


class PollLoad:
    """One long poll after the other for one key over one connection.

    Args:
        address: of the server.
        key: what is waited for.
        least_bytes: an event with a shorter body is a wrong one.
        got: called with 1 for each event.
    """

    in_flight = 0

    def __init__(self, address: str, key: bytes, least_bytes: int, got: Callable[[int], None]) -> None:
        self.created = 0  # 1 from when the server has answered the first poll with its head: it waits
        self._address = address
        self._key = key
        self._least_bytes = least_bytes
        self._got = got
        self._buffer = b""

    def start(self) -> bytes:
        """The first bytes to send."""
        return get_request(self._address, self._key, b"?wait=true")

    def receive(self, data: bytes) -> bytes:
        """Bytes came; the bytes to send in return."""
        self._buffer += data
        head, blank, body = self._buffer.partition(b"\r\n\r\n")
        if not blank:
            return b""
        if not is_success(head):
            raise LoadError(self._buffer[:500].decode(errors="replace"))
        self.created = 1
        if not is_whole(head, body):
            return b""
        modified = _MODIFIED.search(body)
        if modified is None or len(body) < self._least_bytes:
            raise LoadError(f"no event: {body[:500].decode(errors='replace')}")
        self._buffer = b""
        self._got(1)
        return get_request(self._address, self._key, b"?wait=true&waitIndex=%d" % (int(modified[1]) + 1))


class SetLoad:
    """Sets of one key, each when it is asked for, or as soon as the one before it is answered.

    Args:
        request: see :func:`set_request`.
    """

    def __init__(self, request: bytes) -> None:
        self.in_flight = 0  # and those that are not sent yet
        self._request = request
        self._buffer = b""

    def start(self) -> bytes:
        """Nothing is sent at first."""
        return b""

    def put(self) -> bytes:
        """The bytes of one set more, if it may go out at once."""
        self.in_flight += 1
        return self._request if self.in_flight == 1 else b""

    def receive(self, data: bytes) -> bytes:
        """Bytes came; the bytes to send in return."""
        self._buffer += data
        head, blank, body = self._buffer.partition(b"\r\n\r\n")
        if not blank or not is_whole(head, body):
            return b""
        if not is_success(head):
            raise LoadError(self._buffer[:500].decode(errors="replace"))
        self._buffer = b""
        self.in_flight -= 1
        return self._request if self.in_flight else b""
