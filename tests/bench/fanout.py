"""Watch fan-out: how many events a second reach many watchers of one key, next to real etcd on this machine.

``python -m tests.bench.fanout`` runs two cases against each server in turn: one put at a time to 1,000 watchers, the
next one when all have it; and 1,000 puts, ten in flight, to 100 watchers. Watchers are spread over ten connections,
each watch a stream of its own, or all watches of a connection on one stream.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.bench.connections import Loop
from tests.functional.processes import MISSING_ETCD, EtcdProcess, ServerProcess, TLSFiles, TwistedkvProcess
from twistedkv.pb import rpc_pb2 as pb
from twistedkv.protocols.grpcclient import ClientStream, GrpcClientConnection

WATCH, PUT = "/etcdserverpb.Watch/Watch", "/etcdserverpb.KV/Put"
_KEY = b"fanout"
_VALUE_BYTES = 256
_TIMEOUT_S = 60.0


class FanoutError(Exception):
    """A server gave something other than the events that it owes."""


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement."""

    name: str
    watchers: int
    puts: int
    in_flight: int  # puts; 1: the next one when all watchers have the last
    shared_stream: bool  # one stream a connection; else one a watcher
    connections: int = 10


@dataclass(frozen=True, slots=True)
class Figure:
    """What came of it."""

    events_per_s: float
    server_cpu_us: float  # an event


CASES = [
    Case(f"{name}, {how}", watchers, puts, in_flight, shared)
    for name, watchers, puts, in_flight in (
        ("one put to 1,000 watchers", 1_000, 100, 1),
        ("100 watchers x 1,000 puts", 100, 1_000, 10),
    )
    for how, shared in (("a stream each", False), ("a stream a connection", True))
]


class WatchLoad:
    """Watches of one key over one HTTP/2 connection.

    Args:
        watches: how many.
        shared_stream: all on one stream; else each on its own.
        got: called with the number of events in each response.
    """

    in_flight = 0

    def __init__(self, watches: int, shared_stream: bool, got: Callable[[int], None]) -> None:
        self.created = 0
        self._watches = watches
        self._shared_stream = shared_stream
        self._got = got
        self._connection = GrpcClientConnection()

    def start(self) -> bytes:
        """The first bytes to send."""
        self._connection.start()
        request = pb.WatchRequest(create_request=pb.WatchCreateRequest(key=_KEY)).SerializeToString()
        stream: ClientStream | None = None
        for _ in range(self._watches):
            if stream is None or not self._shared_stream:
                stream = self._connection.open_stream(WATCH, self._on_message, self._on_end)
            stream.send(request)
        return self._connection.take_output()

    def receive(self, data: bytes) -> bytes:
        """Take what came; what is to be sent for it."""
        self._connection.receive(data)
        return self._connection.take_output()

    def _on_message(self, message: bytes) -> None:
        response = pb.WatchResponse.FromString(message)
        if response.created:
            self.created += 1
        self._got(len(response.events))

    def _on_end(self, code: int, text: str) -> None:
        raise FanoutError(f"a watch ended with {code}: {text}")


class PutLoad:
    """Puts on one connection; more are sent when :attr:`allowed` grows, at the next answer or :meth:`go`."""

    def __init__(self, in_flight: int) -> None:
        self.in_flight = 0
        self.left = 0
        self._most = in_flight
        self._connection = GrpcClientConnection()
        self._message = pb.PutRequest(key=_KEY, value=bytes(_VALUE_BYTES)).SerializeToString()

    def start(self) -> bytes:
        """The first bytes to send."""
        self._connection.start()
        return self.go(1)

    def go(self, puts: int) -> bytes:
        """Send so many more, as many at once as may be in flight."""
        self.left += puts
        while self.left and self.in_flight < self._most:
            self.left -= 1
            self.in_flight += 1
            self._connection.call(PUT, self._message, self._on_reply)
        return self._connection.take_output()

    def receive(self, data: bytes) -> bytes:
        """Take what came; what is to be sent for it."""
        self._connection.receive(data)
        return self.go(0)

    def _on_reply(self, code: int, text: str, message: bytes) -> None:
        if code:
            raise FanoutError(f"a put failed with {code}: {text}")
        self.in_flight -= 1


def measure(server: ServerProcess, case: Case) -> Figure:
    """Run one case against a running server.

    Raises:
        FanoutError: events are missing.
    """
    context = server.tls.client_context("h2") if server.tls else None
    loop = Loop(("127.0.0.1", server.port), context)
    count = 0

    def got(events: int) -> None:
        nonlocal count
        count += events

    def until(done: Callable[[], bool]) -> None:
        deadline = time.perf_counter() + _TIMEOUT_S
        while not done():
            loop.turn()
            if time.perf_counter() > deadline:
                raise FanoutError(f"{server.label}, {case.name}: {count} events after {_TIMEOUT_S:.0f} s")

    try:
        each = case.watchers // case.connections
        watches = [WatchLoad(each, case.shared_stream, got) for _ in range(case.connections)]
        for load in watches:
            loop.add(load)
        until(lambda: all(load.created == each for load in watches))
        puts = PutLoad(case.in_flight)
        loop.add(puts)
        until(lambda: count >= case.watchers)  # of the put that warms everything up
        gc.disable()
        count = 0
        started, cpu_s = time.perf_counter(), server.cpu_seconds()
        if case.in_flight == 1:
            for number in range(case.puts):
                loop.send(puts, puts.go(1))
                until(lambda wanted=(number + 1) * case.watchers: count >= wanted)  # type: ignore[misc]
        else:
            loop.send(puts, puts.go(case.puts))
            until(lambda: count >= case.puts * case.watchers)
        seconds, cpu_s = time.perf_counter() - started, server.cpu_seconds() - cpu_s
        if count != case.puts * case.watchers:
            raise FanoutError(f"{server.label}, {case.name}: {count} events are too many")
        return Figure(count / seconds, cpu_s / count * 1e6)
    finally:
        gc.enable()
        loop.close()


def main(arguments: list[str]) -> int:
    """Measure both servers in turn, several times, and print the best of each."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.fanout")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    if MISSING_ETCD:
        sys.stdout.write(MISSING_ETCD + "\n")
        return 1
    with tempfile.TemporaryDirectory() as scratch:
        tls = TLSFiles.make(Path(scratch) / "tls")
        servers = [EtcdProcess(Path(scratch) / "etcd", tls), TwistedkvProcess(Path(scratch) / "twistedkv", tls)]
        try:
            for server in servers:
                server.start()
            for case in CASES:
                best: dict[str, Figure] = {}
                for _ in range(options.rounds):
                    for server in servers:
                        figure = measure(server, case)
                        if server.label not in best or figure.events_per_s > best[server.label].events_per_s:
                            best[server.label] = figure
                theirs, ours = (best[server.label] for server in servers)
                sys.stdout.write(
                    f"{case.name}: etcd {theirs.events_per_s:,.0f} events/s at {theirs.server_cpu_us:.1f} us, "
                    f"twistedkv {ours.events_per_s:,.0f} at {ours.server_cpu_us:.1f} us, "
                    f"{ours.events_per_s / theirs.events_per_s:.2f} times\n"
                )
        finally:
            for server in servers:
                server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
