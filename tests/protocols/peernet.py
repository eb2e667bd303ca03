"""Members in one process: several ``Peers`` on one clock, with a network in memory between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure

from tests.fakes import Wire
from twistedkv.protocols.answers import Answer
from twistedkv.protocols.msgappv2 import StreamKind
from twistedkv.protocols.peer import Peers
from twistedkv.protocols.tls import ClientContext, ServerContext
from twistedkv.raft.messages import Message

CLUSTER = 0xC1


class Sink:
    """Keeps a snapshot's database. ``slow`` makes it take one part at a time, by :meth:`taken`."""

    def __init__(self, message: Message, done: Callable[[Message], None]) -> None:
        self.message = message
        self.content = b""
        self.aborted = False
        self.slow = False
        self.failure: Exception | None = None
        self.waiting: Deferred[None] | None = None
        self._done = done

    def write(self, chunk: bytes) -> Deferred[None] | None:
        if self.waiting is not None:
            raise AssertionError("a part before the one before it was taken")
        if self.failure is not None:
            raise self.failure
        self.content += chunk
        if self.slow:
            self.waiting = Deferred()
        return self.waiting

    def taken(self) -> None:
        waiting, self.waiting = self.waiting, None
        if waiting is not None:
            waiting.callback(None)

    def finish(self) -> Deferred[None]:
        self._done(self.message)
        return succeed(None)

    def abort(self) -> None:
        self.aborted = True


class FakeReceiver:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.lost: list[int] = []
        self.snapshots: list[tuple[int, bool]] = []
        self.sinks: list[Sink] = []
        self.checksums: list[int | None] = []
        self.removed_members: set[int] = set()
        self.told_removed = 0
        self.slow_sinks = False
        self.sink_failure: Exception | None = None

    def received(self, message: Message) -> None:
        self.messages.append(message)

    def snapshot_begin(self, message: Message, crc32c: int | None) -> Sink:
        self.checksums.append(crc32c)
        self.sinks.append(Sink(message, self.messages.append))
        self.sinks[-1].slow = self.slow_sinks
        self.sinks[-1].failure = self.sink_failure
        return self.sinks[-1]

    def unreachable(self, member_id: int) -> None:
        self.lost.append(member_id)

    def snapshot_sent(self, member_id: int, ok: bool) -> None:
        self.snapshots.append((member_id, ok))

    def removed(self) -> None:
        self.told_removed += 1

    def is_removed(self, member_id: int) -> bool:
        return member_id in self.removed_members

    def members_json(self) -> bytes:
        return b"[]\n"

    def version_json(self) -> bytes:
        return b"{}"


class FakeObserver:
    """Counts."""

    def __init__(self) -> None:
        self.clock_s: Callable[[], float] = float
        self.sent: dict[int, int] = {}
        self.received: dict[int, int] = {}
        self.appends: list[tuple[str, int, int, int]] = []  # what became of them, member, bytes, how many
        self.times_s: list[float] = []  # that appends took
        self.failed_sends = 0
        self.failed_receives = 0
        self.active: set[tuple[int, StreamKind]] = set()
        self.trips: list[tuple[int, float, float]] = []
        self.snapshots: list[tuple[str, int, bool | None]] = []

    def sent_bytes(self, member_id: int, count: int) -> None:
        self.sent[member_id] = self.sent.get(member_id, 0) + count

    def received_bytes(self, member_id: int, count: int) -> None:
        self.received[member_id] = self.received.get(member_id, 0) + count

    def appends_written(self, member_id: int, size: int, count: int, seconds: float) -> None:
        self.sent_bytes(member_id, size)
        self.appends.append(("written", member_id, size, count))
        self.times_s.append(seconds)

    def appends_sent(self, member_id: int, size: int, count: int) -> None:
        self.appends.append(("sent", member_id, size, count))

    def append_posted(self, member_id: int, seconds: float) -> None:
        self.appends.append(("posted", member_id, 0, 1))
        self.times_s.append(seconds)

    def append_lost(self, member_id: int) -> None:
        self.appends.append(("lost", member_id, 0, 1))

    def appends_received(self, member_id: int, size: int, count: int) -> None:
        self.appends.append(("received", member_id, size, count))

    def send_failed(self, member_id: int) -> None:
        self.failed_sends += 1

    def receive_failed(self, member_id: int) -> None:
        self.failed_receives += 1

    def stream_active(self, member_id: int, kind: StreamKind, active: bool) -> None:
        (self.active.add if active else self.active.discard)((member_id, kind))

    def round_trip(self, member_id: int, rtt_s: float, drift_s: float) -> None:
        self.trips.append((member_id, rtt_s, drift_s))

    def snapshot_sending(self, member_id: int) -> None:
        self.snapshots.append(("sending", member_id, None))

    def snapshot_sent(self, member_id: int, ok: bool) -> None:
        self.snapshots.append(("sent", member_id, ok))

    def snapshot_receiving(self, member_id: int) -> None:
        self.snapshots.append(("receiving", member_id, None))

    def snapshot_received(self, member_id: int, ok: bool) -> None:
        self.snapshots.append(("received", member_id, ok))


