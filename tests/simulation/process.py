"""One life of a member, from its start to its end.

A process is put together as :mod:`twistedkv.assembly` does it, out of the same parts but for those that block or reach
the outside: threads, disks, sockets and the reactor.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from tests.simulation.checks import Checks, Outcome, Watched
from tests.simulation.clock import PowerCut, ProcessTime, SimulatedClock
from tests.simulation.disk import SEGMENT_BYTES, Condition, SimulatedDatabase, SimulatedDisk, SimulatedWorker
from tests.simulation.network import Network, SimulatedTransport
from tests.simulation.observed import ObservedLog, ObservedMember, Parts
from tests.simulation.truth import Violation
from twistedkv.assembly import Duty, hard_state_at
from twistedkv.bootstrap import create_log
from twistedkv.clusterversion import ClusterVersion
from twistedkv.config import Config
from twistedkv.corruption import HASHKV_PATH, CorruptionCheck, HashSite
from twistedkv.errors import RemovedError
from twistedkv.founding import Founding
from twistedkv.handover import hand_over
from twistedkv.identity import META_CLUSTER, META_MEMBER
from twistedkv.installation import finish_installation
from twistedkv.leaseprimary import PrimaryLessor
from twistedkv.leasesite import LeaseSite
from twistedkv.metrics import Metrics
from twistedkv.peersite import PeerSite
from twistedkv.protocols.receiver import Receiver
from twistedkv.protocols.rpc import Method
from twistedkv.protocols.services.kv import KVService
from twistedkv.protocols.services.lease import LeaseService
from twistedkv.protocols.services.watch import WatchService
from twistedkv.protocols.turn import Turn
from twistedkv.publication import Publication
from twistedkv.raft.config import Config as RaftConfig
from twistedkv.raft.log import RaftLog
from twistedkv.raft.node import RaftNode
from twistedkv.reconfiguration import Reconfiguration
from twistedkv.restore import Loaded, load_state
from twistedkv.server import SERVER_VERSION, Member
from twistedkv.storage.backend import BackendError, Bucket
from twistedkv.storage.wal import Recovered, WALFailedError
from twistedkv.v2clock import V2Clock


class Call(Protocol):
    """A request of a client's that a process is at work on."""

    def broken(self) -> None:
        """The process died."""

    def hang_up(self) -> None:
        """The process ends the connection."""


class Surroundings(Protocol):
    """What processes live in; see :class:`tests.simulation.world.World`."""

    clock: SimulatedClock
    random: Random
    network: Network
    checks: Checks
    parts: Parts

    def note(self, what: str, member_id: int, *facts: Any) -> None:
        """Keep a line of what happened."""

    def violate(self, violation: Violation) -> None:
        """A promise was broken: the run is over."""

    def installing(self, member_id: int) -> None:
        """A process begins to install a snapshot."""


class Home(Protocol):
    """What a process runs on; see :class:`tests.simulation.machine.Machine`."""

    name: str
    member_id: int
    config: Config
    founding: Founding
    database: SimulatedDatabase
    condition: Condition
    removed: bool

    @property
    def world(self) -> Surroundings:
        """What it is in."""

    def kill(self, *, power_cut: bool) -> None:
        """Its process is over."""

    def start_soon(self) -> None:
        """Somebody will start the next one."""


