"""The member as the plain endpoints and Prometheus see it. Wiring only: every figure belongs to somebody else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from twisted.internet.defer import Deferred, maybeDeferred

from twistedkv.errors import StoppedError
from twistedkv.metrics import Metrics
from twistedkv.pb.rpc_pb2 import AlarmType, RangeRequest
from twistedkv.reconfiguration import Reconfiguration
from twistedkv.server import SERVER_VERSION, Member
from twistedkv.v2metrics import V2Metrics

_ANY_KEY = RangeRequest(key=b"\0", range_end=b"\0", count_only=True)


class MemberFacts:
    """What ``/health``, ``/livez``, ``/readyz`` and ``/version`` ask; see ``protocols/endpoints.py``."""

    server_version = SERVER_VERSION

    def __init__(self, member: Member) -> None:
        self._member = member

    @property
    def cluster_version(self) -> str:
        """Empty while it is not decided."""
        return self._member.applier.cluster_version

    @property
    def has_leader(self) -> bool:
        """Whether this member knows a leader."""
        return self._member.leader != 0

    @property
    def is_learner(self) -> bool:
        """Whether this member has no vote."""
        return self._member.is_learner

    def alarms(self) -> Iterable[str]:
        """The names of the alarms raised by any member."""
        return dict.fromkeys(AlarmType.Name(each.alarm) for each in self._member.alarms.listed())

    def linearizable_check(self) -> Deferred[None]:
        """Fires once a linearizable read was served, or fails with the reason; a request's time-out bounds it."""
        done: Deferred[None] = Deferred()
        self._member.when_readable(lambda: done.callback(None), done.errback)
        return done.addCallback(lambda _: self._read())

    def serializable_check(self) -> Deferred[None]:
        """Fires once a read of what this member has was served, or fails with the reason."""
        return maybeDeferred(self._read)

    def _read(self) -> None:
        """A read that needs nothing but memory: what the database does may delay an answer, not the verdict."""
        if self._member.stopped:
            raise StoppedError
        self._member.store.range(_ANY_KEY)


class PromotionFailures(Collector):
    """Learners that were not promoted while this member led, by etcd's words for the reason."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        """One series a reason."""
        metric = Metric("etcd_server_learner_promote_failures", "Learners that could not be promoted.", "counter")
        for reason, count in self._counts.items():
            metric.add_sample(metric.name, {"Reason": reason}, count)
        yield metric


def show(member: Member, reconfiguration: Reconfiguration, metrics: Metrics) -> None:
    """Have ``metrics`` ask the member for what is not counted."""
    store, counts = member.store, member.applier.executor.counts
    facts = MemberFacts(member)
    for name, source in {
        "etcd_server_has_leader": lambda: float(facts.has_leader),
        "etcd_server_is_leader": lambda: float(member.is_leader),
        "etcd_server_is_learner": lambda: float(facts.is_learner),
        "etcd_server_learner_promote_successes": lambda: reconfiguration.promoted,
        "etcd_server_snapshot_apply_in_progress_total": lambda: float(member.installing),
        "etcd_server_proposals_committed_total": lambda: member.committed,
        "etcd_server_proposals_applied_total": lambda: member.applied,
        "etcd_server_proposals_pending": lambda: member.pending,
        "etcd_server_quota_backend_bytes": lambda: member.config.quota_backend_bytes,
        "etcd_disk_wal_write_bytes_total": lambda: member.wal_bytes_written,
        "etcd_mvcc_db_total_size_in_bytes": lambda: member.size.total,
        "etcd_mvcc_db_total_size_in_use_in_bytes": lambda: member.size.in_use,
        "etcd_mvcc_range_total": lambda: counts.ranges,
        "etcd_mvcc_put_total": lambda: counts.puts,
        "etcd_mvcc_delete_total": lambda: counts.deletes,
        "etcd_mvcc_txn_total": lambda: counts.txns,
        "etcd_debugging_mvcc_range_total": lambda: counts.ranges,
        "etcd_debugging_mvcc_keys_total": lambda: len(store.index),
        "etcd_debugging_mvcc_current_revision": lambda: store.revision,
        "etcd_debugging_mvcc_compact_revision": lambda: store.compacted,
        "etcd_debugging_mvcc_db_compaction_keys_total": lambda: member.sweeper.rows_deleted,
        "etcd_debugging_mvcc_db_compaction_last": lambda: member.sweeper.ended_s,
        "etcd_debugging_mvcc_watcher_total": lambda: member.hub.watchers,
        "etcd_debugging_mvcc_watch_stream_total": lambda: member.hub.streams,
        "etcd_debugging_mvcc_slow_watcher_total": lambda: member.hub.behind,
        "etcd_debugging_mvcc_pending_events_total": lambda: len(member.hub.fresh),
        "etcd_debugging_mvcc_events_total": lambda: member.hub.events,
        "etcd_debugging_mvcc_total_put_size_in_bytes": lambda: counts.put_bytes,
        "etcd_debugging_lease_granted_total": lambda: member.lessor.granted,
        "etcd_debugging_lease_revoked_total": lambda: member.lessor.revoked,
        "etcd_debugging_lease_renewed_total": lambda: member.leases.renewed,
        "etcd_debugging_server_lease_expired_total": lambda: member.leases.expired,
    }.items():
        metrics.read(name, source)
    metrics.include(PromotionFailures(reconfiguration.not_promoted))
    metrics.include(V2Metrics(member.directory.counters, member.v2hub))
    metrics.read_fact("etcd_server_id", lambda: f"{member.member_id:x}")
    metrics.read_fact("etcd_server_version", lambda: SERVER_VERSION)
    metrics.read_fact("etcd_cluster_version", lambda: facts.cluster_version.rpartition(".")[0])