class Network:
    """Carries what the members' connections say. A member is known by its port.

    Args:
        tls: what each member serves and dials with.
    """

    def __init__(self, tls: tuple[ServerContext | None, ClientContext | None] = (None, None)) -> None:
        self.reactor = MemoryReactorClock()
        self.tls = tls
        self.peers: dict[int, Peers] = {}
        self.receivers: dict[int, FakeReceiver] = {}
        self.observers: dict[int, FakeObserver] = {}
        self.wires: list[Wire] = []
        self.cut: set[int] = set()  # ports that nobody reaches
        self.dials: list[int] = []
        self._seen = 0

    def url(self, member: int) -> str:
        """Where a member is reached."""
        return f"{'https' if self.tls[0] else 'http'}://127.0.0.1:{member}"

    def add(self, member: int, cluster: int = CLUSTER, extra: Any = None, **options: Any) -> Peers:
        """A member that listens and knows nobody yet."""
        receiver, observer = FakeReceiver(), FakeObserver()
        peers = Peers(
            self.reactor,
            member,
            cluster,
            "3.5.1",
            [self.url(member)],
            *self.tls,
            receiver,
            observer,
            extra=extra,
            **options,
        )
        peers.listen([self.url(member)])
        self.peers[member], self.receivers[member], self.observers[member] = peers, receiver, observer
        return peers

    def introduce(self) -> None:
        """Everyone knows everyone, and the streams are there."""
        for one, peers in self.peers.items():
            for other in self.peers:
                if one != other:
                    peers.set_peer(other, [self.url(other)])
        self.settle()

    def settle(self) -> None:
        """Let connections be made and bytes flow until nothing moves."""
        for _ in range(30):
            self.reactor.advance(0)
            self._connect()
            for wire in self.wires:
                wire.pump()

    def run(self, seconds: float) -> None:
        """Let time pass, in steps of 0.1 s."""
        for _ in range(round(seconds * 10)):
            self.reactor.advance(0.1)
            self.settle_once()

    def settle_once(self) -> None:
        """One round of connections and bytes."""
        self._connect()
        for wire in self.wires:
            wire.pump()
        self._connect()

    def _connect(self) -> None:
        servers = {port: factory for port, factory, *_ in self.reactor.tcpServers}
        while self._seen < len(self.reactor.tcpClients):
            _, port, factory, *_ = self.reactor.tcpClients[self._seen]
            self._seen += 1
            self.dials.append(port)
            if port in self.cut or port not in servers:
                factory.clientConnectionFailed(None, Failure(ConnectionRefusedError()))
                continue
            address = IPv4Address("TCP", "127.0.0.1", port)
            client, server = factory.buildProtocol(address), servers[port].buildProtocol(address)
            self.wires.append(Wire(self.reactor, client, server))

    def partition(self, port: int) -> None:
        """Nobody reaches this port any more; its connections are as they were."""
        self.cut.add(port)

    def break_all(self) -> None:
        """Every connection is lost."""
        for wire in self.wires:
            for socket in (wire.client, wire.server):
                if socket.connected:
                    socket.connectionLost(Failure(ConnectionAbortedError()))
        self.wires.clear()


def answer_later(answers: list[tuple[str, str, bytes, Deferred[Answer]]]) -> Any:
    """An answerer of further paths whose answers are the test's to give."""

    def extra(method: str, path: str, fields: Any, body: bytes) -> Deferred[Answer]:
        answer: Deferred[Answer] = Deferred()
        answers.append((method, path, body, answer))
        return answer

    return extra


def pieces(count: int, size: int) -> Callable[[], Iterator[bytes]]:
    """A database of so many parts."""
    return lambda: (bytes((each % 256,)) * size for each in range(count))
