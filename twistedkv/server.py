"""The member: the one place where clock, disk, Raft and the replicated state meet.

The life of a write: :meth:`Member.propose` collects the requests of a reactor turn; :meth:`Member._drive` gives them to
the Raft node as one batch, has the batch written to the WAL, and applies what is committed; each waiting call gets its
answer; the changes go to the database behind everybody's back. While the disk works, further proposals pile up and
become the next batch: group commit without a timer.

Everything here runs on the reactor's thread, which owns the Raft node and the replicated state. Two more threads do
what blocks: one the WAL, one the database.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedkv.apply import Alarms, Applier
from twistedkv.compaction import Sweeper, auto_compaction
from twistedkv.config import Config
from twistedkv.errors import (
    InvariantError,
    KVError,
    NoLeaderError,
    NoSpaceError,
    RequestTimeoutError,
    RequestTooLargeError,
    StoppedError,
    TooManyRequestsError,
)
from twistedkv.history import Replay, Replayed
from twistedkv.identity import RequestIds
from twistedkv.lease import Lessor
from twistedkv.leaseclock import LeaseClock
from twistedkv.logkeeper import LogKeeper
from twistedkv.logwriter import LogWriter
from twistedkv.members import Membership
from twistedkv.metrics import Metrics
from twistedkv.pb.membership_pb2 import Attributes, ClusterMemberAttrSetRequest, ClusterVersionSetRequest
from twistedkv.pb.raft_internal_pb2 import InternalRaftRequest
from twistedkv.pb.raft_pb2 import ConfChange
from twistedkv.pb.rpc_pb2 import NOSPACE, AlarmRequest, CompactionRequest
from twistedkv.protocols.turn import Turn
from twistedkv.quota import Quota
from twistedkv.raft.messages import Entry, EntryType, ProposalDropped, Ready, Role, SnapshotMeta, SoftState
from twistedkv.raft.node import RaftNode
from twistedkv.reads import ReadGate
from twistedkv.statekeeper import StateKeeper
from twistedkv.storage.backend import Backend, BackendError, Size
from twistedkv.storage.mvcc import Loan, Need
from twistedkv.storage.wal import WAL
from twistedkv.storage.worker import StorageWorker
from twistedkv.waiting import Outcome, Sweeping, Waiter, WaitingRoom
from twistedkv.watch import WatchHub
from twistedkv.watchevents import ResponseEncoder
from twistedkv.wire import HeaderEncoder, prefixed, varint

SERVER_VERSION = "3.5.1"  # the etcd whose behaviour this is
CLUSTER_VERSION = "3.5.0"

_REQUEST_TIMEOUT_S = 5.0  # etcd server/config/config.go, ReqTimeout: plus two election timeouts
_MOST_UNAPPLIED_ENTRIES = 5_000  # etcd server/etcdserver/v3_server.go, maxGapBetweenApplyAndCommitIndex
_SLOW_APPLY_S = 0.1  # etcd server/etcdserver/apply.go, warnApplyDuration; of an entry there, of a batch here
_MOST_WAITING_BYTES = 64 << 20  # proposals that may wait for the disk before new ones are refused
FRAME_BYTES = 512 << 10  # more than a request may a message have; etcd embed/etcd.go, grpcOverheadBytes

_HEADER_TAG = varint(100 << 3 | 2)  # InternalRaftRequest.header

_log = Logger()


class Member:
    """One member of the cluster, from an opened data directory to its end.

    Args:
        config: the options.
        reactor: clock and delayed calls.
        turn: brackets the answers of one batch, so that each connection writes once.
        node: the Raft node, made from the WAL's content.
        wal: the open log.
        wal_worker: the thread that may block on the log.
        backend: the open database.
        worker: the thread that owns ``backend``.
        applier: the replicated state as of the applied index.
        applied: index and term of the last entry in that state.
        member_id, cluster_id: who we are.
        compaction_done: the compact revision up to which rows are deleted already.
        metrics: what is counted.
        on_failure: called once when the member cannot go on; it has stopped serving by then.
        monotonic_s: the time that leases are counted by; the reactor's if none is given.
    """

    def __init__(
        self,
        config: Config,
        reactor: IReactorTime,
        turn: Turn,
        node: RaftNode,
        wal: WAL,
        wal_worker: StorageWorker,
        backend: Backend,
        worker: StorageWorker,
        applier: Applier,
        applied: tuple[int, int],
        member_id: int,
        cluster_id: int,
        compaction_done: int,
        metrics: Metrics,
        on_failure: Callable[[BaseException], None],
        monotonic_s: Callable[[], float] | None = None,
    ) -> None:
        self.config = config
        self.reactor = reactor
        self.member_id = member_id
        self.cluster_id = cluster_id
        self.header = HeaderEncoder(cluster_id, member_id)
        self.applier = applier
        self.store = applier.store
        self.metrics = metrics
        self.applied, self.applied_term = applied
        self._turn = turn
        self._node = node
        self._writer = LogWriter(wal, wal_worker, reactor, metrics, self._schedule_drive, self._halt)
        self._state = StateKeeper(
            applier.store, backend, worker, lambda: (self.applied, self.applied_term), reactor, metrics, self._halt
        )
        self._keeper = LogKeeper(node.log, self._writer, config.snapshot_count, self._state.make_durable)
        self._on_failure = on_failure
        self.sweeper = Sweeper(self.store, self.read_backend, reactor, compaction_done, metrics)
        self._auto_compaction = auto_compaction(self, config, reactor)
        self.leases = LeaseClock(
            applier.lessor,
            self.propose_request,
            reactor,
            monotonic_s or reactor.seconds,
            config.election_timeout_ms / 1000,
            metrics.lease_ttl,
            config.enable_lease_checkpoint,
            self._halt,
        )
        self.hub = WatchHub(
            self.store,
            ResponseEncoder(self.header, config.max_request_bytes + FRAME_BYTES),
            lambda: self.term,
            self._read_history,
            reactor.callLater,
            Random(member_id ^ int(reactor.seconds() * 1000)),
        )
        self._ids = RequestIds(member_id, int(reactor.seconds() * 1000))
        self._timeout_s = _REQUEST_TIMEOUT_S + 2 * config.election_timeout_ms / 1000
        self._waiting = WaitingRoom(self._timeout_s)
        self._proposals: list[bytes] = []
        self._waiting_bytes = 0  # of proposals that the disk does not have yet
        self._drive_call: IDelayedCall | None = None
        self._to_apply: deque[Entry] = deque()
        self._apply_paused = False
        self._reads = ReadGate(self._timeout_s, self._ids.next)
        self._may_read = False  # sole voter, leader, with an entry of its own term applied
        self._stopped = False
        self._ticker = LoopingCall(self._tick)
        self._ticker.clock = reactor
        self._delayed: set[IDelayedCall] = set()
        self._quota = Quota(
            config.quota_backend_bytes,
            self._state.measure,
            lambda: self._state.backlog_bytes,
            self._raise_space_alarm,
            reactor,
        )

    # --- life --------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to tick; a sole voter becomes leader at once."""
        self._ticker.start(self.config.heartbeat_interval_ms / 1000, now=False).addErrback(self._halt)
        self._campaign_alone()
        self._keeper.trim(self.applied)
        self._quota.start()
        self._schedule_drive()
        self.sweeper.sweep()
        self.leases.start()
        if self._auto_compaction is not None:
            self._auto_compaction.start()
        self.when_readable(self._publish, self._cannot_publish)

    async def stop(self) -> None:
        """Refuse everything further, bring what was applied to the database, and close the log.

        Returns when both threads have nothing to do; the caller ends them and closes the backend.
        """
        if self._stopped:
            return
        self._stopped = True
        self._stop_working()
        if self._drive_call is not None:
            self._drive_call.cancel()
            self._drive_call = None
        await self._state.stop()
        await self._writer.stop()

    def _halt(self, failure: Any) -> None:
        """The member can not go on: stop serving, say why, and let the wiring end the process."""
        if self._stopped:
            return
        _log.failure("the member stops", failure=failure)
        self._stopped = True
        self._stop_working()
        self._state.abandon()
        self._on_failure(failure.value)

    def _stop_working(self) -> None:
        self._end_waiting(StoppedError())
        self._writer.abandon()
        self._quota.stop()
        self.sweeper.stop()
        self.leases.stop()
        self.hub.stop()
        for call in self._delayed:
            call.cancel()
        self._delayed.clear()
        if self._auto_compaction is not None:
            self._auto_compaction.stop()
        if self._ticker.running:
            self._ticker.stop()

    def _end_waiting(self, error: KVError) -> None:
        with self._turn:
            for waiter in self._waiting.empty():
                waiter.fail(error)
            self._reads.end(error)

    def _publish(self) -> None:
        """Tell the cluster our name and client URLs, and decide its version, where that is not done yet."""
        urls = tuple(str(url) for url in self.config.advertise_client_urls)
        me = self.membership.members.get(self.member_id)
        if me is not None and (me.name, me.client_urls) != (self.config.name, urls):
            attributes = Attributes(name=self.config.name, client_urls=urls)
            update = ClusterMemberAttrSetRequest(member_ID=self.member_id, member_attributes=attributes)
            self.propose_request(InternalRaftRequest(cluster_member_attr_set=update)).addErrback(self._cannot_publish)
        if self.is_leader and not self.applier.cluster_version:
            version = ClusterVersionSetRequest(ver=CLUSTER_VERSION)
            self.propose_request(InternalRaftRequest(cluster_version_set=version)).addErrback(self._cannot_publish)

    def _cannot_publish(self, reason: Any) -> None:
        if not self._stopped:
            _log.warn("cannot publish this member's attributes: {reason}", reason=reason)
            self._later(1.0, self.when_readable, self._publish, self._cannot_publish)

    # --- facts -------------------------------------------------------------------------------------

    @property
    def term(self) -> int:
        """The current Raft term."""
        return self._node.term

    @property
    def leader(self) -> int:
        """The id of the leader, 0 if none is known."""
        return self._node.leader

    @property
    def stopped(self) -> bool:
        """Whether it serves no more."""
        return self._stopped

    @property
    def is_leader(self) -> bool:
        """Whether this member leads."""
        return self._node.role is Role.LEADER

    @property
    def _is_sole_voter(self) -> bool:
        configuration = self._node.configuration
        return configuration.all_voters == {self.member_id}

    @property
    def committed(self) -> int:
        """The commit index."""
        return self._node.commit

    @property
    def revision(self) -> int:
        """The store's revision."""
        return self.store.revision

    @property
    def membership(self) -> Membership:
        """Who is in the cluster."""
        return self.applier.membership

    @property
    def lessor(self) -> Lessor:
        """Which leases exist; :attr:`leases` counts their time."""
        return self.applier.lessor

    @property
    def alarms(self) -> Alarms:
        """Which alarms are raised."""
        return self.applier.alarms

    @property
    def size(self) -> Size:
        """How large the database was about a second ago."""
        return self._quota.size

    @property
    def wal_bytes_written(self) -> int:
        """Bytes written to the log since the start."""
        return self._writer.bytes_written

    @property
    def pending(self) -> int:
        """How many proposals wait for their answer."""
        return len(self._waiting)

    @property
    def disk_trouble(self) -> str | None:
        """What is wrong with the disks right now, or None."""
        if self._writer.full:
            return "the write-ahead log's disk is full"
        return self._state.failing

    # --- writes ------------------------------------------------------------------------------------

    def propose(self, body: bytes, waiter: Waiter) -> None:
        """Send one request through the log; ``waiter`` gets the answer once it is applied, or an error.

        Args:
            body: the request as an encoded field of ``InternalRaftRequest``: tag, length, message.
        """
        if self._stopped:
            waiter.fail(StoppedError())
            return
        if (
            self._waiting_bytes > _MOST_WAITING_BYTES
            or len(self._to_apply) > _MOST_UNAPPLIED_ENTRIES
            or self._node.commit - self.applied > _MOST_UNAPPLIED_ENTRIES
        ):
            waiter.fail(TooManyRequestsError())
            return
        if self._writer.full:
            waiter.fail(NoSpaceError())
            return
        request_id = self._ids.next()
        data = body + prefixed(_HEADER_TAG, b"\x08" + varint(request_id))
        if len(data) > self.config.max_request_bytes:
            waiter.fail(RequestTooLargeError())
            return
        self._waiting.add(request_id, waiter, self.reactor.seconds())
        self._waiting_bytes += len(data)
        self._proposals.append(data)
        if self._drive_call is None and not self._writer.busy:
            self._schedule_drive()

    def propose_request(self, request: InternalRaftRequest) -> Deferred[bytes]:
        """As :meth:`propose`, for requests that are rare: a Deferred of the encoded response."""
        outcome = Outcome()
        request.ClearField("header")
        self.propose(request.SerializeToString(), outcome)
        return outcome.deferred

    def new_id(self) -> int:
        """An id that is unique in the cluster, positive and of 63 bits; etcd ``v3_server.go``, LeaseGrant."""
        while True:
            made = self._ids.next() & (1 << 63) - 1
            if made:
                return made

    def propose_compaction(self, body: bytes, waiter: Waiter) -> None:
        """As :meth:`propose`, for a compaction: a physical one is answered when its rows are gone."""
        request = InternalRaftRequest.FromString(body).compaction
        self.propose(body, Sweeping(self.sweeper, request.revision, waiter) if request.physical else waiter)

    def compact(self, revision: int) -> Deferred[bytes]:
        """Compact, without waiting for the rows to go."""
        return self.propose_request(InternalRaftRequest(compaction=CompactionRequest(revision=revision)))

    def check_quota(self, cost: int) -> None:
        """Refuse a write of about ``cost`` bytes if the database would outgrow its quota, and raise the alarm.

        Raises:
            NoSpaceError: it would.
        """
        self._quota.check(cost)

    def _raise_space_alarm(self) -> Deferred[bytes]:
        alarm = AlarmRequest(action=AlarmRequest.ACTIVATE, memberID=self.member_id, alarm=NOSPACE)
        return self.propose_request(InternalRaftRequest(alarm=alarm))

    # --- reads -------------------------------------------------------------------------------------

    @property
    def may_read(self) -> bool:
        """Whether the state as it is now may answer a linearizable read: a sole voter needs to ask nobody."""
        return self._may_read and not self._stopped

    def when_readable(self, ready: Callable[[], None], fail: Callable[[KVError], None]) -> None:
        """Call ``ready`` once the state is as new as any write acknowledged before this call, else ``fail``."""
        if self.may_read:
            ready()
        elif self._stopped:
            fail(StoppedError())
        else:
            self._reads.ask(ready, fail, self.reactor.seconds())
            if self._drive_call is None and not self._writer.busy:
                self._schedule_drive()

    def fetch(self, needs: Sequence[Need]) -> Deferred[Loan]:
        """Read from the database what the store does not hold."""
        return self._state.fetch(needs)

    def read_backend(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        """Run ``function(backend, *arguments)`` on the storage thread, after everything applied so far was written."""
        return self._state.read(function, *arguments)

    def on_storage_thread(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        """Run ``function(backend, *arguments)`` on the storage thread, after what was asked of it before."""
        return self._state.run(function, *arguments)

    def _read_history(self, replay: Replay, replayed: Callable[[Replayed], None], failed: Callable[[], None]) -> None:
        """Read the past for watchers that are behind."""

        def refused(failure: Failure) -> None:
            if not failure.check(BackendError):
                self._halt(failure)
            elif not self._stopped:
                _log.error("watchers wait for the database: {error}", error=failure.value)
                failed()

        self.read_backend(replay.run).addCallback(replayed).addErrback(refused)

    def _campaign_alone(self) -> None:
        """A sole voter needs not wait for an election timeout."""
        if self._node.role is Role.FOLLOWER and not self._node.leader and self._is_sole_voter:
            self._node.campaign()

    # --- the drive loop ----------------------------------------------------------------------------

    def _schedule_drive(self) -> None:
        if self._drive_call is None and not self._stopped:
            self._drive_call = self.reactor.callLater(0, self._on_turn)

    def _on_turn(self) -> None:
        self._drive_call = None
        if not self._stopped:
            self._drive()

    def _tick(self) -> None:
        self._node.tick()
        now = self.reactor.seconds()
        with self._turn:
            for waiter in self._waiting.expired(now):
                self.metrics.proposals_failed += 1
                waiter.fail(RequestTimeoutError() if self._node.leader else NoLeaderError())
            self._reads.expire(now)
        if not self._writer.busy and (self._reads.waiting or self._node.has_ready()):
            self._schedule_drive()

    def _drive(self) -> None:
        """Take batches from the Raft node until there is nothing to do, or until the disk has to be waited for."""
        try:
            with self._turn:
                self._drive_once()
        except Exception as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._halt(Failure(error))

    def _drive_once(self) -> None:
        while not self._writer.busy:
            if not self._node.has_ready():  # else first what is committed: it need not wait for the next batch's disk
                if self._reads.waiting and not self._may_read:
                    self._ask_to_read()
                if self._proposals:
                    self._propose_collected()
                if not self._node.has_ready():
                    return
            ready = self._node.ready()
            if not ready.must_sync or self._writer.append(ready, self._durable):
                self._handle(ready)

    def _durable(self, ready: Ready) -> None:
        """What the disk was waited for is on it."""
        with self._turn:
            self._handle(ready)
            self._drive_once()

    def _ask_to_read(self) -> None:
        context = self._reads.next_question(self.reactor.seconds())
        if context is not None:
            try:
                self._node.read_index(context)
            except ProposalDropped:
                self._reads.not_asked()  # nobody leads; the next tick asks again

    def _propose_collected(self) -> None:
        proposals, self._proposals = self._proposals, []
        try:
            self._node.propose(proposals)
        except ProposalDropped:
            # Nobody leads. The waiters run into their time-out, as etcd's do.
            self._waiting_bytes -= sum(map(len, proposals))

    def _handle(self, ready: Ready) -> None:
        """``ready`` is durable: tell the node, and apply what it says is committed."""
        for entry in ready.entries:
            self._waiting_bytes -= len(entry.data)
        self._waiting_bytes = max(self._waiting_bytes, 0)
        if ready.soft_state is not None:
            self._on_soft_state(ready.soft_state)
        for state in ready.read_states:
            self._reads.answered(state.context, state.index)
        self._to_apply.extend(ready.committed)
        self._node.advance(ready)
        if not self._apply_paused:
            self._apply()

    def _on_soft_state(self, state: SoftState) -> None:
        """Another leader, or another role of ours."""
        self._may_read = False
        self._reads.leader_changed()
        if self.leases.leading and state.role is not Role.LEADER:
            self.leases.follow()
        self.metrics.leader_changes += state.leader != 0

    # --- applying ----------------------------------------------------------------------------------

    def _apply(self) -> None:
        """Apply what is committed, in order, until all is done or something has to be fetched first."""
        to_apply = self._to_apply
        applied_all = True
        began_s = self.reactor.seconds()
        while to_apply and applied_all:
            entry = to_apply[0]
            applied_all = self._apply_entry(entry)
            if applied_all:
                to_apply.popleft()
                self._keeper.applied(len(entry.data))
        if self.reactor.seconds() - began_s > _SLOW_APPLY_S:
            self.metrics.slow_applies += 1
        if self.hub.fresh:
            self.hub.dispatch()
        if not applied_all:
            return
        store = self.store
        self._state.changed()
        if store.index.resident_bytes > store.index.limit_bytes:
            store.index.evict()
        if self._state.behind:
            self._pause_apply(self._state.flush())
        self._campaign_alone()
        if not self._may_read and self.is_leader and self._is_sole_voter and self.applied_term == self._node.term:
            self._may_read = True
        if self._reads.waiting:
            if self.may_read:
                self._reads.open()
            else:
                self._reads.applied(self.applied)
        self._keeper.look(self.applied, self._describe)

    def _apply_entry(self, entry: Entry, loan: Loan | None = None) -> bool:
        """Apply one entry and answer who waits for it; False if it has to wait for the database."""
        request = InternalRaftRequest.FromString(entry.data) if entry.type is EntryType.NORMAL else None
        applier = self.applier
        if request is not None and loan is None and (applier.store.index.evicted or request.HasField("txn")):
            needs = tuple(applier.needs(request))
            if needs:
                self._pause_apply(self.fetch(needs).addCallback(self._apply_with_loan, entry))
                return False
        # Before anybody hears of it: an answer may lead to a flush, whose batch says for which index it stands.
        self.applied, self.applied_term = entry.index, entry.term
        if request is None:
            self._apply_conf_change(entry)
            return True
        if not entry.data:
            # A new leader's first entry: what earlier ones committed is applied, all leases are known.
            if self.is_leader and entry.term == self._node.term:
                self.leases.lead()
            return True
        waiting = self._waiting.take(request.header.ID)
        try:
            done = applier.apply(request)
        except KVError as error:
            if applier.store.changed:
                raise InvariantError(f"entry {entry.index} failed half-way") from error
            if waiting is not None:
                waiting.fail(error)
        else:
            if waiting is not None:
                waiting.reply(self.header.field(done.revision, self._node.term) + done.body)
            if request.HasField("compaction"):
                self.sweeper.sweep()
        return True

    def _apply_with_loan(self, loan: Loan, entry: Entry) -> None:
        self.store.lend(loan)
        try:
            with self._turn:
                self._apply_entry(entry, loan)
        finally:
            self.store.lend(None)
        self._to_apply.popleft()

    def _pause_apply(self, until: Deferred[Any]) -> None:
        self._apply_paused = True
        until.addCallback(self._resume_apply).addErrback(self._halt)

    def _resume_apply(self, _: Any) -> None:
        self._apply_paused = False
        if not self._stopped:
            with self._turn:
                self._apply()
            self._schedule_drive()

    def _apply_conf_change(self, entry: Entry) -> None:
        change = ConfChange.FromString(entry.data)
        waiting = self._waiting.take(change.id)
        try:
            self.applier.apply_conf_change(change)
        except (KVError, ValueError) as error:
            # Raft is told of a change that concerns nobody, on every member alike (etcd server.go, applyConfChange).
            change.node_id = 0
            self._node.apply_conf_change(change)
            if waiting is not None:
                waiting.fail(error)
        else:
            self._node.apply_conf_change(change)
            if waiting is not None:
                waiting.reply(b"")

    # --- behind the scenes -------------------------------------------------------------------------

    def _describe(self) -> SnapshotMeta:
        """The state as it is now, as a point of the log."""
        return SnapshotMeta(self.applied, self.applied_term, self.applier.membership.conf_state())

    def _later(self, delay_s: float, function: Callable[..., None], *arguments: Any) -> None:
        """Call ``function`` after a while, unless the member stops before."""

        def due() -> None:
            self._delayed.discard(call)
            function(*arguments)

        call = self.reactor.callLater(delay_s, due)
        self._delayed.add(call)
