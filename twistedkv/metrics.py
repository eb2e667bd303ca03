"""What a member counts, under etcd's metric names, and its text for Prometheus.

Counting is plain arithmetic on attributes, because an ``inc()`` of prometheus-client takes a lock and a microsecond
and would be paid by every request. All counts belong to the reactor's thread, and so does the scrape. A registry of
prometheus-client asks for them as of any collector, so that a program around the member can add its own.

What is somebody else's state, such as revisions or sizes, is not copied here: :meth:`Metrics.read` names a function
that is asked at the scrape. A metric that nobody counts or answers for is not shown.

Names, types and buckets: etcd 3.5 ``etcdserver/metrics.go``, ``etcdserver/api/v3rpc/metrics.go``, ``mvcc/metrics.go``,
``lease/metrics.go``, ``wal/metrics.go``, ``mvcc/backend/metrics.go``; go-grpc-prometheus ``server_metrics.go``.
"""

from __future__ import annotations

import os
import resource
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from twistedkv.errors import Code
from twistedkv.protocols.rpc import Call, Kind, Method

DISK_SECONDS: Final = tuple(0.001 * 2**n for n in range(14))
SNAPSHOT_SECONDS: Final = tuple(0.01 * 2**n for n in range(17))
DEFRAG_SECONDS: Final = tuple(0.1 * 2**n for n in range(13))
HASH_SECONDS: Final = tuple(0.01 * 2**n for n in range(15))
COMPACTION_MS: Final = tuple(100.0 * 2**n for n in range(14))
PAUSE_MS: Final = tuple(float(2**n) for n in range(13))
CALL_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
APPLY_SECONDS: Final = tuple(0.0001 * 2**n for n in range(20))
LEASE_SECONDS: Final = tuple(float(2**n) for n in range(24))

_CLIENT_VERSION: Final = "client-api-version"  # what etcd's clients send of themselves
_UNKNOWN_VERSION: Final = "unknown"
_MOST_VERSIONS: Final = 50  # that are told apart; a client can make up any number of them

_CODE_NAMES: Final = (  # by number, as grpc-go prints them
    "OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound", "AlreadyExists", "PermissionDenied",
    "ResourceExhausted", "FailedPrecondition", "Aborted", "OutOfRange", "Unimplemented", "Internal", "Unavailable",
    "DataLoss", "Unauthenticated",
)  # fmt: skip
_KIND_NAMES: Final = {
    Kind.UNARY: "unary",
    Kind.SERVER_STREAM: "server_stream",
    Kind.CLIENT_STREAM: "client_stream",
    Kind.BIDI: "bidi_stream",
}

_COUNTED: Final = {  # attribute: name, help. All are counters.
    "leader_changes": ("etcd_server_leader_changes_seen_total", "Changes of leader that this member has seen."),
    "proposals_failed": ("etcd_server_proposals_failed_total", "Proposals that failed."),
    "slow_applies": ("etcd_server_slow_apply_total", "Entries that took long to apply."),
    "slow_read_indexes": (
        "etcd_server_slow_read_indexes_total",
        "Linearizable reads that waited long for their index.",
    ),
    "read_indexes_failed": ("etcd_server_read_indexes_failed_total", "Linearizable reads that got no index."),
    "heartbeat_failures": ("etcd_server_heartbeat_send_failures_total", "Heartbeats that were sent too late."),
    "health_successes": ("etcd_server_health_success", "Health checks passed."),
    "health_failures": ("etcd_server_health_failures", "Health checks failed."),
    "received_bytes": ("etcd_network_client_grpc_received_bytes_total", "Bytes received from gRPC clients."),
    "sent_bytes": ("etcd_network_client_grpc_sent_bytes_total", "Bytes sent to gRPC clients."),
}

