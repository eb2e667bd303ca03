"""The member: the one place where clock, disk, Raft and the replicated state meet.

The life of a write: :meth:`Member.propose` collects the requests of a reactor turn (:mod:`twistedkv.proposals`); the
drive loop (:mod:`twistedkv.driving`) gives them to the Raft node as one batch, has the batch sent and written to the
WAL; what is committed is applied (:mod:`twistedkv.applying`); each waiting call gets its answer; the changes go to the
database behind everybody's back (:mod:`twistedkv.statekeeper`). All of these are put together here, and the services
see only this object.

Everything here runs on the reactor's thread, which owns the Raft node and the replicated state. Two more threads do
what blocks: one the WAL, one the database.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import Random
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedkv.apply import Alarms, Applier
from twistedkv.applying import Applying
from twistedkv.applywait import ApplyWait
from twistedkv.compaction import Sweeper, auto_compaction
from twistedkv.config import Config
from twistedkv.driving import Driving
from twistedkv.errors import KVError, NoSpaceError, RemovedError, StoppedError, TooManyRequestsError
from twistedkv.history import Replay, Replayed
from twistedkv.identity import META_CLUSTER, META_MEMBER, RequestIds
from twistedkv.incoming import IncomingSnapshots
from twistedkv.installation import Installation
from twistedkv.lease import Lessor
from twistedkv.leaseclock import LeaseClock
from twistedkv.logkeeper import LogKeeper
from twistedkv.logwriter import LogWriter
from twistedkv.members import Membership
from twistedkv.metrics import Metrics
from twistedkv.outgoing import OutgoingSnapshots
from twistedkv.pb.raft_internal_pb2 import InternalRaftRequest
from twistedkv.pb.raft_pb2 import ConfChange, ConfChangeRemoveNode
from twistedkv.pb.rpc_pb2 import NOSPACE, AlarmRequest, CompactionRequest
from twistedkv.peering import Transport
from twistedkv.proposals import Proposals
from twistedkv.protocols.receiver import Receiver
from twistedkv.protocols.turn import Turn
from twistedkv.quota import Quota
from twistedkv.raft.messages import Message, Role, Snapshot, SnapshotMeta, SoftState
from twistedkv.raft.node import RaftNode
from twistedkv.raft.progress import Progress
from twistedkv.reads import ReadGate
from twistedkv.replication import Replication
from twistedkv.restore import Loaded, examine_snapshot, load_state
from twistedkv.statekeeper import StateKeeper
from twistedkv.storage.backend import Backend, BackendError, Size
from twistedkv.storage.directory import Directory
from twistedkv.storage.mvcc import Loan, Need
from twistedkv.storage.wal import WAL
from twistedkv.storage.worker import StorageWorker
from twistedkv.v2watch import V2Hub
from twistedkv.waiting import Outcome, Sweeping, V2Waiter, Waiter, WaitingRoom
from twistedkv.watch import WatchHub
from twistedkv.watchevents import ResponseEncoder
from twistedkv.wire import HeaderEncoder

SERVER_VERSION = "3.5.1"  # the etcd whose behaviour this is
_REQUEST_TIMEOUT_S = 5.0  # etcd server/config/config.go, ReqTimeout: plus two election timeouts
_MOST_UNAPPLIED_ENTRIES = 5_000  # etcd server/etcdserver/v3_server.go, maxGapBetweenApplyAndCommitIndex
_REMOVED_DELAY_S = 1.0  # others shall hear of our removal; etcd server.go, stopWithDelay
_PEERS_WAIT_S = 5.0  # for connections of peers after the start; etcd rafthttp/peer.go, ConnReadTimeout
_PEERS_LOOK_S = 0.05  # between two looks; etcd server.go, adjustTicks
_SLOW_APPLY_S = 0.1  # etcd server/etcdserver/apply.go, warnApplyDuration; of an entry there, of a batch here
FRAME_BYTES = 512 << 10  # more than a request may a message have; etcd embed/etcd.go, grpcOverheadBytes

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
        connect: gives what reaches the other members, which calls the receiver when something comes.
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
        *,
        connect: Callable[[Receiver], Transport],
    ) -> None:
        self.config = config
        self.reactor = reactor
        self.member_id = member_id
        self.cluster_id = cluster_id
        self.header = HeaderEncoder(cluster_id, member_id)
        self.applier = applier
        self.store = applier.store
        self.directory: Directory = applier.v2.directory
        self.v2hub: V2Hub = applier.v2.hub
        self.metrics = metrics
        self.timeout_s = _REQUEST_TIMEOUT_S + 2 * config.election_timeout_ms / 1000
        self.leader_changes: list[Callable[[], None]] = []  # called after each change of leader, role or members
        self._turn = turn
        self._node = node
        self._on_failure = on_failure
        self._ids = RequestIds(member_id, int(reactor.seconds() * 1000))
        self._waiting = WaitingRoom(self.timeout_s)
        self._applying = Applying(
            applier, *applied, self._waiting, self.header, turn, reactor, listener=self, halt=self._halt
        )
        self._writer = LogWriter(wal, wal_worker, reactor, metrics, self.stirred, self._halt)
        self._state = StateKeeper(
            applier.store,
            applier.v2.records,
            backend,
            worker,
            lambda: (self.applied, self.applied_term),
            reactor,
            metrics,
            self._halt,
        )
        self._keeper = LogKeeper(
            node.log,
            self._writer,
            config.snapshot_count,
            config.snapshot_catchup_entries,
            self._state.make_durable,
        )
        self.sweeper = Sweeper(self.store, self.read_backend, reactor, compaction_done, metrics)
        self._applying.connect(self._state, self.sweeper)
        self._auto_compaction = auto_compaction(self, config, reactor)
        self.leases = LeaseClock(
            applier.lessor,
            partial(self.propose_request, leading=True),
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
        self._replication = Replication(member_id, node, self, applier.membership)
        self.peers = connect(self._replication)
        outgoing = OutgoingSnapshots(
            self,
            config.data_dir,
            self._keeper,
            self.peers,
            self._replication.wants_snapshot,
            self._replication.snapshot_failed,
            self.later,
        )
        self._incoming = IncomingSnapshots(config.data_dir, worker, examine_snapshot, self.step)
        self._replication.connect(self.peers, outgoing, self._incoming)
        self._installation = Installation(
            self._incoming,
            self._applying,
            self._state,
            self._writer,
            self.sweeper,
            reactor,
            {META_MEMBER: b"%x" % member_id, META_CLUSTER: b"%x" % cluster_id},
            partial(load_state, config=config),
        )
        node.take_snapshot = self._snapshot_to_come
        self._proposals = Proposals(
            node,
            self._waiting,
            self._ids.next,
            reactor,
            self.timeout_s,
            config.election_timeout_ms / 1000,
            config.max_request_bytes,
            metrics,
            self.stirred,
        )
        self._reads = ReadGate(self.timeout_s, self._ids.next)
        self._apply_wait = ApplyWait()
        self._may_read = False  # sole voter, leader, with an entry of its own term applied
        self._driving = Driving(
            node,
            self._writer,
            self._replication,
            self._proposals,
            self._reads,
            self._applying,
            self._incoming,
            self._installation,
            turn,
            reactor,
            listener=self,
            halt=self._halt,
        )
        self._stopped = False
        self._ticked_s = reactor.seconds()
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
        """Begin to tick and to talk to the others; a sole voter becomes leader at once."""
        self._incoming.start()
        self._replication.start()
        self._ticker.start(self.config.heartbeat_interval_ms / 1000, now=False).addErrback(self._halt)
        self._campaign_alone()
        self._keeper.trim(self.applied)
        self._quota.start()
        self.stirred()
        self.sweeper.sweep()
        self.leases.start()
        if self._auto_compaction is not None:
            self._auto_compaction.start()
        if self.config.initial_election_tick_advance and not self._is_sole_voter:
            self._hasten_election(self.reactor.seconds() + _PEERS_WAIT_S)

    async def stop(self) -> None:
        """Refuse everything further, bring what was applied to the database, and close the log.

        Returns when both threads have nothing to do; the caller ends them and closes the backend.
        """
        if self._stopped:
            return
        self._stopped = True
        self._stop_working()
        await self._state.stop()
        await self._writer.stop()

    def _halt(self, failure: Any) -> None:
        """The member can not go on: stop serving, say why, and let the wiring end the process."""
        if self._stopped:
            return
        if failure.check(RemovedError):
            _log.error("the member stops: {reason}", reason=failure.getErrorMessage())
        else:
            _log.failure("the member stops", failure=failure)
        self._stopped = True
        self._stop_working()
        self._state.abandon()
        self._on_failure(failure.value)

    def leave(self) -> None:
        """The cluster goes on without this member: it stops."""
        self._halt(Failure(RemovedError()))

    def _stop_working(self) -> None:
        self._end_waiting(StoppedError())
        self._driving.stop()
        self._applying.stop()
        self._replication.stop()
        self._installation.stop()
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
    def applied(self) -> int:
        """The index of the last entry that is in the state."""
        return self._applying.index

    @property
    def applied_term(self) -> int:
        """Its term."""
        return self._applying.term

    @property
    def is_learner(self) -> bool:
        """Whether this member has no vote."""
        me = self.membership.members.get(self.member_id)
        return me is not None and me.is_learner

    @property
    def progress(self) -> Mapping[int, Progress]:
        """How much of the log each member is known to have, while this one leads; empty otherwise."""
        return self._node.progress if self.is_leader else {}

    @property
    def version_json(self) -> bytes:
        """The versions of server and cluster, as ``/version`` gives them."""
        cluster = self.applier.cluster_version or "not_decided"
        return f'{{"etcdserver":"{SERVER_VERSION}","etcdcluster":"{cluster}"}}'.encode()

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
    def installing(self) -> bool:
        """Whether a snapshot is being put in place of the state."""
        return self._installation.busy

    @property
    def disk_trouble(self) -> str | None:
        """What is wrong with the disks right now, or None."""
        if self._writer.full:
            return "the write-ahead log's disk is full"
        return self._state.failing

    # --- writes ------------------------------------------------------------------------------------

    def propose(self, body: bytes, waiter: Waiter, *, leading: bool = False) -> None:
        """Send one request through the log; ``waiter`` gets the answer once it is applied, or an error.

        Args:
            body: the request as an encoded field of ``InternalRaftRequest``: tag, length, message.
            leading: whether it is the word of a leader; see :meth:`Proposals.add`.
        """
        if self._takes_more(waiter):
            self._proposals.add(body, waiter, leading=leading)
            self._driving.stir()

    def propose_v2(
        self,
        fields: bytes,
        waiter: V2Waiter | Waiter,
        *,
        leading: bool = False,
        plain: tuple[str, str] | None = None,
    ) -> None:
        """As :meth:`propose`, for a request for keys of the v2 API; see :meth:`Proposals.add_v2`."""
        if self._takes_more(waiter):
            self._proposals.add_v2(fields, waiter, leading=leading, plain=plain)
            self._driving.stir()

    def _takes_more(self, waiter: Waiter | V2Waiter) -> bool:
        """Whether there is room for one more request; ``waiter`` is told if there is none."""
        if self._stopped:
            waiter.fail(StoppedError())
        elif self._node.log.committed - self._applying.index > _MOST_UNAPPLIED_ENTRIES:
            waiter.fail(TooManyRequestsError())
        elif self._writer.full:
            waiter.fail(NoSpaceError())
        else:
            return True
        return False

    def propose_request(self, request: InternalRaftRequest, *, leading: bool = False) -> Deferred[bytes]:
        """As :meth:`propose`, for requests that are rare: a Deferred of the encoded response."""
        outcome = Outcome()
        request.ClearField("header")
        self.propose(request.SerializeToString(), outcome, leading=leading)
        return outcome.deferred

    def reconfigure(self, change: ConfChange) -> Deferred[None]:
        """Send a change of the members through the log; see :meth:`Proposals.change_members`."""
        if self._stopped:
            return fail(StoppedError())
        done = self._proposals.change_members(change)
        self.stirred()
        return done

    def transfer_leader(self, target: int) -> None:
        """Ask the leader to let ``target`` lead; :attr:`leader` shows what comes of it.

        Raises:
            ProposalDropped: there is no leader.
        """
        self._node.transfer_leader(target)
        self.stirred()

    def when_leader(self, known: Callable[[], None]) -> Callable[[], None]:
        """Call ``known`` once, as soon as a leader is known; what is returned takes that back."""

        def look() -> None:
            if self.leader and look in self.leader_changes:
                cancel()
                known()

        def cancel() -> None:
            if look in self.leader_changes:
                self.leader_changes.remove(look)

        self.leader_changes.append(look)
        look()
        return cancel

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
            self._driving.stir()

    def when_applied(self, index: int, reached: Callable[[], None]) -> None:
        """Call ``reached`` once the state has applied the log up to ``index``; at once if it has."""
        if index <= self.applied:
            reached()
        else:
            self._apply_wait.add(index, reached)

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

    def _hasten_election(self, until_s: float) -> None:
        """A member that starts among others need not wait as long for a leader as one that has lost its.

        Once several others are heard of, a leader among them would be, too, within the two ticks that are left.
        Source: etcd ``server.go``, adjustTicks.
        """
        active = sum(self.peers.active_since(each) is not None for each in self.membership.members)
        if active > 1 and not self.leader:
            for _ in range(self._node.config.election_ticks - 2):
                self._node.tick()
        elif not self.leader and self.reactor.seconds() < until_s:
            self.later(_PEERS_LOOK_S, self._hasten_election, until_s)

    def _campaign_alone(self) -> None:
        """A sole voter needs not wait for an election timeout."""
        if self._node.role is Role.FOLLOWER and not self._node.leader and self._is_sole_voter:
            self._node.campaign()

    # --- what the drive loop says; see DriveListener -------------------------------------------------

    def step(self, message: Message) -> None:
        """Give Raft a message from another member; what follows from it happens at the end of the reactor's turn."""
        self._driving.step(message)

    def stirred(self) -> None:
        """Raft was told something: see what follows from it."""
        self._driving.stir()

    def members_committed(self) -> None:
        """Others than before may vote from now on."""
        self._may_read = False

    def role_changed(self, state: SoftState) -> None:
        """There is another leader, none any more, or this member has another role."""
        self._may_read = False
        if self.leases.leading and state.role is not Role.LEADER:
            self.leases.follow()
        self.metrics.leader_changes += state.leader != 0
        self._tell_of_change()

    def _tell_of_change(self) -> None:
        for tell in list(self.leader_changes):
            tell()

    def restored(self, loaded: Loaded) -> None:
        """A snapshot is in the database: its state becomes this member's."""
        with self._turn:
            self.applier.restore(loaded)
            self.hub.restored()
            self._keeper.restored()
            self._tell_of_change()

    def _tick(self) -> None:
        now_s = self.reactor.seconds()
        if self.is_leader and now_s - self._ticked_s > 2 * self.config.heartbeat_interval_ms / 1000:
            self.metrics.heartbeat_failures += len(self._node.progress) - 1  # etcd raft.go, isHeartbeatMsg
        self._ticked_s = now_s
        self.metrics.slow_read_indexes, self.metrics.read_indexes_failed = self._reads.asked_again, self._reads.lost
        with self._turn:
            self._proposals.expire(self)
            self._reads.expire(now_s)
        if self._writer.full:
            self._let_another_lead()
        self._driving.tick()

    def _let_another_lead(self) -> None:
        """The disk of this leader is full: let a member lead that can write."""
        if not self.is_leader or self._node.transferee:
            return
        voters = [each for each in self.membership.voters() if each.id != self.member_id]
        reachable = [each.id for each in voters if self.peers.active_since(each.id) is not None]
        if reachable:
            progress = self._node.progress
            target = max(reachable, key=lambda each: progress[each].match if each in progress else 0)
            _log.warn("no room for the log of this leader: asking {target:x} to lead", target=target)
            self._node.transfer_leader(target)

    # --- what is applied; see ApplyListener --------------------------------------------------------

    def entry_applied(self, size_bytes: int) -> None:
        """An entry of so many bytes is in the state."""
        self._keeper.applied(size_bytes)

    def term_began(self, term: int) -> None:
        """What earlier leaders committed is applied: all leases are known, and requests that were lost are, too."""
        if self.is_leader and term == self._node.term:
            self.leases.lead()
        self._proposals.term_began(term)

    def member_changed(self, change: ConfChange) -> None:
        """A change of the members is in the state."""
        if change.type == ConfChangeRemoveNode and change.node_id == self.member_id:
            self.later(_REMOVED_DELAY_S, self.leave)
        self._tell_of_change()

    def batch_applied(self, *, all_of_it: bool) -> None:
        """As much is in the state as can be now: tell watchers and readers."""
        if self._applying.last_batch_s > _SLOW_APPLY_S:
            self.metrics.slow_applies += 1
        if self.hub.fresh:
            self.hub.dispatch()
        if not all_of_it:
            return
        store = self.store
        if store.index.resident_bytes > store.index.limit_bytes:
            store.index.evict()
        self._campaign_alone()
        if not self._may_read and self.is_leader and self._is_sole_voter and self.applied_term == self._node.term:
            self._may_read = True
        if self._apply_wait:
            self._apply_wait.applied(self.applied)
        if self._reads.waiting:
            if self.may_read:
                self._reads.open()
            else:
                self._reads.applied(self.applied)
        self._keeper.look(self.applied, self._describe)

    # --- snapshots -----------------------------------------------------------------------------------

    def _describe(self) -> SnapshotMeta:
        """The state as it is now, as a point of the log."""
        return SnapshotMeta(self.applied, self.applied_term, self.applier.membership.conf_state())

    def _snapshot_to_come(self) -> Snapshot | None:
        """What Raft is told of the snapshot that a follower needs; a copy of the state, this one or later, follows."""
        if self._stopped:
            return None
        self._state.record_applied()  # entries that changed nothing are not noted otherwise: the copy would be older
        return Snapshot(self._describe())

    # --- behind the scenes -------------------------------------------------------------------------

    def later(self, delay_s: float, function: Callable[..., None], *arguments: Any) -> None:
        """Call ``function`` after a while, unless the member stops before."""

        def due() -> None:
            self._delayed.discard(call)
            function(*arguments)

        call = self.reactor.callLater(delay_s, due)
        self._delayed.add(call)
