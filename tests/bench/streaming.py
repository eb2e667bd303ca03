"""Loads on streams: leases that are kept alive, and one writer with many watchers.

:class:`FanOut` is for the long polls of the v2 API as well (``longpolls.py``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Protocol

from tests.bench.connections import Load, LoadError, Loop
from twistedkv.errors import Code
from twistedkv.pb import rpc_pb2 as pb
from twistedkv.protocols.grpcclient import ClientStream, GrpcClientConnection

_TTL_S = 3600
_KEEP_ALIVE, _GRANT = "/etcdserverpb.Lease/LeaseKeepAlive", "/etcdserverpb.Lease/LeaseGrant"
_WATCH, _PUT = "/etcdserverpb.Watch/Watch", "/etcdserverpb.KV/Put"


class KeepAliveLoad:
    """One lease, kept alive on some streams of one connection, on each as fast as answers come.

    Args:
        lease: its id; it is granted unless it is there.
        streams: how many.
        done: called with the seconds that each renewal took.
    """

    def __init__(self, lease: int, streams: int, done: Callable[[float], None]) -> None:
        self._lease = lease
        self._streams = streams
        self._done = done
        self._request = pb.LeaseKeepAliveRequest(ID=lease).SerializeToString()
        self._connection = GrpcClientConnection()
        self.in_flight = 0

    def start(self) -> bytes:
        """The first bytes to send."""
        self._connection.start()
        grant = pb.LeaseGrantRequest(ID=self._lease, TTL=_TTL_S).SerializeToString()
        self._connection.call(_GRANT, grant, self._on_granted)
        return self._connection.take_output()

    def receive(self, data: bytes) -> bytes:
        """Bytes came; the bytes to send in return."""
        self._connection.receive(data)
        return self._connection.take_output()

    def _on_granted(self, code: int, text: str, answer: bytes) -> None:
        if code and code != Code.FAILED_PRECONDITION:  # it is there already
            raise LoadError(f"a lease is refused with {code}: {text}")
        for _ in range(self._streams):
            self._open()

    def _open(self) -> None:
        asked = perf_counter()

        def on_message(message: bytes) -> None:
            nonlocal asked
            if not message.endswith(_RENEWED):
                raise LoadError(f"a lease is not renewed: {message!r}")
            now = perf_counter()
            self._done(now - asked)
            asked = now
            stream.send(self._request)

        stream = self._connection.open_stream(_KEEP_ALIVE, on_message, _on_end)
        stream.send(self._request)
        self.in_flight += 1


_RENEWED = pb.LeaseKeepAliveResponse(TTL=_TTL_S).SerializeToString()  # how the answer ends


class WatchLoad:
    """Watches of one key, all on one stream of one connection.

    Args:
        key: what they watch.
        watches: how many.
        got: called with the number of events in each response.
    """

    in_flight = 0

    def __init__(self, key: bytes, watches: int, got: Callable[[int], None]) -> None:
        self.created = 0
        self._request = pb.WatchRequest(create_request=pb.WatchCreateRequest(key=key)).SerializeToString()
        self._watches = watches
        self._got = got
        self._connection = GrpcClientConnection()

    def start(self) -> bytes:
        """The first bytes to send."""
        self._connection.start()
        stream: ClientStream = self._connection.open_stream(_WATCH, self._on_message, _on_end)
        for _ in range(self._watches):
            stream.send(self._request)
        return self._connection.take_output()

    def receive(self, data: bytes) -> bytes:
        """Bytes came; the bytes to send in return."""
        self._connection.receive(data)
        return self._connection.take_output()

    def _on_message(self, message: bytes) -> None:
        response = pb.WatchResponse.FromString(message)
        if response.created:
            self.created += 1
        if response.events:
            self._got(len(response.events))


class PutLoad:
    """Puts of one key, each when it is asked for.

    Args:
        key: what is written.
        value: the same each time.
    """

    def __init__(self, key: bytes, value: bytes) -> None:
        self.in_flight = 0
        self._request = pb.PutRequest(key=key, value=value).SerializeToString()
        self._connection = GrpcClientConnection()

    def start(self) -> bytes:
        """The first bytes to send."""
        self._connection.start()
        return self._connection.take_output()

    def put(self) -> bytes:
        """The bytes of one put more."""
        self.in_flight += 1
        self._connection.call(_PUT, self._request, self._on_reply)
        return self._connection.take_output()

    def receive(self, data: bytes) -> bytes:
        """Bytes came; the bytes to send in return."""
        self._connection.receive(data)
        return self._connection.take_output()

    def _on_reply(self, code: int, text: str, message: bytes) -> None:
        if code:
            raise LoadError(f"a put failed with {code}: {text}")
        self.in_flight -= 1


class Writer(Load, Protocol):
    """Writes one key: :class:`PutLoad`, or a ``SetLoad`` of the v2 API."""

    def put(self) -> bytes:
        """The bytes to send for one write more."""


class Watching(Load, Protocol):
    """Watches of one key over one connection: :class:`WatchLoad`, or a ``PollLoad`` of the v2 API."""

    @property
    def created(self) -> int:
        """How many of them the server has made."""


class FanOut:
    """One writer and many watchers of its key: as soon as all watchers have a put, the next one goes out.

    Args:
        loop: runs the connections.
        writer: of the key.
        puts: at most so many are not yet with every watcher.
        done: called with the seconds from each put to its last event.
    """

    def __init__(self, loop: Loop, writer: Writer, puts: int, done: Callable[[float], None]) -> None:
        self.events = 0  # delivered
        self._loop = loop
        self._most = puts
        self._done = done
        self._writer = writer
        self._watchers = 0
        self._complete = 0  # puts that everybody has
        self._sent: deque[float] = deque()  # when each put went out that not everybody has

    def start(self, loads: Sequence[Watching], watchers: int) -> None:
        """Have all watches made, ``watchers`` in number, and send the first puts. The loads call :meth:`got`."""
        self._watchers = watchers
        for load in loads:
            self._loop.add(load)
        while sum(load.created for load in loads) < self._watchers:
            self._loop.turn()
        self._loop.add(self._writer)
        self._put()

    def got(self, events: int) -> None:
        """So many events came to some watcher."""
        self.events += events
        complete = self.events // self._watchers
        if complete > self._complete:
            now = perf_counter()
            for _ in range(complete - self._complete):
                self._done(now - self._sent.popleft())
            self._complete = complete
            self._put()

    def _put(self) -> None:
        while len(self._sent) < self._most:
            self._sent.append(perf_counter())
            self._loop.send(self._writer, self._writer.put())


def _on_end(code: int, text: str) -> None:
    raise LoadError(f"a stream ended with {code}: {text}")