READABLE: Final = {  # name: type, help. Shown once somebody answers for them.
    "etcd_server_has_leader": ("gauge", "1 if this member knows a leader."),
    "etcd_server_is_leader": ("gauge", "1 if this member is the leader."),
    "etcd_server_is_learner": ("gauge", "1 if this member is a learner."),
    "etcd_server_learner_promote_successes": ("counter", "Learners promoted while this member led."),
    "etcd_server_proposals_committed_total": ("gauge", "The last index committed."),
    "etcd_server_proposals_applied_total": ("gauge", "The last index applied."),
    "etcd_server_proposals_pending": ("gauge", "Proposals not applied yet."),
    "etcd_server_quota_backend_bytes": ("gauge", "The quota of the database in bytes."),
    "etcd_server_snapshot_apply_in_progress_total": ("gauge", "1 while a snapshot of another member is applied."),
    "etcd_disk_wal_write_bytes_total": ("gauge", "Bytes written to the write-ahead log."),
    "etcd_mvcc_db_total_size_in_bytes": ("gauge", "The size of the database in bytes."),
    "etcd_mvcc_db_total_size_in_use_in_bytes": ("gauge", "How much of the database is in use."),
    "etcd_mvcc_db_open_read_transactions": ("gauge", "Reads of the database in progress."),
    "etcd_mvcc_range_total": ("counter", "Ranges seen by this member."),
    "etcd_mvcc_put_total": ("counter", "Puts seen by this member."),
    "etcd_mvcc_delete_total": ("counter", "Deletes seen by this member."),
    "etcd_mvcc_txn_total": ("counter", "Transactions seen by this member."),
    "etcd_debugging_mvcc_range_total": ("counter", "Ranges seen by this member."),
    "etcd_debugging_mvcc_keys_total": ("gauge", "Keys that exist."),
    "etcd_debugging_mvcc_current_revision": ("gauge", "The current revision."),
    "etcd_debugging_mvcc_compact_revision": ("gauge", "The revision of the last compaction."),
    "etcd_debugging_mvcc_db_compaction_keys_total": ("counter", "Rows deleted by compaction."),
    "etcd_debugging_mvcc_db_compaction_last": ("gauge", "When the last compaction ended, in Unix seconds."),
    "etcd_debugging_mvcc_total_put_size_in_bytes": ("gauge", "Bytes of all keys and values put."),
    "etcd_debugging_mvcc_watcher_total": ("gauge", "Watchers."),
    "etcd_debugging_mvcc_watch_stream_total": ("gauge", "Streams of watchers."),
    "etcd_debugging_mvcc_slow_watcher_total": ("gauge", "Watchers that are behind."),
    "etcd_debugging_mvcc_pending_events_total": ("gauge", "Events on their way to watchers."),
    "etcd_debugging_mvcc_events_total": ("counter", "Events sent to watchers."),
    "etcd_debugging_lease_granted_total": ("counter", "Leases granted."),
    "etcd_debugging_lease_renewed_total": ("counter", "Leases renewed by the leader."),
    "etcd_debugging_lease_revoked_total": ("counter", "Leases revoked."),
    "etcd_debugging_server_lease_expired_total": ("counter", "Leases expired."),
    "etcd_debugging_auth_revision": ("gauge", "The revision of users and roles."),
}

_DISTRIBUTIONS: Final = {  # attribute: name, bounds, help
    "wal_fsync": ("etcd_disk_wal_fsync_duration_seconds", DISK_SECONDS, "Flushes of the write-ahead log."),
    "backend_commit": ("etcd_disk_backend_commit_duration_seconds", DISK_SECONDS, "Transactions of the database."),
    "backend_snapshot": ("etcd_disk_backend_snapshot_duration_seconds", SNAPSHOT_SECONDS, "Snapshots for clients."),
    "backend_defrag": ("etcd_disk_backend_defrag_duration_seconds", DEFRAG_SECONDS, "Defragmentations."),
    "hash": ("etcd_mvcc_hash_duration_seconds", HASH_SECONDS, "Hashes of the whole database."),
    "hash_rev": ("etcd_mvcc_hash_rev_duration_seconds", HASH_SECONDS, "Hashes of the keys as of a revision."),
    "compaction_ms": (
        "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds",
        COMPACTION_MS,
        "Deletions of what a compaction drops.",
    ),
    "compaction_pause_ms": (
        "etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds",
        PAUSE_MS,
        "Waits for a batch of such deletions.",
    ),
    "lease_ttl": ("etcd_debugging_lease_ttl_total", LEASE_SECONDS, "Times to live that were asked for."),
}