class Process:
    """One life of a member."""

    def __init__(self, machine: Home) -> None:
        world = machine.world
        self.machine = machine
        self.ready = False  # to serve clients
        self.calls: dict[Call, None] = {}  # of clients, under way
        self.time = ProcessTime(world.clock, self._acted)
        self.watched = Watched(machine.name, machine.member_id)
        self.disk = SimulatedDisk(world.random, lambda: machine.kill(power_cut=True), self.time.pause_for)
        self.log_worker = SimulatedWorker(self.time, world.random, self._log_s, self._log_works)
        self.worker = SimulatedWorker(self.time, world.random, self._database_s, lambda _: None)
        self.methods: dict[str, Method] = {}
        self.reconfiguration: Any = None
        self.log: ObservedLog | None = None
        self.port: SimulatedTransport | None = None
        self.member: ObservedMember | None = None
        self._world = world
        self._checks = world.checks
        self._duties: list[Duty] = []
        self._stopping = False
        self._was_installing = False

    # --- its life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Open what there is, and begin."""
        machine, world = self.machine, self._world
        config, me, cluster = machine.config, machine.member_id, machine.founding.cluster_id
        self.take_condition()
        backend = machine.database
        loaded = load_state(backend, config)
        self._checked(self._checks.loaded, machine.name, loaded)
        log, recovered = self._open_log(loaded)
        state = loaded.described
        last = recovered.entries[-1].index if recovered.entries else recovered.snapshot.index
        if not recovered.snapshot.index <= state.index <= last:
            raise Violation(f"{machine.name} has a database at {state.index} and a log up to {last}")
        loaded.store.record(Bucket.META, META_MEMBER, b"%x" % me)
        loaded.store.record(Bucket.META, META_CLUSTER, b"%x" % cluster)
        applier = world.parts.applier.of(loaded)
        applier.outcome = self._outcome
        node = RaftNode(
            RaftConfig(
                id=me,
                random=Random(world.random.random()),
                election_ticks=config.election_timeout_ms // config.heartbeat_interval_ms,
                pre_vote=config.pre_vote,
                answers_commits=world.random.random() < 0.2,
                max_uncommitted_bytes=world.random.choice([2000, 64 << 20]),
                max_size_per_message_bytes=world.random.choice([100, 1 << 20]),
                max_inflight=world.random.choice([1, 4, 512]),
            ),
            RaftLog(recovered.entries, recovered.snapshot.index, recovered.snapshot.term),
            hard_state_at(recovered.hard_state, state.index),
            state.conf_state if state.index else recovered.snapshot.conf_state,
            state.index,
        )
        member = self.member = world.parts.member(
            config,
            self.time,
            Turn(self.time),
            node,
            log,
            self.log_worker,  # type: ignore[arg-type]
            backend,
            self.worker,  # type: ignore[arg-type]
            applier,
            (state.index, state.term),
            me,
            cluster,
            loaded.compaction_done,
            Metrics(),
            self._failed,
            connect=self._connect,
        )
        member.applied_one = self._applied_one
        member.has_loaded = self._has_loaded
        learn = log.on_sync
        assert learn is not None
        log.on_sync = lambda _: learn(self.disk.sync_s)  # in simulated time
        port = self.port
        assert port is not None
        self._offer(member, port)
        for remote, urls in machine.founding.remotes.items():
            port.set_peer(remote, urls)
        member.start()
        check = CorruptionCheck(member, config.corrupt_check_time_s)
        self._duties = [ClusterVersion(member, SERVER_VERSION), check, V2Clock(member)]
        for duty in self._duties:
            duty.start()
        Deferred.fromCoroutine(self._become_ready(member, check)).addErrback(self._not_ready)
        self._acted()

    def _connect(self, receiver: Receiver) -> SimulatedTransport:
        port = self.port = self._world.network.connect(self.machine.member_id, self.time, receiver)
        return port

    def _open_log(self, loaded: Loaded) -> tuple[ObservedLog, Recovered]:
        machine = self.machine
        directory = machine.config.data_dir / "wal"
        if not ObservedLog.exists(directory):
            machine.config.data_dir.mkdir(parents=True, exist_ok=True)
            create_log(directory, machine.founding, self.disk)
        log, recovered = self._opened(directory)
        if finish_installation(log, recovered, loaded.installed, loaded.described):
            log.close()
            log, recovered = self._opened(directory)
        log.persists = lambda entries, term: self._checked(self._checks.persists, entries, term)
        return log, recovered

    def _opened(self, directory: Path) -> tuple[ObservedLog, Recovered]:
        log, recovered = self._world.parts.log.open(
            directory,
            segment_bytes=SEGMENT_BYTES,
            disk=self.disk,
            nonce=lambda: self._world.random.randbytes(8),
        )
        assert isinstance(log, ObservedLog)
        self.log = log
        return log, recovered

    def _offer(self, member: Member, port: SimulatedTransport) -> None:
        """What clients and other members may ask."""
        self.reconfiguration = Reconfiguration(member, self.time.seconds)
        leases = LeaseSite(PrimaryLessor(member), self.time)
        site = PeerSite(member, self.reconfiguration)
        site.add("/leases", "POST", leases.renew)
        site.add("/leases/internal", "POST", leases.time_to_live)
        site.add(HASHKV_PATH, "GET", HashSite(member, self.machine.founding.cluster_id).hash)
        port.site = site.answer
        methods = [
            *KVService(member, member.applier.executor, 128).methods(),
            *LeaseService(member).methods(),
            *WatchService(member).methods(),
        ]
        self.methods = {method.path.rpartition("/")[2]: method for method in methods}

    async def _become_ready(self, member: Member, check: CorruptionCheck) -> None:
        await Publication(member).begin()
        if member.config.initial_corrupt_check:
            await check.check_initially()
        self.ready = True
        self._world.note("ready", self.machine.member_id)

    def _not_ready(self, failure: Failure) -> None:
        if self.time.dead or (self.member is not None and self.member.stopped):
            return
        if failure.check(BackendError):  # as in the middle of the start, somebody starts it again
            self.machine.kill(power_cut=False)
            self.machine.start_soon()
        else:
            self._world.violate(Violation(f"{self.machine.name} does not start: {failure.getTraceback()}"))

    def stop(self) -> None:
        """Hand over, bring everything to the disks, and end."""
        member = self.member
        if self._stopping or member is None:
            return
        self._stopping = True
        self.ready = False
        self._world.note("stop", self.machine.member_id)

        async def stopping() -> None:
            await hand_over(member, self.machine.config.election_timeout_ms / 1000)
            for call in list(self.calls):
                call.hang_up()
            for duty in self._duties:
                duty.stop()
            await member.stop()

        def stopped(result: Any) -> None:
            if isinstance(result, Failure) and not result.check(PowerCut):
                self._world.violate(Violation(f"{self.machine.name} cannot stop: {result.getTraceback()}"))
            left = self.time.getDelayedCalls()
            if left and not self.time.dead:
                self._world.violate(Violation(f"{self.machine.name} has stopped, and {left[0]} is still to come"))
            self.machine.kill(power_cut=False)

        Deferred.fromCoroutine(stopping()).addBoth(stopped)

    def end(self) -> None:
        """It is dead: nothing that it still does has an effect."""
        self.time.dead = True
        if self.port is not None:
            self._world.network.disconnect(self.port)
        self.log_worker.crash()
        self.worker.crash()
        self.disk.gone = True
        if self.member is not None:
            self.member._replication.stop()  # closes files
        if self.log is not None:
            self.log._abandon()
        calls, self.calls = self.calls, {}
        for call in calls:
            call.broken()

    def _failed(self, error: BaseException) -> None:
        """The member says that it cannot go on."""
        if self.time.dead:
            return  # that is why
        machine = self.machine
        self._world.note("failed", machine.member_id, type(error).__name__)
        if isinstance(error, RemovedError):
            machine.removed = True
        elif not (isinstance(error, WALFailedError) and self.disk.broken):
            failure = Failure(error)
            self._world.violate(Violation(f"{machine.name} stops: {failure.getTraceback()}"))
        # What the member still does on its way out must not touch the disks any more.
        machine.kill(power_cut=self.disk.broken)

    # --- its disks -----------------------------------------------------------------------------------

    def take_condition(self) -> None:
        """The disks are as the machine's condition says, from now on."""
        condition = self.machine.condition
        self.disk.full = condition.log_full
        self.disk.sync_s = condition.log_sync_s
        self.machine.database.refusing = condition.database_refuses

    def _log_s(self) -> float:
        return self.machine.condition.log_sync_s * (0.5 + self._world.random.random())

    def _log_works(self, works: bool) -> None:
        self.disk.behind = works

    def _database_s(self) -> float:
        return self.machine.condition.database_s * (0.5 + self._world.random.random())

    # --- what is seen of it --------------------------------------------------------------------------

    def _acted(self) -> None:
        """It has done something."""
        member = self.member
        assert member is not None
        self._checked(self._checks.looks_like, self.watched, member)
        installing = member._installation.busy
        if installing and not self._was_installing:
            self._world.note("install", self.machine.member_id)
            self._world.installing(self.machine.member_id)
        self._was_installing = installing

    def _outcome(self, outcome: Outcome) -> None:
        self._checked(self._checks.applied, self.watched, self.member, outcome)

    def _applied_one(self) -> None:
        self._checked(self._checks.applied, self.watched, self.member)

    def _has_loaded(self, loaded: Loaded) -> None:
        self._checked(self._checks.loaded, self.machine.name, loaded)

    def _checked(self, check: Callable[..., None], *arguments: Any) -> None:
        """Check something, from within the member: it shall not take a violation for a failure of its own."""
        try:
            check(*arguments)
        except Violation as violation:
            self._world.violate(violation)
            raise PowerCut from violation
