"""A member without Raft and disk, for tests of services: what is proposed is applied, at once or when they say so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from tests.askedpeers import AskedPeers
from tests.calls import RecordedCall
from twistedkv.apply import Alarms, Applier
from twistedkv.applywait import ApplyWait
from twistedkv.errors import KVError, NoSpaceError
from twistedkv.history import Replay, Replayed
from twistedkv.lease import Lessor
from twistedkv.leaseclock import LeaseClock
from twistedkv.members import Membership
from twistedkv.metrics import LEASE_SECONDS, Distribution
from twistedkv.pb.raft_internal_pb2 import InternalRaftRequest
from twistedkv.protocols.rpc import Method
from twistedkv.protocols.services.election import ElectionService
from twistedkv.protocols.services.inside import Inside
from twistedkv.protocols.services.kv import KVService
from twistedkv.protocols.services.lease import LeaseService
from twistedkv.protocols.services.lock import LockService
from twistedkv.storage.keyindex import KeyIndex
from twistedkv.storage.memory import MemoryBackend
from twistedkv.storage.mvcc import Loan, Need, Store, fetch
from twistedkv.watch import WatchHub
from twistedkv.watchevents import ResponseEncoder
from twistedkv.wire import HeaderEncoder


class LocalMember:
    """The sole voter of a cluster: the state, its services, and a clock that the test moves."""

    def __init__(self) -> None:
        self.clock = self.reactor = Clock()
        self.member_id = self.leader = 0xA
        self.header = HeaderEncoder(0xC, 0xA)
        self.term = 2
        self.committed = self.applied = 0  # what is proposed here counts for neither
        self.timeout_s = 7.0
        self.stopped = False
        self.peers = AskedPeers()
        self.leader_changes: list[Callable[[], None]] = []
        self.apply_wait = ApplyWait()
        self.may_read = True
        self.store = Store(KeyIndex(1 << 20))
        self.applier = Applier(self.store, Lessor(2), Alarms(), Membership())
        self.holding = False  # keep what is proposed until it is set to False and commit() is called
        self.full = False  # refuse what costs space
        self.readers: list[Callable[[], None]] = []  # wait until may_read
        self.refusals: list[Callable[[KVError], None]] = []  # of the same
        self.failures: list[Any] = []
        self._proposed: list[tuple[InternalRaftRequest, Any]] = []
        self._ids = 1000
        self.backend = MemoryBackend()
        self.leases = LeaseClock(
            self.lessor,
            self.propose_request,
            self.clock,
            self.clock.seconds,
            1.0,
            Distribution(LEASE_SECONDS),
            False,
            self.failures.append,
        )
        self.hub = WatchHub(
            self.store,
            ResponseEncoder(self.header, 1 << 20),
            lambda: self.term,
            self._read_history,
            self.clock.callLater,
            Random(1),
        )
        self.leases.start()
        self.leases.lead()
        keys_and_leases = [*KVService(self, self.applier.executor, 128).methods(), *LeaseService(self).methods()]
        inside = Inside(keys_and_leases, self.hub)
        methods = [*keys_and_leases, *LockService(inside).methods(), *ElectionService(inside, self).methods()]
        self.methods: dict[str, Method] = {method.path.rpartition("/")[2]: method for method in methods}

    @property
    def lessor(self) -> Lessor:
        return self.applier.lessor

    def stop(self) -> None:
        """After this nothing is left to come."""
        self.stopped = True
        self.leases.stop()
        self.hub.stop()

    def call(self, name: str, request: Any = None) -> RecordedCall:
        """Call one method by its name; a stream gets no message here."""
        call = RecordedCall(self.methods[name], b"" if request is None else request.SerializeToString())
        return call.run()

    def new_id(self) -> int:
        self._ids += 1
        return self._ids

    def check_quota(self, cost: int) -> None:
        if self.full:
            raise NoSpaceError

    def when_readable(self, ready: Callable[[], None], fail: Callable[[KVError], None]) -> None:
        if self.may_read:
            ready()
        else:
            self.readers.append(ready)
            self.refusals.append(fail)

    def confirm(self) -> None:
        """The quorum answers whoever waits to read."""
        readers, self.readers, self.refusals = self.readers, [], []
        for ready in readers:
            ready()

    def when_leader(self, known: Callable[[], None]) -> Callable[[], None]:
        def look() -> None:
            if self.leader and look in self.leader_changes:
                self.leader_changes.remove(look)
                known()

        self.leader_changes.append(look)
        look()
        return lambda: self.leader_changes.remove(look) if look in self.leader_changes else None

    def lead_by(self, leader: int) -> None:
        """Another member leads from now on, or nobody for 0; this one begins by ``leases.lead()``."""
        self.leader = leader
        self.term += leader != 0
        if self.leases.leading:
            self.leases.follow()
        for tell in list(self.leader_changes):
            tell()

    def when_applied(self, index: int, reached: Callable[[], None]) -> None:
        self.apply_wait.add(index, reached)

    def fetch(self, needs: Sequence[Need]) -> Deferred[Loan]:
        self.backend.write(self.store.take_batch())
        return succeed(fetch(self.backend, needs))

    def propose(self, body: bytes, waiter: Any) -> None:
        self._proposed.append((InternalRaftRequest.FromString(body), waiter))
        if not self.holding:
            self.commit()

    def propose_request(self, request: InternalRaftRequest) -> Deferred[bytes]:
        outcome: Deferred[bytes] = Deferred()

        class Waiter:
            reply = staticmethod(outcome.callback)
            fail = staticmethod(outcome.errback)

        self.propose(request.SerializeToString(), Waiter)
        return outcome

    def propose_compaction(self, body: bytes, waiter: Any) -> None:
        self.propose(body, waiter)

    def commit(self) -> None:
        """Apply what was proposed so far, and tell who watches."""
        proposed, self._proposed = self._proposed, []
        for request, waiter in proposed:
            try:
                done = self.applier.apply(request)
            except KVError as error:
                waiter.fail(error)
            else:
                waiter.reply(self.header.field(done.revision, self.term) + done.body)
        self.hub.dispatch()

    def _read_history(self, replay: Replay, replayed: Callable[[Replayed], None], failed: Callable[[], None]) -> None:
        self.backend.write(self.store.take_batch())
        replayed(replay.run(self.backend))
