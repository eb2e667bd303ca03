"""Our metrics against those of a real etcd 3.5.1: names, types and labels, and what we do not have."""

from __future__ import annotations

import tempfile
import urllib.request
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from twisted.trial.unittest import SynchronousTestCase

from tests.functional.processes import MISSING_ETCD, EtcdProcess
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
    "etcd_disk_backend_": "of the SQL database only commits are timed",
    "etcd_debugging_snap_save_": "snapshots are not files here",
    "etcd_snap_": "snapshots are not files here",
    "etcd_debugging_store_": "the v2 store is not part of this yet",
    "etcd_mvcc_hash_": "hashes are not timed yet",
    "etcd_debugging_mvcc_db_compaction_total_": "compactions are not timed yet",
    "etcd_debugging_mvcc_db_compaction_pause_": "compactions are not timed yet",
    "etcd_debugging_mvcc_index_compaction_": "compactions are not timed yet",
    "etcd_server_client_requests": "the version that a client names is not told to the observer of calls",
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


class MetricsOfEtcdTests(SynchronousTestCase):
    """A dashboard made for etcd."""

    skip = MISSING_ETCD

    def test_what_we_have_is_as_in_etcd_and_what_we_have_not_is_known(self) -> None:
        """Names, types, labels and buckets are equal; every missing name has its reason."""
        with tempfile.TemporaryDirectory() as directory:
            server = EtcdProcess(Path(directory))
            server.start()
            self.addCleanup(server.stop)
            put = urllib.request.Request(f"{server.endpoint}/v3/kv/put", b'{"key":"Zm9v"}')
            urllib.request.urlopen(put, timeout=10).close()
            with urllib.request.urlopen(f"{server.endpoint}/metrics", timeout=10) as answer:
                theirs = shape(answer.read().decode())
            server.stop()
        metrics = Metrics()
        metrics.count_calls_of(
            [
                Method(
                    "/etcdserverpb.KV/Put",
                    Kind.UNARY,
                    rpc_pb2.PutRequest,
                    rpc_pb2.PutResponse,
                    Access.OPEN,
                    unimplemented,
                )
            ]
        )
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
