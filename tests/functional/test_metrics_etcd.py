"""Our metrics against those of a real etcd 3.5.1: names, types and labels, and what we do not have."""

from __future__ import annotations

import tempfile
import urllib.request
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from twisted.trial.unittest import SynchronousTestCase

from tests.calls import RecordedCall
from tests.functional.processes import MISSING_ETCD, EtcdProcess, ServerProcess, TwistedkvProcess
from twistedkv.metrics import READABLE, Metrics
from twistedkv.pb import rpc_pb2
from twistedkv.protocols.rpc import Access, Kind, Method, unimplemented

NOT_OURS = {  # beginning of the names: why we do not have them
    "go_": "we are not written in Go",
    "etcd_server_go_version": "we are not written in Go",
    "promhttp_": "Go's scrape handler describes itself",
    "process_virtual_memory_max_bytes": "prometheus-client does not read that limit",
    "etcd_grpc_proxy_": "there is no gRPC proxy",
    "etcd_debugging_disk_backend_": "phases of a commit of bbolt, which we do not have",
    "etcd_debugging_snap_save_": "snapshots are not files here",
    "etcd_snap_": "snapshots are not files here",
    "etcd_debugging_store_": "the v2 store is not part of this yet",
    "etcd_debugging_mvcc_index_compaction_": "the index holds no old revisions that a compaction would have to find",
}
# Every series that the published dashboard for etcd (Grafana 3070) and the alert rules of etcd's mixin ask for, by
# panel or alert, with the labels that their queries select or group by.
QUERIED = {
    "Up": ["etcd_server_has_leader"],
    "RPC rate": [
        'grpc_server_started_total{grpc_type="unary"}',
        'grpc_server_handled_total{grpc_type="unary",grpc_code="OK"}',
    ],
    "Active streams": [
        'grpc_server_started_total{grpc_service="etcdserverpb.Watch",grpc_type="bidi_stream"}',
        'grpc_server_handled_total{grpc_service="etcdserverpb.Watch",grpc_type="bidi_stream"}',
        'grpc_server_started_total{grpc_service="etcdserverpb.Lease",grpc_type="bidi_stream"}',
        'grpc_server_handled_total{grpc_service="etcdserverpb.Lease",grpc_type="bidi_stream"}',
    ],
    "DB size": ["etcd_mvcc_db_total_size_in_bytes"],
    "Disk sync duration": [
        'etcd_disk_wal_fsync_duration_seconds_bucket{le="0.512"}',
        'etcd_disk_backend_commit_duration_seconds_bucket{le="0.256"}',
    ],
    "Memory": ["process_resident_memory_bytes"],
    "Client traffic": [
        "etcd_network_client_grpc_received_bytes_total",
        "etcd_network_client_grpc_sent_bytes_total",
    ],
    "Raft proposals": [
        "etcd_server_proposals_failed_total",
        "etcd_server_proposals_pending",
        "etcd_server_proposals_committed_total",
        "etcd_server_proposals_applied_total",
    ],
    "Leader elections": ["etcd_server_leader_changes_seen_total"],
    "etcdNoLeader": ["etcd_server_has_leader"],
    "etcdHighNumberOfLeaderChanges": ["etcd_server_leader_changes_seen_total"],
    "etcdHighNumberOfFailedGRPCRequests": [
        'grpc_server_handled_total{grpc_code="Unavailable",grpc_service="etcdserverpb.KV",grpc_method="Put"}',
    ],
    "etcdGRPCRequestsSlow": [
        'grpc_server_handling_seconds_bucket{grpc_type="unary",grpc_service="etcdserverpb.KV",le="0.1"}',
    ],
    "etcdHighNumberOfFailedProposals": ["etcd_server_proposals_failed_total"],
    "etcdHighFsyncDurations": ["etcd_disk_wal_fsync_duration_seconds_bucket"],
    "etcdHighCommitDurations": ["etcd_disk_backend_commit_duration_seconds_bucket"],
    "etcdDatabaseQuotaLowSpace": ["etcd_mvcc_db_total_size_in_bytes", "etcd_server_quota_backend_bytes"],
    "etcdExcessiveDatabaseGrowth": ["etcd_mvcc_db_total_size_in_bytes", "etcd_server_quota_backend_bytes"],
    "etcdDatabaseHighFragmentationRatio": [
        "etcd_mvcc_db_total_size_in_use_in_bytes",
        "etcd_mvcc_db_total_size_in_bytes",
    ],
    "etcdctl check": ["process_resident_memory_bytes"],
}
# etcdMembersDown and etcdInsufficientMembers count the targets that are up, and failures between members.
NEEDS_PEERS = {
    "Peer traffic": ["etcd_network_peer_received_bytes_total", "etcd_network_peer_sent_bytes_total"],
    "etcdMembersDown": ["etcd_network_peer_sent_failures_total"],
    "etcdMemberCommunicationSlow": ["etcd_network_peer_round_trip_time_seconds_bucket"],
}

