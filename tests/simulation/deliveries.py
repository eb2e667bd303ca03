"""What takes several turns between two members: a snapshot on its way, and a question with its answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Any, NamedTuple, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost, ConnectionRefusedError

from tests.simulation.clock import ProcessTime, SimulatedClock
from twistedkv.peering import Reply
from twistedkv.protocols.answers import NO_FIELDS, Answer
from twistedkv.protocols.receiver import Receiver, SnapshotSink
from twistedkv.raft.messages import Message
from twistedkv.raft.wire import decode_message, encode_message

NOTICE_S = 5.0  # until a connection that nothing comes through counts as lost; etcd rafthttp, ConnReadTimeout
LIMIT_S = 60.0  # for a whole snapshot
PIECE_BYTES = 16 * 1024  # of a snapshot; small, so that it can be cut in the middle

Site = Callable[[str, str, dict[str, str], bytes], Deferred[Answer]]


class Port(Protocol):
    """One end; see :class:`tests.simulation.network.SimulatedTransport`."""

    me: int
    time: ProcessTime
    receiver: Receiver
    site: Site | None
    deliveries: list[Delivery]


class Ways(Protocol):
    """What is between the ends; see :class:`tests.simulation.network.Network`."""

    clock: SimulatedClock
    random: Random

    @property
    def cut_share(self) -> float:
        """Of snapshots that are cut off on their way."""

    @property
    def damaged_share(self) -> float:
        """Of snapshots that are damaged on their way."""

    def note(self, what: str, member_id: int, *facts: Any) -> None:
        """Keep a line of what happened."""

    def damaged_snapshot_taken(self, target: int) -> None:
        """A member has taken a snapshot that was damaged on its way."""

    def delay_s(self) -> float:
        """How long the next message takes."""

    def is_cut(self, source: int, target: int) -> bool:
        """Whether nothing gets through."""

    def port_of(self, member: int) -> Port | None:
        """The end of a member whose process lives."""


class Delivery:
    """One snapshot on its way: read at one end, written at the other, piece after piece."""

    def __init__(
        self,
        network: Ways,
        source: Port,
        message: Message,
        chunks: Callable[[], Iterator[bytes]],
        crc32c: int,
    ) -> None:
        random = network.random
        self.target = message.to
        self._network = network
        self._source = source
        self._message = encode_message(message)
        self._pieces = _pieces(chunks())
        self._crc32c = crc32c
        self._cut_in = random.randrange(1, 5) if random.random() < network.cut_share else -1
        self._damage_in = random.randrange(1, 4) if random.random() < network.damaged_share else -1
        self._damaged = False
        self._sink: SnapshotSink | None = None
        self._port: Port | None = None  # where it arrives
        self._over = False
        self._limit = network.clock.callLater(LIMIT_S, self.lost)
        source.time.from_outside(network.delay_s(), self._begin)

    def _begin(self) -> None:
        port = self._port = self._network.port_of(self.target)
        if port is None:
            self.lost()
        else:
            self._go_there(self._opened)

    def _opened(self) -> None:
        port = self._port
        assert port is not None
        message = decode_message(self._message)
        if port.receiver.is_removed(message.sender):
            self.lost()
            return
        self._sink = port.receiver.snapshot_begin(message, self._crc32c)
        self._go_back(self._read)

    def _read(self) -> None:
        self._cut_in -= 1
        if self._cut_in == 0:
            self.lost()
            return
        try:
            piece = next(self._pieces, None)
        except ValueError:  # its sender has closed the copy: the addressee is no member any more
            self.lost()
            return
        if piece is None:
            self._go_there(self._finish)
            return
        self._damage_in -= 1
        if self._damage_in == 0:
            self._damaged = True
            self._network.note("damage", self.target)
            position = self._network.random.randrange(len(piece))
            flipped = piece[position] ^ 1 << self._network.random.randrange(8)
            piece = piece[:position] + bytes((flipped,)) + piece[position + 1 :]
        self._go_there(self._write, piece)

    def _write(self, piece: bytes) -> None:
        assert self._sink is not None
        written = self._sink.write(piece)
        if written is None:
            self._go_back(self._read)
        else:
            written.addCallbacks(lambda _: self._go_back(self._read), lambda _: self.lost())

    def _finish(self) -> None:
        assert self._sink is not None
        self._sink.finish().addCallbacks(self._taken, lambda _: self.lost())

    def _taken(self, _: None) -> None:
        if self._damaged:
            self._network.damaged_snapshot_taken(self.target)
        self._sink = None
        if not self._over:
            self._go_back(self._end, True)

    def _go_there(self, function: Callable[..., None], *arguments: Any) -> None:
        if not self._over and self._port is not None:
            self._port.time.from_outside(self._network.delay_s(), self._unless_over, function, *arguments)

    def _go_back(self, function: Callable[..., None], *arguments: Any) -> None:
        if self._over:
            return
        if self._network.is_cut(self._source.me, self.target) or self._network.is_cut(self.target, self._source.me):
            self._network.clock.callLater(NOTICE_S, self.lost)
        else:
            self._source.time.from_outside(self._network.delay_s(), self._unless_over, function, *arguments)

    def _unless_over(self, function: Callable[..., None], *arguments: Any) -> None:
        if not self._over:
            function(*arguments)

    def lost(self) -> None:
        """The connection broke, or one end refused."""
        if not self._over:
            self._abort()
            self._over = True
            self._source.time.from_outside(self._network.delay_s(), self._tell, False)

    def sender_died(self) -> None:
        """Nobody wants to hear of it any more."""
        if not self._over:
            self._abort()
            self._forget()

    def _end(self, ok: bool) -> None:
        self._over = True
        self._tell(ok)

    def _tell(self, ok: bool) -> None:
        if self in self._source.deliveries:
            self._forget()
            self._network.note("snapshot sent", self._source.me, (self.target, ok))
            self._source.receiver.snapshot_sent(self.target, ok)

    def _forget(self) -> None:
        self._over = True
        if self._limit.active():
            self._limit.cancel()
        if self in self._source.deliveries:
            self._source.deliveries.remove(self)

    def _abort(self) -> None:
        sink, self._sink = self._sink, None
        if sink is not None and self._port is not None:
            self._port.time.from_outside(self._network.delay_s(), sink.abort)


class Asked(NamedTuple):
    """What is asked."""

    method: str
    path: str
    body: bytes


class Question:
    """One question over the peer port, and its answer."""

    def __init__(
        self, network: Ways, source: Port, target: int, asked: tuple[str, str, bytes], timeout_s: float
    ) -> None:
        self.reply: Deferred[Reply] = Deferred(lambda _: self._end())
        self._network = network
        self._source = source
        self._target = target
        self._asked = Asked(*asked)
        self._over = False
        self._limit = source.time.from_outside(timeout_s, self._fail, ConnectionLost())
        port = network.port_of(target)
        if port is None:
            source.time.from_outside(network.delay_s(), self._fail, ConnectionRefusedError())
        elif not network.is_cut(source.me, target):
            port.time.from_outside(network.delay_s(), self._arrived, port)

    def _arrived(self, port: Port) -> None:
        method, path, body = self._asked
        if path == "/version":
            self._answered(Answer(200, NO_FIELDS, port.receiver.version_json()))
        elif path == "/members":
            self._answered(Answer(200, NO_FIELDS, port.receiver.members_json()))
        elif port.site is None:
            self._answered(Answer(404, NO_FIELDS, b""))
        else:
            answer = port.site(method, path, {}, body)
            answer.addCallbacks(self._answered, lambda _: self._answered(Answer(500, NO_FIELDS, b"")))

    def _answered(self, answer: Answer) -> None:
        network = self._network
        if not network.is_cut(self._target, self._source.me):
            reply = Reply(answer.status, {}, answer.body)
            self._source.time.from_outside(network.delay_s(), self._came, reply)

    def _came(self, reply: Reply) -> None:
        if not self._over:
            self._end()
            self.reply.callback(reply)

    def _fail(self, error: Exception) -> None:
        if not self._over:
            self._end()
            self.reply.errback(error)

    def _end(self) -> None:
        self._over = True
        if self._limit.active():
            self._limit.cancel()


def _pieces(chunks: Iterator[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        for start in range(0, len(chunk), PIECE_BYTES):
            yield chunk[start : start + PIECE_BYTES]
