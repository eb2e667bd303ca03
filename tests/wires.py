"""Several members on one clock, which reach each other without sockets: for scenarios that are to be read.

Nothing is lost, late or out of order unless a scenario says so; the faults that dice choose are in
``tests/simulation``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.station import HeldWorker, Station
from twistedkv.errors import KVError
from twistedkv.members import MemberInfo
from twistedkv.pb.raft_pb2 import ConfChange, ConfChangeAddLearnerNode, ConfChangeAddNode, ConfChangeRemoveNode
from twistedkv.peering import Reply
from twistedkv.protocols.receiver import Receiver
from twistedkv.raft.messages import Message
from twistedkv.raft.wire import decode_message, encode_message
from twistedkv.server import Member
from twistedkv.storage import writebehind

DELAY_S = 0.001  # one way
MOST_STEPS = 200_000  # of one run, so that none goes on for ever


class Wires:
    """What connects the members; what travels is bytes, so that no two members share an object."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.ends: dict[int, WireEnd] = {}  # of the processes that live
        self.cut: dict[frozenset[int], float] = {}  # pairs, and since when nothing gets through
        self.spoil: Callable[[bytes], bytes] = lambda piece: piece  # what happens to a snapshot's piece on its way
        self.snapshots: list[tuple[int, bool]] = []  # to whom, and whether it was taken
        self.tell_removed = True  # whoever was removed and says something

    def connect(self, me: int, receiver: Receiver) -> WireEnd:
        """Another process begins."""
        end = self.ends[me] = WireEnd(self, me, receiver)
        return end

    def disconnect(self, me: int) -> None:
        """A process is over."""
        del self.ends[me]

    def isolate(self, me: int) -> None:
        """Nothing gets to this member or from it."""
        for other in self.ends:
            if other != me:
                self.cut.setdefault(frozenset((me, other)), self.clock.seconds())

    def heal(self) -> None:
        """Everything gets through."""
        self.cut.clear()

    def reaches(self, one: int, other: int) -> bool:
        """Whether there is a way between the two."""
        return one in self.ends and other in self.ends and frozenset((one, other)) not in self.cut


class WireEnd:
    """A :class:`~twistedkv.peering.Transport`."""

    def __init__(self, wires: Wires, me: int, receiver: Receiver) -> None:
        self.receiver = receiver
        self.urls: dict[int, Sequence[str]] = {}
        self._remotes: set[int] = set()
        self._wires = wires
        self._me = me
        self._since_s = wires.clock.seconds()

    def set_peer(self, member_id: int, urls: Sequence[str]) -> None:
        self.urls[member_id] = urls

    def remove_peer(self, member_id: int) -> None:
        self.urls.pop(member_id, None)
        self._remotes.discard(member_id)

    def add_remote(self, member_id: int, urls: Sequence[str]) -> None:
        if member_id != self._me:
            self._remotes.add(member_id)

    def active_since(self, member_id: int) -> float | None:
        reached = member_id in self.urls and self._wires.reaches(self._me, member_id)
        return max(self._since_s, self._wires.ends[member_id]._since_s) if reached else None

    def send(self, messages: Sequence[Message]) -> None:
        for message in messages:
            if message.to not in self.urls and message.to not in self._remotes:
                continue
            if self._wires.reaches(self._me, message.to):
                self._wires.clock.callLater(DELAY_S, self._arrive, message.to, encode_message(message))
            else:
                self.receiver.unreachable(message.to)

    def _arrive(self, target: int, data: bytes) -> None:
        if self._wires.reaches(self._me, target):
            receiver = self._wires.ends[target].receiver
            if receiver.is_removed(self._me):
                if self._wires.tell_removed:
                    self.receiver.removed()
            else:
                self._wires.ends[target].add_remote(self._me, ())
                receiver.received(decode_message(data))

    def send_snapshot(self, message: Message, chunks: Callable[[], Iterator[bytes]], crc32c: int) -> None:
        delivery = Deferred.fromCoroutine(self._deliver(message, chunks, crc32c))
        delivery.addCallback(self._delivered, message.to)

    async def _deliver(self, message: Message, chunks: Callable[[], Iterator[bytes]], crc32c: int) -> bool | None:
        await self._way()
        if message.to not in self.urls or not self._wires.reaches(self._me, message.to):
            return False
        urls = self.urls[message.to]
        sink = self._wires.ends[message.to].receiver.snapshot_begin(decode_message(encode_message(message)), crc32c)
        try:
            for piece in chunks():
                await self._way()
                if not self._wires.reaches(self._me, message.to) or self.urls.get(message.to) != urls:
                    raise ConnectionError("cut in the middle")
                written = sink.write(self._wires.spoil(piece))
                if written is not None:
                    await written
            await sink.finish()
        except Exception:  # whatever it is, the sender is told that it is not there
            sink.abort()
            return False if self.urls.get(message.to) == urls else None  # as the real one: no word of who has moved
        await self._way()
        return True

    def _way(self) -> Deferred[None]:
        passed: Deferred[None] = Deferred()
        self._wires.clock.callLater(DELAY_S, passed.callback, None)
        return passed

    def _delivered(self, ok: bool | None, target: int) -> None:
        if ok is not None:
            self._wires.snapshots.append((target, ok))
            self.receiver.snapshot_sent(target, ok)

    def ask(
        self, member_id: int, method: str, path: str, body: bytes = b"", content_type: str = "", timeout_s: float = 5.0
    ) -> Deferred[Reply]:
        return fail(ConnectionError("nobody answers"))