_LABELLED: Final = {  # name: label, help. The value is 1, the fact is in the label.
    "etcd_server_id": ("server_id", "The member's id in hexadecimal."),
    "etcd_server_version": ("server_version", "The version that this member runs."),
    "etcd_cluster_version": ("cluster_version", "The version that the cluster speaks."),
}


class Distribution:
    """A histogram: how many observations fell into which bucket, and their sum.

    Args:
        bounds: upper ends of the buckets, inclusive, rising; one more takes what is above.
    """

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one observation."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def add_to(self, metric: Metric, labels: dict[str, str]) -> None:
        """Write the cumulative counts as samples."""
        total = 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            metric.add_sample(f"{metric.name}_bucket", {**labels, "le": _bound(bound)}, total)
        metric.add_sample(f"{metric.name}_sum", labels, self._sum)
        metric.add_sample(f"{metric.name}_count", labels, total)


class _Calls:
    """The calls of one method."""

    __slots__ = ("clients", "handled", "labels", "one_request", "received", "seconds", "sent", "started", "unary")

    def __init__(self, method: Method, clients: dict[str, int]) -> None:
        service, _, name = method.path.lstrip("/").partition("/")
        self.labels = {"grpc_method": name, "grpc_service": service, "grpc_type": _KIND_NAMES[method.kind]}
        self.unary = method.kind is Kind.UNARY
        self.one_request = self.unary or method.kind is Kind.SERVER_STREAM
        self.clients = clients  # calls by the version that the client told, of all methods of this kind
        self.seconds = Distribution(CALL_SECONDS)
        self.started = 0
        self.received = self.sent = 0  # messages of a stream; one more came if the request is only one
        self.handled = [0] * len(_CODE_NAMES)  # by code


