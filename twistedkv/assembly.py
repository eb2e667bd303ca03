"""A member put together: database, log, Raft node, state, services and ports, opened in order and closed in reverse.

Wiring only; what each part does is told in its own module.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from twistedkv.apply import CLUSTER_VERSION as CLUSTER_VERSION_KEY
from twistedkv.apply import DOWNGRADE as DOWNGRADE_KEY
from twistedkv.apply import META_APPLIED_INDEX, META_APPLIED_TERM, Alarms, Applier
from twistedkv.config import EXTENSIVE, Config
from twistedkv.downgrade import Downgrade
from twistedkv.lease import Lessor, load_leases, min_ttl_s
from twistedkv.members import MemberInfo, Membership, bootstrap_changes, cluster_id, member_id
from twistedkv.memberview import MemberFacts, show
from twistedkv.metrics import Metrics
from twistedkv.optiontypes import Url
from twistedkv.pb.etcdserver_pb2 import Metadata
from twistedkv.protocols.endpoints import Endpoints, MonitoringEndpoints
from twistedkv.protocols.gateway import Gateway
from twistedkv.protocols.grpc import GrpcServerConnection
from twistedkv.protocols.http1 import HTTPFront
from twistedkv.protocols.keepalive import Keepalive
from twistedkv.protocols.limits import Limits
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
from twistedkv.protocols.tls import ServerContext, TLSConfig
from twistedkv.protocols.turn import Turn
from twistedkv.raft.config import Config as RaftConfig
from twistedkv.raft.log import RaftLog
from twistedkv.raft.messages import Entry, EntryType, HardState
from twistedkv.raft.node import RaftNode
from twistedkv.server import SERVER_VERSION, Member
from twistedkv.storage.backend import Backend, BackendError, Bucket
from twistedkv.storage.mvcc import META_COMPACTION_DONE, Store, load
from twistedkv.storage.registry import open_backend, without_password
from twistedkv.storage.wal import WAL, Disk, Recovered, UnsafeDisk
from twistedkv.storage.worker import StorageWorker

META_MEMBER = b"member_id"  # hex; whose database this is
META_CLUSTER = b"cluster_id"

_log = Logger()


class _Loaded(NamedTuple):
    """What the database holds."""

    store: Store
    lessor: Lessor
    meta: dict[bytes, bytes]
    alarms: Alarms
    membership: Membership
    cluster_version: str
    downgrade: Downgrade


def _load(backend: Backend, config: Config) -> _Loaded:
    """Read the whole state. Blocks: run it on the storage thread."""
    backend.open()
    store = load(backend, config.value_cache_bytes)
    shortest_s = min_ttl_s(config.election_timeout_ms // config.heartbeat_interval_ms, config.heartbeat_interval_ms)
    lessor = Lessor(shortest_s, load_leases(backend.records(Bucket.LEASES)))
    lessor.reattach(store.index.entries.items())
    cluster = backend.records(Bucket.CLUSTER)
    return _Loaded(
        store,
        lessor,
        backend.records(Bucket.META),
        Alarms(backend.records(Bucket.ALARMS)),
        Membership.from_records(backend.records(Bucket.MEMBERS), backend.records(Bucket.MEMBERS_REMOVED)),
        cluster.get(CLUSTER_VERSION_KEY, b"").decode(),
        Downgrade.from_json(cluster.get(DOWNGRADE_KEY, b"{}")),
    )


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
            loaded = await self._worker.run(_load, backend, config)
            gc.freeze()  # what was loaded stays for good
        finally:
            gc.enable()
        disk = Disk()
        if config.unsafe_no_fsync:
            _log.warn("--unsafe-no-fsync: a power cut will lose acknowledged writes and may damage the log")
            disk = UnsafeDisk()
        wal, recovered = await self._wal_worker.run(self._open_wal, loaded, disk)
        self._wal = wal
        me, cluster = _identity(recovered.metadata)
        _check_same_member(loaded, recovered, me, cluster, without_password(config.storage))
        loaded.store.record(Bucket.META, META_MEMBER, b"%x" % me)
        loaded.store.record(Bucket.META, META_CLUSTER, b"%x" % cluster)
        applied = int(loaded.meta.get(META_APPLIED_INDEX, b"0"))
        applied_term = int(loaded.meta.get(META_APPLIED_TERM, b"0"))
        applier = Applier(
            loaded.store, loaded.lessor, loaded.alarms, loaded.membership, loaded.cluster_version, loaded.downgrade
        )
        node = RaftNode(
            RaftConfig(
                id=me,
                random=Random(me ^ int(reactor.seconds() * 1000)),
                election_ticks=config.election_timeout_ms // config.heartbeat_interval_ms,
            ),
            RaftLog(recovered.entries, recovered.snapshot.index, recovered.snapshot.term),
            hard_state_at(recovered.hard_state, applied),
            loaded.membership.conf_state() if applied else recovered.snapshot.conf_state,
            applied,
        )
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
            (applied, applied_term),
            me,
            cluster,
            int(loaded.meta.get(META_COMPACTION_DONE, b"-1")),
            self._metrics,
            self._on_failure,
            monotonic,
        )
        member.start()
        ready: Deferred[None] = Deferred()
        member.when_readable(lambda: ready.callback(None), ready.errback)
        await ready  # all of the log is applied: nobody sees a state that is older than what was acknowledged
        self._listen(member)
        _log.info("ready to serve client requests")

    def _open_wal(self, loaded: _Loaded, disk: Disk) -> tuple[WAL, Recovered]:
        """The log, or a new one that begins with the changes that found the cluster. Blocks."""
        directory = self._config.data_dir / "wal"
        if not WAL.exists(directory):
            if int(loaded.meta.get(META_APPLIED_INDEX, b"0")):
                storage = without_password(self._config.storage)
                raise BackendError(f"{storage} holds data, but its write-ahead log {directory} is missing")
            self._create_wal(directory, disk)
        return WAL.open(directory, disk=disk)

    def _create_wal(self, directory: Path, disk: Disk) -> None:
        config = self._config
        token = config.initial_cluster_token
        members = [
            MemberInfo(member_id(map(str, urls), token), tuple(map(str, urls)), name)
            for name, urls in config.initial_cluster.items()
        ]
        me = next(each.id for each in members if each.name == config.name)
        metadata = Metadata(NodeID=me, ClusterID=cluster_id(each.id for each in members))
        entries = [
            Entry(1, index, change, EntryType.CONF_CHANGE)
            for index, change in enumerate(bootstrap_changes(members), start=1)
        ]
        wal = WAL.create(directory, metadata.SerializeToString(), disk=disk)
        wal.append(HardState(term=1, vote=0, commit=len(entries)), entries)
        wal.close()

    def _listen(self, member: Member) -> None:
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
            *ClusterService(member).methods(),
            *MaintenanceService(member, SERVER_VERSION).methods(),
            *HealthService().methods(),
            *WatchService(member).methods(),
            *pending_methods(),
        ]
        reflection = ReflectionService(method.path.split("/")[1] for method in methods)
        table = MethodTable([*methods, *reflection.methods()])
        metrics = self._metrics
        metrics.count_calls_of(table.by_path.values())
        show(member, metrics)
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
        front = HTTPFront(self._reactor, gateway, Endpoints(facts, metrics.exposition, metrics))
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
        while self._ports:
            await self._ports.pop(0).stop()
        if self._member is not None:
            member, self._member = self._member, None
            await member.stop()
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


def _check_same_member(loaded: _Loaded, recovered: Recovered, me: int, cluster: int, storage: str) -> None:
    """Refuse a database and a log that do not belong together.

    Raises:
        BackendError: in one line, why.
    """
    owner, theirs = loaded.meta.get(META_MEMBER), loaded.meta.get(META_CLUSTER)
    if owner is not None and (owner, theirs) != (b"%x" % me, b"%x" % cluster):
        raise BackendError(f"{storage} belongs to member {owner.decode()} and not to {me:x}, whose log this is")
    applied = int(loaded.meta.get(META_APPLIED_INDEX, b"0"))
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