def founder(member_id: int) -> MemberInfo:
    """A member as a cluster begins with it."""
    return MemberInfo(member_id, (f"http://192.0.2.{member_id}:2380",), f"m{member_id}")


def added(member_id: int) -> ConfChange:
    """The change by which a member comes in as a voter."""
    return ConfChange(type=ConfChangeAddNode, node_id=member_id, context=founder(member_id).to_json())


def learner(member_id: int) -> ConfChange:
    """The change by which a member comes in as a learner."""
    return ConfChange(type=ConfChangeAddLearnerNode, node_id=member_id, context=founder(member_id).to_json())


def removed(member_id: int) -> ConfChange:
    """The change by which a member goes."""
    return ConfChange(type=ConfChangeRemoveNode, node_id=member_id)


class WiredCase(SynchronousTestCase):
    """Tests of clusters. When one ends all of its members are stopped, and nothing of them may be left."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.wires = Wires(self.clock)
        self.directory = Path(self.mktemp())
        self.stations: dict[int, Station] = {}

    def tearDown(self) -> None:
        for station in self.running():
            self.stop(station)
        self.run_for(1.0)  # what is on its way finds nobody
        self.assertEqual(self.clock.getDelayedCalls(), [])

    # --- who there is --------------------------------------------------------------------------------

    def cluster(self, size: int = 3, **options: str) -> list[Station]:
        """A new cluster, its members running; options by their flags with ``_`` for ``-``."""
        founders = [founder(each) for each in range(1, size + 1)]
        stations = [self.station(each.id, founders, **options) for each in founders]
        for station in stations:
            self.start(station)
        return stations

    def station(self, member_id: int, founders: Sequence[MemberInfo] = (), **options: str) -> Station:
        """A place for a member, which does not run yet."""
        flags = {name.replace("_", "-"): value for name, value in options.items()}
        flags["name"] = f"m{member_id}"
        station = Station(member_id, self.directory / str(member_id), founders, flags)
        self.stations[member_id] = station
        return station

    def start(self, station: Station) -> Member:
        """A process on what is there."""
        member = station.open(self.clock, lambda receiver: self.wires.connect(station.member_id, receiver))
        for other in self.wires.ends:  # as the founding of a joining member names them
            self.wires.ends[station.member_id].add_remote(other, ())
        member.start()
        return member

    def stop(self, station: Station) -> None:
        """End a process in an orderly way, on disks that do."""
        stopped = Deferred.fromCoroutine(station.member.stop())
        for worker in (station.wal_worker, station.worker):
            if isinstance(worker, HeldWorker):
                worker.release()
        self.until(lambda: stopped.called)
        self.wires.disconnect(station.member_id)
        self.successResultOf(stopped)
        self.assertEqual(station.clock.getDelayedCalls(), [])

    def crash(self, station: Station) -> None:
        """End a process at once."""
        self.wires.disconnect(station.member_id)
        station.crash()

    def running(self) -> list[Station]:
        """All that run."""
        return [self.stations[each] for each in sorted(self.wires.ends)]

    # --- time ----------------------------------------------------------------------------------------

    def run_for(self, seconds: float) -> None:
        """Let time pass."""
        end_s = self.clock.seconds() + seconds
        self._step(lambda: False, end_s)
        self.clock.advance(max(0.0, end_s - self.clock.seconds()))

    def until(self, condition: Callable[[], object], limit_s: float = 60.0) -> None:
        """Let time pass until ``condition`` is true, which it has to be in time."""
        self._step(condition, self.clock.seconds() + limit_s)
        self.assertTrue(condition(), f"not in {limit_s} s")

    def _step(self, condition: Callable[[], object], end_s: float) -> None:
        for _ in range(MOST_STEPS):
            calls = self.clock.getDelayedCalls()
            due_s = min((call.getTime() for call in calls), default=end_s + 1)
            if condition() or due_s > end_s:
                return
            self.clock.advance(max(0.0, due_s - self.clock.seconds()))
        self.fail("too many steps")

    # --- what can be seen ----------------------------------------------------------------------------

    def leader(self) -> Station:
        """Who leads all that are reached by it; time passes until somebody does."""
        found: list[Station] = []

        def look() -> bool:
            found[:] = [each for each in self.running() if each.member.is_leader]
            if len(found) != 1:
                return False
            (leader,) = found
            reached = [each for each in self.running() if self.wires.reaches(leader.member_id, each.member_id)]
            return all(each.member.leader == leader.member_id for each in reached)

        self.until(look)
        return found[0]

    def followers(self) -> list[Station]:
        """All that run and do not lead."""
        leader = self.leader()
        return [each for each in self.running() if each is not leader]

    def step(self, worker: HeldWorker, condition: Callable[[], object]) -> None:
        """As :meth:`until`, while a slow thread does one thing a moment."""
        self.until(lambda: condition() or (worker.queue and worker.step()))

    def done(self, *answers: Any) -> None:
        """Let time pass until all of these are answered."""
        self.until(lambda: all(each.done for each in answers))

    def assert_equal_states(self) -> None:
        """All that run come to have the same keys with the same histories, and the log applied as far."""
        self.until(lambda: len({each.member.applied for each in self.running()}) == 1)
        self.run_for(2 * writebehind.DELAY_S)
        histories = [each.backend.scan(0, 1 << 62, 1_000_000) for each in self.running()]
        for history in histories[1:]:
            self.assertEqual(history, histories[0])

    def assert_error(self, answer: Any, kind: type[KVError]) -> None:
        """It was answered with just this error."""
        self.assertIs(type(answer.error), kind)