Shape = dict[str, tuple[str, set[frozenset[str]], set[str]]]  # family: type, sets of label names, bounds of buckets


def shape(exposition: str) -> Shape:
    """What a dashboard depends on: everything but the values."""
    types = dict(line.split()[2:4] for line in exposition.splitlines() if line.startswith("# TYPE "))
    found: Shape = {}
    for family in text_string_to_metric_families(exposition):
        name = family.name if family.name in types else f"{family.name}_total"
        labels = {frozenset(sample.labels) for sample in family.samples}
        bounds = {sample.labels["le"] for sample in family.samples if "le" in sample.labels}
        found[name] = (types[name], labels, bounds)
    return found


def series(text: str) -> list[Sample]:
    """All samples of an exposition."""
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def answered(query: str, samples: list[Sample]) -> bool:
    """Whether a selector, a name and labels that must be equal, finds a series."""
    name, _, selector = query.rstrip("}").partition("{")
    wanted = dict(each.split("=", 1) for each in selector.split(",") if each)
    return any(
        sample.name == name and all(sample.labels.get(key) == value.strip('"') for key, value in wanted.items())
        for sample in samples
    )


class DashboardTests(SynchronousTestCase):
    """Prometheus, Grafana and alert rules made for etcd."""

    skip = MISSING_ETCD

    def scrape(self, kind: type[ServerProcess], directory: str) -> list[Sample]:
        """The series of a server that was written to and read from."""
        server = kind(Path(directory) / kind.label, options=("--metrics", "extensive"))
        server.start()
        self.addCleanup(server.stop)
        for path in ("kv/put", "kv/range"):
            asked = urllib.request.Request(f"{server.endpoint}/v3/{path}", b'{"key":"Zm9v"}')
            urllib.request.urlopen(asked, timeout=10).close()
        with urllib.request.urlopen(f"{server.endpoint}/metrics", timeout=10) as answer:
            return series(answer.read().decode())

    def test_every_query_finds_its_series(self) -> None:
        """Panels and alerts find in our text what they find in etcd's; those about peers find nothing in either's."""
        with tempfile.TemporaryDirectory() as directory:
            ours, theirs = (self.scrape(kind, directory) for kind in (TwistedkvProcess, EtcdProcess))
            for panel, queries in QUERIED.items():
                for query in queries:
                    self.assertTrue(answered(query, theirs), f"{panel}: {query} is not etcd's")
                    self.assertTrue(answered(query, ours), f"{panel}: {query}")
            for panel, queries in NEEDS_PEERS.items():
                for query in queries:
                    self.assertFalse(answered(query, theirs), f"{panel}: {query} needs no peers")
            for name in (
                "grpc_server_handling_seconds",
                "etcd_server_client_requests_total",
                "grpc_server_msg_sent_total",
            ):
                kinds = [
                    {frozenset(sample.labels) for sample in side if sample.name.startswith(name)}
                    for side in (ours, theirs)
                ]
                self.assertEqual(*kinds)
            bounds = [
                {sample.labels["le"] for sample in side if sample.name == "grpc_server_handling_seconds_bucket"}
                for side in (ours, theirs)
            ]
            self.assertEqual(*bounds)


class MetricsOfEtcdTests(SynchronousTestCase):
    """A dashboard made for etcd."""

    skip = MISSING_ETCD

    def test_what_we_have_is_as_in_etcd_and_what_we_have_not_is_known(self) -> None:
        """Names, types, labels and buckets are equal; every missing name has its reason."""
        with tempfile.TemporaryDirectory() as directory:
            server = EtcdProcess(Path(directory))
            server.start()
            self.addCleanup(server.stop)
            asked = urllib.request.Request(f"{server.endpoint}/v3/kv/put", b'{"key":"Zm9v"}')
            urllib.request.urlopen(asked, timeout=10).close()
            with urllib.request.urlopen(f"{server.endpoint}/metrics", timeout=10) as answer:
                theirs = shape(answer.read().decode())
            server.stop()
        metrics = Metrics()
        put = Method(
            "/etcdserverpb.KV/Put", Kind.UNARY, rpc_pb2.PutRequest, rpc_pb2.PutResponse, Access.OPEN, unimplemented
        )
        metrics.count_calls_of([put])
        metrics.started(RecordedCall(put))
        metrics.applied("Put", True, 0.001)
        for name in READABLE:
            metrics.read(name, lambda: 0)
        for name in ("etcd_server_id", "etcd_server_version", "etcd_cluster_version"):
            metrics.read_fact(name, lambda: "x")
        ours = shape(metrics.exposition().decode())
        for name in ours.keys() & theirs.keys():
            self.assertEqual(ours[name], theirs[name], name)
        self.assertEqual(ours.keys() - theirs.keys(), set())
        missing = {name for name in theirs.keys() - ours.keys() if not name.startswith(tuple(NOT_OURS))}
        self.assertEqual(missing, set())
        for beginning in NOT_OURS:
            self.assertTrue(any(name.startswith(beginning) for name in theirs), f"{beginning} is not etcd's")
