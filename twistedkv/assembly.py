"""A member put together: database, log, Raft node, state, services and ports, opened in order and closed in reverse.

Wiring only; what each part does is told in its own module.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from twistedkv.apply import Applier
from twistedkv.bootstrap import create_log, force_alone, found
from twistedkv.clusterversion import ClusterVersion
from twistedkv.config import EXTENSIVE, Config
from twistedkv.corruption import HASHKV_PATH, CorruptionCheck, HashSite
from twistedkv.handover import hand_over
from twistedkv.identity import META_CLUSTER, META_MEMBER
from twistedkv.installation import finish_installation
from twistedkv.leaseprimary import PrimaryLessor
from twistedkv.leasesite import LeaseSite
from twistedkv.memberview import MemberFacts, show
from twistedkv.metrics import Metrics
from twistedkv.optiontypes import Url
from twistedkv.pb.etcdserver_pb2 import Metadata
from twistedkv.peercerts import allowed_peers
from twistedkv.peermetrics import PeerMetrics
from twistedkv.peersite import PeerSite
from twistedkv.protocols.endpoints import Endpoints, MonitoringEndpoints
from twistedkv.protocols.gate import Gate
from twistedkv.protocols.gateway import Gateway
from twistedkv.protocols.grpc import GrpcServerConnection
from twistedkv.protocols.http1 import HTTPFront
from twistedkv.protocols.keepalive import Keepalive
from twistedkv.protocols.limits import Limits
from twistedkv.protocols.peer import Peers
from twistedkv.protocols.receiver import Receiver
from twistedkv.protocols.rpc import MethodTable, Peer
from twistedkv.protocols.server import ClientPort
from twistedkv.protocols.services.cluster import ClusterService
from twistedkv.protocols.services.election import ElectionService
from twistedkv.protocols.services.health import HealthService
from twistedkv.protocols.services.inside import Inside
from twistedkv.protocols.services.kv import KVService
from twistedkv.protocols.services.lease import LeaseService
from twistedkv.protocols.services.lock import LockService
from twistedkv.protocols.services.maintenance import MaintenanceService
from twistedkv.protocols.services.pending import pending_methods
from twistedkv.protocols.services.reflection import ReflectionService
from twistedkv.protocols.services.watch import WatchService
from twistedkv.protocols.tls import ClientContext, ServerContext, TLSConfig
from twistedkv.protocols.turn import Turn
from twistedkv.protocols.v2stats import V2Stats
from twistedkv.publication import Publication
from twistedkv.raft.config import Config as RaftConfig
from twistedkv.raft.log import RaftLog
from twistedkv.raft.messages import HardState
from twistedkv.raft.node import RaftNode
from twistedkv.reconfiguration import Reconfiguration
from twistedkv.restore import Loaded, load_state
from twistedkv.server import SERVER_VERSION, Member
from twistedkv.storage.backend import Backend, BackendError, Bucket
from twistedkv.storage.registry import open_backend, without_password
from twistedkv.storage.wal import WAL, Disk, Recovered, UnsafeDisk
from twistedkv.storage.worker import StorageWorker
from twistedkv.v2api import v2_site
from twistedkv.v2clock import V2Clock

HAND_OVER_TIMEOUTS: Final = 1.0  # election timeouts that a graceful stop gives another member to take over
_MOST_UNCOMMITTED_BYTES: Final = 64 << 20  # of proposals in a leader's log; more wait until a majority has these
_MOST_INFLIGHT_BYTES: Final = 32 << 20  # on their way to one follower

_log = Logger()


class Duty(Protocol):
    """Something that a member does now and then by itself."""

    def start(self) -> None: ...

    def stop(self) -> None: ...


class AssembledMember:
    """What the service starts and stops; see :class:`twistedkv.service.StartableMember`.

    Args:
        config: with all certificate files filled in.
        reactor: clock, sockets and threads.
        on_failure: called if the member must stop itself after it has started.
    """

    def __init__(self, config: Config, reactor: Any, on_failure: Callable[[BaseException], None]) -> None:
        self._config = config
        self._reactor = reactor
        self._on_failure = on_failure
        self._turn = Turn(reactor)
        self._metrics = Metrics(clock_s=monotonic if config.metrics == EXTENSIVE else None)
        self._worker = StorageWorker(reactor)
        self._wal_worker = StorageWorker(reactor)
        self._backend: Backend | None = None
        self._wal: WAL | None = None
        self._member: Member | None = None
        self._ports: list[ClientPort] = []
        self._peers: Peers | None = None
        self._gate: Gate | None = None
        self._duties: list[Duty] = []  # what the member does for the cluster now and then
        self._publishing: Deferred[None] | None = None

    async def start(self) -> None:
        """See :class:`twistedkv.service.StartableMember`."""
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        config, reactor = self._config, self._reactor
        self._backend = backend = open_backend(config.storage)
        self._worker.start()
        self._wal_worker.start()
        gc.disable()  # it would go through all of the keys again and again while they are loaded
        try:
            loaded = await self._worker.run(_open_and_load, backend, config)
            gc.freeze()  # what was loaded stays for good
        finally:
            gc.enable()
        disk = Disk()
        if config.unsafe_no_fsync:
            _log.warn("--unsafe-no-fsync: a power cut will lose acknowledged writes and may damage the log")
            disk = UnsafeDisk()
        server_tls, client_tls = _peer_contexts(config, reactor)
        allows = allowed_peers(config)
        remotes: Mapping[int, tuple[str, ...]] = {}
        directory = config.data_dir / "wal"
        if not await self._wal_worker.run(WAL.exists, directory):
            self._refuse_lost_log(loaded, directory)
            founding = await found(config, reactor, client_tls, SERVER_VERSION, allows=allows)
            remotes = founding.remotes
            await self._wal_worker.run(create_log, directory, founding, disk)
        wal, recovered = await self._wal_worker.run(self._open_wal, directory, loaded, disk)
        self._wal = wal
        me, cluster = _identity(recovered.metadata)
        _check_same_member(loaded, recovered, me, cluster, without_password(config.storage))
        if config.force_new_cluster:
            urls = tuple(map(str, config.initial_advertise_peer_urls))
            recovered = await self._wal_worker.run(
                force_alone, wal, recovered, loaded.membership, loaded.described.index, me, urls
            )
        state = loaded.described
        loaded.store.record(Bucket.META, META_MEMBER, b"%x" % me)
        loaded.store.record(Bucket.META, META_CLUSTER, b"%x" % cluster)
        applier = Applier.of(loaded)
        election_ticks = config.election_timeout_ms // config.heartbeat_interval_ms
        node = RaftNode(
            RaftConfig(
                id=me,
                random=Random(me ^ int(reactor.seconds() * 1000)),
                election_ticks=election_ticks,
                pre_vote=config.pre_vote,
                answers_commits=False,  # a fifth of what a lone put costs the cluster
                max_uncommitted_bytes=_MOST_UNCOMMITTED_BYTES,
                max_inflight_bytes=_MOST_INFLIGHT_BYTES,
            ),
            RaftLog(recovered.entries, recovered.snapshot.index, recovered.snapshot.term),
            hard_state_at(recovered.hard_state, state.index),
            state.conf_state if state.index else recovered.snapshot.conf_state,
            state.index,
        )

        peer_metrics = PeerMetrics(me, monotonic)

        def connect(receiver: Receiver) -> Peers:
            own_urls = [str(url) for url in config.initial_advertise_peer_urls]
            self._metrics.include(peer_metrics)
            self._peers = Peers(
                reactor,
                me,
                cluster,
                SERVER_VERSION,
                own_urls,
                server_tls,
                client_tls,
                receiver,
                peer_metrics,
                allows=allows,
            )
            return self._peers

        self._member = member = Member(
            config,
            reactor,
            self._turn,
            node,
            wal,
            self._wal_worker,
            backend,
            self._worker,
            applier,
            (state.index, state.term),
            me,
            cluster,
            loaded.compaction_done,
            self._metrics,
            self._on_failure,
            monotonic,
            connect=connect,
        )
        reconfiguration = Reconfiguration(member, reactor.seconds)
        primary = PrimaryLessor(member)
        leases = LeaseSite(primary, reactor)
        site = PeerSite(member, reconfiguration)
        site.add("/leases", "POST", leases.renew)
        site.add("/leases/internal", "POST", leases.time_to_live)
        site.add(HASHKV_PATH, "GET", HashSite(member, cluster).hash)
        if self._peers is not None:
            self._peers.extra = site.answer
            for remote, urls in remotes.items():
                self._peers.set_peer(remote, urls)
            self._peers.listen([str(url) for url in config.listen_peer_urls])
        statistics = V2Stats(member, config.name, peer_metrics.stats, monotonic, reactor.seconds)
        self._duties.append(statistics)
        statistics.start()
        member.start()
        check = CorruptionCheck(member, config.corrupt_check_time_s)
        for duty in (ClusterVersion(member, SERVER_VERSION), check, V2Clock(member)):
            self._duties.append(duty)
            duty.start()
        await self._become_ready(member)
        if config.initial_corrupt_check:
            await check.check_initially()
        self._listen(member, reconfiguration, statistics)
        _log.info("ready to serve client requests")

    async def _become_ready(self, member: Member) -> None:
        """Return once the member has all of the log and the others know it: nobody sees a state that is old."""
        self._publishing = Publication(member).begin()
        try:
            await self._publishing
        finally:
            self._publishing = None

    def _refuse_lost_log(self, loaded: Loaded, directory: Path) -> None:
        if loaded.described.index:
            storage = without_password(self._config.storage)
            raise BackendError(f"{storage} holds data, but its write-ahead log {directory} is missing")

    def _open_wal(self, directory: Path, loaded: Loaded, disk: Disk) -> tuple[WAL, Recovered]:
        """The log, behind a snapshot that a crash kept from being noted in it. Blocks."""
        wal, recovered = WAL.open(directory, disk=disk)
        if finish_installation(wal, recovered, loaded.installed, loaded.described):
            wal.close()
            wal, recovered = WAL.open(directory, disk=disk)
        return wal, recovered

    def _listen(self, member: Member, reconfiguration: Reconfiguration, statistics: V2Stats) -> None:
        config = self._config
        keys_and_leases = [
            *KVService(member, member.applier.executor, config.max_txn_ops).methods(),
            *LeaseService(member).methods(),
        ]
        inside = Inside(keys_and_leases, member.hub)
        methods = [
            *keys_and_leases,
            *LockService(inside).methods(),
            *ElectionService(inside, member).methods(),
            *ClusterService(member, reconfiguration).methods(),
            *MaintenanceService(member, SERVER_VERSION).methods(),
            *HealthService().methods(),
            *WatchService(member).methods(),
            *pending_methods(),
        ]
        reflection = ReflectionService(method.path.split("/")[1] for method in methods)
        table = MethodTable([*methods, *reflection.methods()])
        election_s = config.election_timeout_ms / 1000
        self._gate = Gate(table, member, self._reactor.callLater, election_s, _log_failure)
        self._gate.start()
        metrics = self._metrics
        metrics.count_calls_of(table.by_path.values())
        show(member, reconfiguration, metrics)
        limits = Limits(concurrent_streams=min(config.max_concurrent_streams, 2**31 - 1))
        # Over TLS etcd has Go's HTTP server carry gRPC (embed/serve.go), which minds no pings, so only plaintext is
        # policed. It sends no pings there either; we do, since every client answers them, and a dead one should go.
        policed, free = (
            Keepalive(
                config.grpc_keepalive_min_time_s,
                config.grpc_keepalive_interval_s,
                config.grpc_keepalive_timeout_s,
                policed,
            )
            for policed in (True, False)
        )
        most_bytes = config.max_request_bytes + (512 << 10)  # etcd embed/etcd.go, grpcOverheadBytes

        def grpc(peer: Peer) -> GrpcServerConnection:
            keepalive = free if peer.secure else policed
            return GrpcServerConnection(table, peer, limits, most_bytes, _log_failure, metrics, keepalive)

        # Authentication comes with the Auth service; until then no certificate's name means anything.
        gateway = Gateway(table, self._reactor, most_bytes, _log_failure, lambda: False, metrics)
        facts = MemberFacts(member)
        endpoints = Endpoints(facts, metrics.exposition, metrics)
        v2 = v2_site(member, reconfiguration, statistics, self._reactor) if config.enable_v2 else None
        front = HTTPFront(self._reactor, gateway, endpoints, v2=v2, turn=self._turn)
        clients = ClientPort(self._reactor, grpc, front.http1_protocol, self._turn)
        self._open_port(clients, config.listen_client_urls, "clients")
        if config.listen_metrics_urls:
            nothing = Gateway(MethodTable(()), self._reactor, 0, _log_failure, lambda: False)
            front = HTTPFront(self._reactor, nothing, MonitoringEndpoints(facts, metrics.exposition, metrics))
            monitoring = ClientPort(self._reactor, None, front.http1_protocol, self._turn)
            self._open_port(monitoring, config.listen_metrics_urls, "metrics")

    def _open_port(self, port: ClientPort, urls: Iterable[Url], what: str) -> None:
        config = self._config
        self._ports.append(port)
        tls = TLSConfig(config.cert_file, config.key_file, config.trusted_ca_file, config.client_cert_auth)
        for url in urls:
            port.listen(url.host, url.port, ServerContext(tls, self._reactor) if url.secure else None)
            _log.info("serving {what} on {url}", what=what, url=str(url))

    async def stop(self) -> None:
        """See :class:`twistedkv.service.StartableMember`."""
        if self._publishing is not None:
            self._publishing.cancel()
        if self._member is not None and self._ports:
            await hand_over(self._member, HAND_OVER_TIMEOUTS * self._config.election_timeout_ms / 1000)
        while self._ports:
            await self._ports.pop(0).stop()
        if self._gate is not None:
            self._gate.stop()
        while self._duties:
            self._duties.pop().stop()
        if self._member is not None:
            member, self._member = self._member, None
            await member.stop()
        if self._peers is not None:
            peers, self._peers = self._peers, None
            await peers.stop()
        if self._wal is not None:
            wal, self._wal = self._wal, None
            await self._wal_worker.run(wal.close)
        if self._backend is not None:
            backend, self._backend = self._backend, None
            await self._worker.run(backend.close)
        await self._wal_worker.stop()
        await self._worker.stop()


def hard_state_at(recovered: HardState, applied: int) -> HardState:
    """The hard state of a member whose database has applied the log up to ``applied``.

    The log learns of a commit index with the next batch only, so the database may know of a later one.
    """
    return recovered._replace(commit=max(recovered.commit, applied))


def _identity(metadata: bytes) -> tuple[int, int]:
    """The member's and the cluster's id as the log has them."""
    parsed = Metadata.FromString(metadata)
    return parsed.NodeID, parsed.ClusterID


def _check_same_member(loaded: Loaded, recovered: Recovered, me: int, cluster: int, storage: str) -> None:
    """Refuse a database and a log that do not belong together.

    Raises:
        BackendError: in one line, why.
    """
    owner, theirs = loaded.meta.get(META_MEMBER), loaded.meta.get(META_CLUSTER)
    if owner is not None and (owner, theirs) != (b"%x" % me, b"%x" % cluster):
        raise BackendError(f"{storage} belongs to member {owner.decode()} and not to {me:x}, whose log this is")
    applied = loaded.described.index
    if applied < recovered.snapshot.index:
        raise BackendError(
            f"{storage} is too old for its write-ahead log: it is at index {applied}, and the log has only what came "
            f"after {recovered.snapshot.index}"
        )
    last = recovered.entries[-1].index if recovered.entries else recovered.snapshot.index
    if applied > last:
        raise BackendError(f"{storage} is newer than its write-ahead log: it is at index {applied}, the log at {last}")


def _log_failure(error: BaseException, path: str) -> None:
    _log.error("{path} failed: {error!r}", path=path, error=error)


def _open_and_load(backend: Backend, config: Config) -> Loaded:
    """Open the database and read the whole state. Blocks: run it on the storage thread."""
    backend.open()
    return load_state(backend, config)


def _peer_contexts(config: Config, reactor: IReactorTime) -> tuple[ServerContext | None, ClientContext | None]:
    """TLS between members, both sides with the same certificate; none of it without one."""
    if not config.peer_cert_file:
        return None, None
    files = (config.peer_cert_file, config.peer_key_file, config.peer_trusted_ca_file)
    tls = TLSConfig(*files, config.peer_client_cert_auth)
    alpn = ("http/1.1",)
    return ServerContext(tls, reactor, alpn), ClientContext(tls, reactor, alpn)
