"""Many watchers under load: every one of them sees every change of its key, once and in order.

A thousand watchers on a hundred keys, while fifty clients write as fast as they are answered, and one more watcher of
all keys does not read at all until the others are done. What each saw is compared with the history, which is what the
writers were answered. One loop in one process drives all of it (``tests/bench/connections.py``).
"""

from __future__ import annotations

import re
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from random import Random

from tests.bench.connections import Loop
from tests.functional.processes import ServerProcess
from twistedkv.pb import rpc_pb2 as pb
from twistedkv.protocols.grpcclient import GrpcClientConnection

WATCH, PUT = "/etcdserverpb.Watch/Watch", "/etcdserverpb.KV/Put"
_PREFIX, _PREFIX_END = b"soak/", b"soak0"
_VALUE_BYTES = 500
_TIMEOUT_S = 60.0


class SoakFailed(Exception):
    """A watcher missed something, or got what it should not have."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it, where nothing went wrong."""

    puts: int
    events: int
    rss_before: int  # of the server in bytes, after a third of the time
    rss_after: int  # at the end of the writing
    slow_watchers: int  # as the server counts them, at the end of the writing


class Watched:
    """One watch and what it saw."""

    def __init__(self, key: bytes, range_end: bytes = b"") -> None:
        self.request = pb.WatchCreateRequest(key=key, range_end=range_end)
        self.key = key
        self.created = False
        self.revisions: list[int] = []

    def on_message(self, message: bytes) -> None:
        """One response."""
        response = pb.WatchResponse.FromString(message)
        if response.created:
            self.created = True
        elif response.canceled or not response.events:
            raise SoakFailed(f"the watch of {self.key!r} got {response}")
        for event in response.events:
            if not self.request.range_end and event.kv.key != self.key:
                raise SoakFailed(f"the watch of {self.key!r} got {event.kv.key!r}")
            self.revisions.append(event.kv.mod_revision)


class Watches:
    """Watches over one connection, each on a stream of its own."""

    in_flight = 0

    def __init__(self, watches: list[Watched]) -> None:
        self.watches = watches
        self._connection = GrpcClientConnection()

    def start(self) -> bytes:
        """The first bytes to send."""
        self._connection.start()
        for watch in self.watches:
            stream = self._connection.open_stream(WATCH, watch.on_message, self._on_end)
            stream.send(pb.WatchRequest(create_request=watch.request).SerializeToString())
        return self._connection.take_output()

    def receive(self, data: bytes) -> bytes:
        """Take what came; what is to be sent for it."""
        self._connection.receive(data)
        return self._connection.take_output()

    def _on_end(self, code: int, text: str) -> None:
        raise SoakFailed(f"a watch ended with {code}: {text}")


class Writer:
    """Puts over one connection, one after the other.

    Args:
        keys: to choose from.
        dice: chooses.
        history: revisions by key, as they are answered.
    """

    def __init__(self, keys: list[bytes], dice: Random, history: dict[bytes, list[int]]) -> None:
        self.in_flight = 0
        self.writing = True
        self._keys = keys
        self._dice = dice
        self._history = history
        self._connection = GrpcClientConnection()

    def start(self) -> bytes:
        """The first bytes to send."""
        self._connection.start()
        return self._next()

    def receive(self, data: bytes) -> bytes:
        """Take what came; what is to be sent for it."""
        self._connection.receive(data)
        return self._next()

    def _next(self) -> bytes:
        if self.writing and not self.in_flight:
            self.in_flight = 1
            key = self._dice.choice(self._keys)

            def on_reply(code: int, text: str, message: bytes) -> None:
                if code:
                    raise SoakFailed(f"a put failed with {code}: {text}")
                self.in_flight = 0
                self._history[key].append(pb.PutResponse.FromString(message).header.revision)

            request = pb.PutRequest(key=key, value=self._dice.randbytes(_VALUE_BYTES))
            self._connection.call(PUT, request.SerializeToString(), on_reply)
        return self._connection.take_output()


def soak(
    server: ServerProcess, seconds: float, watchers: int = 1_000, keys: int = 100, writers: int = 50, seed: int = 1
) -> Outcome:
    """Run it against a running server.

    Raises:
        SoakFailed: a watcher did not see exactly the history, in its order.
    """
    loop = Loop(("127.0.0.1", server.port), server.tls.client_context("h2") if server.tls else None)
    names = [b"%s%03d" % (_PREFIX, number) for number in range(keys)]
    history: dict[bytes, list[int]] = defaultdict(list)
    all_watches = [Watched(names[number % keys]) for number in range(watchers)]
    connections = [Watches(all_watches[start : start + 50]) for start in range(0, watchers, 50)]
    lazy = Watches([Watched(_PREFIX, _PREFIX_END)])
    sources = [Writer(names, Random(seed * 1_000 + number), history) for number in range(writers)]
    try:
        for load in (*connections, lazy):
            loop.add(load)
        _until(loop, lambda: all(watch.created for watch in (*all_watches, *lazy.watches)), "watches are not confirmed")
        loop.stop_reading(lazy)
        for source in sources:
            loop.add(source)
        end = time.monotonic() + seconds
        rss_before = 0
        while (now := time.monotonic()) < end:
            loop.turn()
            if not rss_before and end - now < seconds * 2 / 3:
                rss_before = server.rss_bytes()
        rss_after, slow = server.rss_bytes(), slow_watchers(server)
        for source in sources:
            source.writing = False
        _until(loop, lambda: not any(source.in_flight for source in sources), "puts are not answered")
        wanted = {key: sorted(revisions) for key, revisions in history.items()}
        _until(
            loop,
            lambda: all(len(watch.revisions) >= len(wanted.get(watch.key, ())) for watch in all_watches),
            "events are missing",
        )
        loop.read_again(lazy)
        total = sum(map(len, wanted.values()))
        _until(loop, lambda: len(lazy.watches[0].revisions) >= total, "events of the one that did not read are missing")
    finally:
        loop.close()
    for watch in all_watches:
        if watch.revisions != wanted.get(watch.key, []):
            raise SoakFailed(f"a watch of {watch.key!r} saw something else than what happened")
    if lazy.watches[0].revisions != sorted(chain.from_iterable(wanted.values())):
        raise SoakFailed("the watch that did not read for long saw something else than what happened")
    return Outcome(total, sum(len(watch.revisions) for watch in all_watches), rss_before, rss_after, slow)


def slow_watchers(server: ServerProcess) -> int:
    """How many watchers are behind, as the server tells Prometheus."""
    context = server.tls.client_context("http/1.1") if server.tls else None
    with urllib.request.urlopen(f"{server.endpoint}/metrics", context=context, timeout=_TIMEOUT_S) as answer:
        found = re.search(rb"^etcd_debugging_mvcc_slow_watcher_total (\d+)", answer.read(), re.MULTILINE)
    if found is None:
        raise SoakFailed("the server does not count slow watchers")
    return int(found[1])


def _until(loop: Loop, done: Callable[[], bool], trouble: str) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while not done():
        loop.turn()
        if time.monotonic() > deadline:
            raise SoakFailed(f"{trouble} after {_TIMEOUT_S:.0f} s")
