"""The network between the members: it delays, loses, repeats, reorders and cuts, as the dice of a seed say.

What travels is bytes, so that no two members share an object. Between two members it is as it is with connections: to
a process that is dead nothing is delivered, what it was sent before it died is lost, and its peers notice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple, Protocol

from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionLost, ConnectionRefusedError

from tests.simulation.clock import ProcessTime, SimulatedClock
from twistedkv.peering import Reply
from twistedkv.protocols.answers import Answer
from twistedkv.protocols.receiver import Receiver, SnapshotSink
from twistedkv.raft.messages import Message, MessageType
from twistedkv.raft.wire import EntryEncoder, decode_message, encode_message

NOTICE_S = 5.0  # until a connection that nothing comes through counts as lost; etcd rafthttp, ConnReadTimeout
PIECE_BYTES = 16 * 1024  # of a snapshot; small, so that it can be cut in the middle


@dataclass(frozen=True, slots=True)
class Quality:
    """How bad a network is."""

    delay_s: float = 0.001  # one way; each message takes up to twice as long
    slow: float = 0.0  # share of messages that take up to a second
    lost: float = 0.0
    repeated: float = 0.0
    reordered: float = 0.0
    snapshots_cut: float = 0.0
    snapshots_damaged: float = 0.0


PERFECT = Quality()


class Observer(Protocol):
    """Hears of everything; see :class:`tests.simulation.checks.Checks`."""

    def sent(self, message: Message) -> None:
        """A member says this."""

    def damaged_snapshot_taken(self, target: int) -> None:
        """A member has taken a snapshot that was damaged on its way."""


Site = Callable[[str, str, dict[str, str], bytes], Deferred[Answer]]


class Network:
    """All connections between processes.

    Args:
        clock: of everything.
        random: dice.
        observer: hears of everything.
        note: keeps a line of what happened.
    """

    def __init__(self, clock: SimulatedClock, random: Random, observer: Observer, note: Callable[..., None]) -> None:
        self.clock = clock
        self.random = random
        self.observer = observer
        self.note = note
        self.quality = PERFECT
        self._ports: dict[int, SimulatedTransport] = {}  # of the processes that live
        self._cut: dict[tuple[int, int], float] = {}  # since when nothing gets from one member to another
        self._open_since_s: dict[tuple[int, int], float] = {}  # both ways, smaller id first
        self._free_s: dict[tuple[int, int], float] = {}  # when the last message in order arrives

    # --- what is cut ---------------------------------------------------------------------------------

    def cut(self, source: int, target: int) -> None:
        """Let nothing through from ``source`` to ``target``."""
        self._cut.setdefault((source, target), self.clock.seconds())

    def heal(self) -> None:
        """Let everything through."""
        for source, target in self._cut:
            self._open_since_s[_pair(source, target)] = self.clock.seconds()
        self._cut.clear()

    def is_cut(self, source: int, target: int) -> bool:
        """Whether nothing gets through."""
        return (source, target) in self._cut

    def active_since(self, me: int, other: int) -> float | None:
        """Since when two members hear of each other; None if they do not."""
        ports = self._ports
        if me not in ports or other not in ports:
            return None
        cut_s = [self._cut[way] for way in ((me, other), (other, me)) if way in self._cut]
        if cut_s and min(cut_s) + NOTICE_S <= self.clock.seconds():
            return None
        return max(self._open_since_s.get(_pair(me, other), 0.0), ports[me].began_s, ports[other].began_s)

    # --- processes ---------------------------------------------------------------------------------

    def connect(self, me: int, time: ProcessTime, receiver: Receiver) -> SimulatedTransport:
        """The transport of a process that begins."""
        port = self._ports[me] = SimulatedTransport(self, me, time, receiver)
        return port

    def disconnect(self, port: SimulatedTransport) -> None:
        """A process is over."""
        if self._ports.get(port.me) is port:
            del self._ports[port.me]
        port.over = True
        for each in list(self._ports.values()):
            for delivery in list(each.deliveries):
                if delivery.target == port.me:
                    delivery.lost()
        for delivery in list(port.deliveries):
            delivery.sender_died()

    def port_of(self, member: int) -> SimulatedTransport | None:
        """The transport of a member whose process lives."""
        return self._ports.get(member)

    # --- messages ------------------------------------------------------------------------------------

    def carry(self, source: SimulatedTransport, target: int, batch: list[bytes], *, once: bool) -> bool:
        """Deliver these, if all goes well; false if it is clear at once that it does not.

        Args:
            once: nothing of this may be repeated.
        """
        port = self._ports.get(target)
        if port is None:
            return False  # nobody listens there
        random, quality = self.random, self.quality
        if (source.me, target) in self._cut or (quality.lost and random.random() < quality.lost):
            if random.random() < 0.3:
                source.time.from_outside(random.random(), source.unreachable, target)
            return True
        self._arrive(source.me, port, batch)
        if quality.repeated and not once and random.random() < quality.repeated:
            self._arrive(source.me, port, batch)
        return True

    def _arrive(self, source: int, port: SimulatedTransport, batch: list[bytes]) -> None:
        arrives_s = self.clock.seconds() + self.delay_s()
        way = (source, port.me)
        if not (self.quality.reordered and self.random.random() < self.quality.reordered):
            arrives_s = self._free_s[way] = max(arrives_s, self._free_s.get(way, 0.0))
        port.time.from_outside(arrives_s - self.clock.seconds(), port.arrived, batch)

    def delay_s(self) -> float:
        """How long the next message takes."""
        random, quality = self.random, self.quality
        if quality.slow and random.random() < quality.slow:
            return random.random()
        return quality.delay_s * (1 + random.random())


class SimulatedTransport:
    """A :class:`~twistedkv.peering.Transport` over the simulated network."""

    def __init__(self, network: Network, me: int, time: ProcessTime, receiver: Receiver) -> None:
        self.me = me
        self.time = time
        self.began_s = time.seconds()
        self.receiver = receiver
        self.site: Site | None = None  # answers questions
        self.over = False
        self.deliveries: list[Delivery] = []  # of snapshots to others
        self._network = network
        self._peers: dict[int, tuple[str, ...]] = {}
        self._remotes: set[int] = set()
        self._entries = EntryEncoder()

    def set_peer(self, member_id: int, urls: Sequence[str]) -> None:
        """See :class:`~twistedkv.peering.Transport`."""
        if not urls:
            raise ValueError("a peer without a URL")
        self._peers[member_id] = tuple(urls)

    def remove_peer(self, member_id: int) -> None:
        """See :class:`~twistedkv.peering.Transport`."""
        self._peers.pop(member_id, None)
        self._remotes.discard(member_id)
        for delivery in list(self.deliveries):
            if delivery.target == member_id:
                delivery.sender_died()

    def add_remote(self, member_id: int, urls: Sequence[str]) -> None:
        """See :class:`~twistedkv.peering.Transport`."""
        if member_id != self.me:
            self._remotes.add(member_id)

    def active_since(self, member_id: int) -> float | None:
        """See :class:`~twistedkv.peering.Transport`."""
        return self._network.active_since(self.me, member_id) if member_id in self._peers else None

    def send(self, messages: Sequence[Message]) -> None:
        """See :class:`~twistedkv.peering.Transport`."""
        if self.time.dead:
            return
        batches: dict[int, list[bytes]] = {}
        forwards = set()
        for message in messages:
            self._network.observer.sent(message)
            if message.to in self._peers or message.to in self._remotes:
                batches.setdefault(message.to, []).append(encode_message(message, self._entries))
                if message.type is MessageType.PROPOSE:
                    forwards.add(message.to)  # no connection repeats these, and Raft would carry them out twice
        for target, batch in batches.items():
            if not self._network.carry(self, target, batch, once=target in forwards):
                self.receiver.unreachable(target)

    def unreachable(self, member_id: int) -> None:
        """It is noticed that something was lost."""
        self.receiver.unreachable(member_id)

    def arrived(self, batch: Sequence[bytes]) -> None:
        """These are here."""
        network = self._network
        for data in batch:
            message = decode_message(data)
            if self.time.dead:
                return
            if self.receiver.is_removed(message.sender):
                self._tell_removed(message.sender)
            elif message.to == self.me:
                if message.sender not in self._peers:
                    self.add_remote(message.sender, ())
                network.note("deliver", self.me, message)
                self.receiver.received(message)

    def _tell_removed(self, member_id: int) -> None:
        """Whoever was removed is told so when it dials; not by one that cannot be reached."""
        other = self._network.port_of(member_id)
        if other is not None and not self._network.is_cut(self.me, member_id):
            other.time.from_outside(self._network.delay_s(), other.receiver.removed)

    def send_snapshot(self, message: Message, chunks: Callable[[], Iterator[bytes]], crc32c: int) -> None:
        """See :class:`~twistedkv.peering.Transport`."""
        if self.time.dead:
            return
        self._network.observer.sent(message)
        if message.to in self._peers:
            self.deliveries.append(Delivery(self._network, self, message, chunks, crc32c))
        else:
            self.time.from_outside(0, self.receiver.snapshot_sent, message.to, False)

    def ask(
        self, member_id: int, method: str, path: str, body: bytes = b"", content_type: str = "", timeout_s: float = 5.0
    ) -> Deferred[Reply]:
        """See :class:`~twistedkv.peering.Transport`."""
        if member_id not in self._peers:
            return fail(LookupError(f"{member_id:x} is no peer of ours"))
        return Question(self._network, self, member_id, (method, path, body), timeout_s).reply


class Delivery:
    """One snapshot on its way: read at one end, written at the other, piece after piece."""

    def __init__(
        self,
        network: Network,
        source: SimulatedTransport,
        message: Message,
        chunks: Callable[[], Iterator[bytes]],
        crc32c: int,
    ) -> None:
        random, quality = network.random, network.quality
        self.target = message.to
        self._network = network
        self._source = source
        self._message = encode_message(message)
        self._pieces = _pieces(chunks())
        self._crc32c = crc32c
        self._cut_in = random.randrange(1, 5) if random.random() < quality.snapshots_cut else -1
        self._damage_in = random.randrange(1, 4) if random.random() < quality.snapshots_damaged else -1
        self._damaged = False
        self._sink: SnapshotSink | None = None
        self._port: SimulatedTransport | None = None  # where it arrives
        self._over = False
        self._limit = network.clock.callLater(60.0, self.lost)
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
            self._network.observer.damaged_snapshot_taken(self.target)
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
        self, network: Network, source: SimulatedTransport, target: int, asked: tuple[str, str, bytes], timeout_s: float
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

    def _arrived(self, port: SimulatedTransport) -> None:
        method, path, body = self._asked
        if path == "/version":
            self._answered(Answer(200, _NO_FIELDS, port.receiver.version_json()))
        elif path == "/members":
            self._answered(Answer(200, _NO_FIELDS, port.receiver.members_json()))
        elif port.site is None:
            self._answered(Answer(404, _NO_FIELDS, b""))
        else:
            answer = port.site(method, path, {}, body)
            answer.addCallbacks(self._answered, lambda _: self._answered(Answer(500, _NO_FIELDS, b"")))

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


_NO_FIELDS: Any = None  # nobody looks at the header of an answer here


def _pair(one: int, other: int) -> tuple[int, int]:
    return (one, other) if one < other else (other, one)


def _pieces(chunks: Iterator[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        for start in range(0, len(chunk), PIECE_BYTES):
            yield chunk[start : start + PIECE_BYTES]