class Metrics:
    """The counts of one member; a collector of prometheus-client.

    The public integers are counted up by whoever knows. It is also the observer of calls for both transports, and of
    health checks for the endpoints.

    Args:
        registry: to which this and the process's own figures are added; a new one if there is none.
        clock_s: if given, the time that each call takes is shown as well (``--metrics=extensive``).
    """

    wal_fsync: Distribution
    backend_commit: Distribution
    backend_snapshot: Distribution
    backend_defrag: Distribution
    hash: Distribution
    hash_rev: Distribution
    compaction_ms: Distribution
    compaction_pause_ms: Distribution
    lease_ttl: Distribution

    def __init__(self, registry: CollectorRegistry | None = None, clock_s: Callable[[], float] | None = None) -> None:
        self.leader_changes = 0
        self.proposals_failed = 0
        self.slow_applies = 0
        self.slow_read_indexes = 0
        self.read_indexes_failed = 0
        self.heartbeat_failures = 0
        self.health_successes = 0
        self.health_failures = 0
        self.received_bytes = 0
        self.sent_bytes = 0
        self.defragmenting = 0
        for attribute, (_, bounds, _) in _DISTRIBUTIONS.items():
            setattr(self, attribute, Distribution(bounds))
        self._clock_s = clock_s
        self._applies: dict[tuple[str, bool], Distribution] = {}
        self._checks: dict[tuple[str, str, bool], int] = {}
        self._last_checks: dict[tuple[str, str], bool] = {}
        self._calls: dict[str, _Calls] = {}
        self._unary_clients: dict[str, int] = {}  # calls by the version that the client told
        self._stream_clients: dict[str, int] = {}
        self._sources: dict[str, Callable[[], float]] = {}
        self._facts: dict[str, Callable[[], str]] = {}
        self._registry = CollectorRegistry() if registry is None else registry
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def read(self, name: str, source: Callable[[], float]) -> None:
        """Show the metric ``name``, asking ``source`` at each scrape.

        Raises:
            ValueError: it is no metric of ours.
        """
        if name not in READABLE:
            raise ValueError(f"no such metric: {name}")
        self._sources[name] = source

    def read_fact(self, name: str, source: Callable[[], str]) -> None:
        """Show the metric ``name``, whose label ``source`` gives at each scrape; an empty one hides it.

        Raises:
            ValueError: it is no metric of ours.
        """
        if name not in _LABELLED:
            raise ValueError(f"no such metric: {name}")
        self._facts[name] = source

    def include(self, collector: Collector) -> None:
        """Show what ``collector`` counts, too."""
        self._registry.register(collector)

    def count_calls_of(self, methods: Iterable[Method]) -> None:
        """Show calls of ``methods``, from zero; others are not counted."""
        for method in methods:
            clients = self._unary_clients if method.kind is Kind.UNARY else self._stream_clients
            self._calls[method.path] = _Calls(method, clients)

    # What transports, endpoints and the member's own loop report.

    def started(self, call: Call) -> None:
        """A call began."""
        head = call.head
        calls = self._calls.get(head.path)
        if calls is None:
            return
        calls.started += 1
        version = head.metadata.get(_CLIENT_VERSION, _UNKNOWN_VERSION)
        clients = calls.clients
        try:
            clients[version] += 1
        except KeyError:
            if len(clients) >= _MOST_VERSIONS:
                version = _UNKNOWN_VERSION
            clients[version] = clients.get(version, 0) + 1
        if self._clock_s is not None:
            call.began_s = self._clock_s()

    def handled(self, call: Call, code: int) -> None:
        """That call ended with ``code``."""
        calls = self._calls.get(call.head.path)
        if calls is not None:
            calls.handled[code] += 1
            if self._clock_s is not None:
                calls.seconds.observe(self._clock_s() - call.began_s)

    def message_received(self, call: Call) -> None:
        """One message of a client's stream came."""
        calls = self._calls.get(call.head.path)
        if calls is not None:
            calls.received += 1

    def message_sent(self, call: Call) -> None:
        """One message of the answer's stream goes out."""
        calls = self._calls.get(call.head.path)
        if calls is not None:
            calls.sent += 1

    def received(self, size: int) -> None:
        """So many bytes came from gRPC clients."""
        self.received_bytes += size

    def sent(self, size: int) -> None:
        """So many bytes go to gRPC clients."""
        self.sent_bytes += size

    def applied(self, operation: str, success: bool, seconds: float) -> None:
        """An entry of the log was applied.

        Args:
            operation: by etcd's name, such as ``Put``.
        """
        distribution = self._applies.get((operation, success))
        if distribution is None:
            distribution = self._applies[operation, success] = Distribution(APPLY_SECONDS)
        distribution.observe(seconds)

    def health_checked(self, healthy: bool) -> None:
        """``/health`` was answered."""
        if healthy:
            self.health_successes += 1
        else:
            self.health_failures += 1

    def check_done(self, kind: str, name: str, passed: bool) -> None:
        """One check of ``/livez`` or ``/readyz`` was made."""
        key = (kind, name, passed)
        self._checks[key] = self._checks.get(key, 0) + 1
        self._last_checks[kind, name] = passed

    def collect(self) -> Iterator[Metric]:
        """Everything as prometheus-client's metrics, each with etcd's exact name."""
        for attribute, (name, text) in _COUNTED.items():
            yield _single(name, "counter", text, getattr(self, attribute))
        for name, source in self._sources.items():
            kind, text = READABLE[name]
            yield _single(name, kind, text, source())
        for name, fact in self._facts.items():
            label, text = _LABELLED[name]
            if value := fact():
                yield _single(name, "gauge", text, 1, {label: value})
        yield _single("etcd_disk_defrag_inflight", "gauge", "Defragmentations in progress.", self.defragmenting)
        for attribute, (name, _, text) in _DISTRIBUTIONS.items():
            yield _histogram(name, text, getattr(self, attribute))
        applies = Metric("etcd_server_apply_duration_seconds", "Time to apply an entry.", "histogram")
        for (operation, success), distribution in self._applies.items():
            labels = {"version": "v3", "op": operation, "success": str(success).lower()}
            distribution.add_to(applies, labels)
        yield applies
        yield from self._collect_calls()
        yield from self._collect_checks()
        yield _single("os_fd_used", "gauge", "File descriptors in use.", len(os.listdir("/proc/self/fd")))
        yield _single("os_fd_limit", "gauge", "How many there may be.", resource.getrlimit(resource.RLIMIT_NOFILE)[0])

    def exposition(self) -> bytes:
        """The whole registry in Prometheus' text format 0.0.4, sorted by name as Go does it.

        prometheus-client's own writer is not used, because it appends ``_total`` to the name of every counter, which
        some of etcd's do not have.
        """
        lines: list[str] = []
        for metric in sorted(self._registry.collect(), key=lambda metric: metric.name):
            if not metric.samples:
                continue
            name = metric.name
            if metric.type == "counter" and metric.samples[0].name != name:
                name += "_total"
            lines.append(f"# HELP {name} {_escape(metric.documentation)}\n# TYPE {name} {metric.type}\n")
            for sample in metric.samples:
                if sample.name.endswith("_created"):
                    continue  # OpenMetrics only
                labels = ",".join(f'{key}="{_escape_value(value)}"' for key, value in sorted(sample.labels.items()))
                labels = f"{{{labels}}}" if labels else ""
                lines.append(f"{sample.name}{labels} {_number(sample.value)}\n")
        return "".join(lines).encode("utf-8")

    def _collect_calls(self) -> Iterator[Metric]:
        started = Metric("grpc_server_started_total", "Calls started.", "counter")
        handled = Metric("grpc_server_handled_total", "Calls ended, by status.", "counter")
        received = Metric("grpc_server_msg_received_total", "Messages received.", "counter")
        sent = Metric("grpc_server_msg_sent_total", "Messages sent.", "counter")
        seconds = Metric("grpc_server_handling_seconds", "Time from the start of a call to its end.", "histogram")
        requests = Metric("etcd_server_client_requests_total", "Calls by the client's version.", "counter")
        for calls in self._calls.values():
            started.add_sample(started.name, calls.labels, calls.started)
            for code, count in zip(_CODE_NAMES, calls.handled, strict=True):
                handled.add_sample(handled.name, {**calls.labels, "grpc_code": code}, count)
            # Where a call has one message, it is the call that was counted.
            received.add_sample(received.name, calls.labels, calls.received + calls.started * calls.one_request)
            sent.add_sample(sent.name, calls.labels, calls.sent + calls.handled[Code.OK] * calls.unary)
            if self._clock_s is not None:
                calls.seconds.add_to(seconds, calls.labels)
        for kind, clients in (("unary", self._unary_clients), ("stream", self._stream_clients)):
            for version, count in clients.items():
                requests.add_sample(requests.name, {"type": kind, "client_api_version": version}, count)
        yield from (started, handled, received, sent, seconds, requests)

    def _collect_checks(self) -> Iterator[Metric]:
        checks = Metric("etcd_server_healthchecks_total", "Checks of /livez and /readyz.", "counter")
        latest = Metric("etcd_server_healthcheck", "1 if the last check passed.", "gauge")
        for (kind, name, passed), count in self._checks.items():
            status = "success" if passed else "error"
            checks.add_sample(checks.name, {"type": kind, "name": name, "status": status}, count)
        for (kind, name), passed in self._last_checks.items():
            latest.add_sample(latest.name, {"type": kind, "name": name}, int(passed))
        yield from (checks, latest)


def _single(name: str, kind: str, text: str, value: float, labels: dict[str, str] | None = None) -> Metric:
    metric = Metric(name, text, kind)
    metric.add_sample(name, labels or {}, value)
    return metric


def _histogram(name: str, text: str, distribution: Distribution) -> Metric:
    metric = Metric(name, text, "histogram")
    distribution.add_to(metric, {})
    return metric


def _bound(value: float) -> str:
    """The end of a bucket as Go prints it: it is a label, and queries name it."""
    text: str = floatToGoString(value)
    return text.removesuffix(".0")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _escape_value(text: str) -> str:
    return _escape(text).replace('"', '\\"')
