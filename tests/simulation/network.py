"""The network between the members: it delays, loses, repeats, reorders and cuts, as the dice of a seed say.

What travels is bytes, so that no two members share an object. Between two members it is as it is with connections: to
a process that is dead nothing is delivered, what it was sent before it died is lost, and its peers notice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

from twisted.internet.defer import Deferred, fail

from tests.simulation.clock import ProcessTime, SimulatedClock
from tests.simulation.deliveries import NOTICE_S, Delivery, Question, Site
from twistedkv.peering import Reply
from twistedkv.protocols.receiver import Receiver
from twistedkv.raft.messages import Message, MessageType
from twistedkv.raft.wire import EntryEncoder, decode_message, encode_message


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

    def note(self, what: str, member_id: int, *facts: Any) -> None:
        """Keep a line of what happened."""

    def sent(self, message: Message) -> None:
        """A member says this."""

    def damaged_snapshot_taken(self, target: int) -> None:
        """A member has taken a snapshot that was damaged on its way."""


class Network:
    """All connections between processes.

    Args:
        clock: of everything.
        random: dice.
        observer: hears of everything.
    """

    def __init__(self, clock: SimulatedClock, random: Random, observer: Observer) -> None:
        self.clock = clock
        self.random = random
        self.observer = observer
        self.note = observer.note
        self.damaged_snapshot_taken = observer.damaged_snapshot_taken
        self.quality = PERFECT
        self._ports: dict[int, SimulatedTransport] = {}  # of the processes that live
        self._cut: dict[tuple[int, int], float] = {}  # since when nothing gets from one member to another
        self._open_since_s: dict[tuple[int, int], float] = {}  # both ways, smaller id first
        self._free_s: dict[tuple[int, int], float] = {}  # when the last message in order arrives

    @property
    def cut_share(self) -> float:
        """Of snapshots that are cut off on their way."""
        return self.quality.snapshots_cut

    @property
    def damaged_share(self) -> float:
        """Of snapshots that are damaged on their way."""
        return self.quality.snapshots_damaged

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


def _pair(one: int, other: int) -> tuple[int, int]:
    return (one, other) if one < other else (other, one)
