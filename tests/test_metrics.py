"""Counting, and the text for Prometheus."""

from __future__ import annotations

from dataclasses import replace

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.parser import text_string_to_metric_families
from twisted.trial.unittest import SynchronousTestCase

from tests.calls import RecordedCall
from tests.protocols.httpfakes import ToyMember
from twistedkv.errors import Code
from twistedkv.metrics import Distribution, Metrics


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """The exposition as prometheus-client's own parser reads it: name and labels to value."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.exposition().decode())
        for sample in family.samples
    }


class MetricsTests(SynchronousTestCase):
    """One member's metrics."""

    def setUp(self) -> None:
        self.metrics = Metrics()

    def call(self, path: str, metadata: dict[str, str] | None = None) -> RecordedCall:
        """A call of one of the toy member's methods."""
        return RecordedCall(ToyMember().methods.by_path[path], metadata=metadata)

    def value(self, name: str, **labels: str) -> float | None:
        """The value of one sample."""
        return samples(self.metrics).get((name, tuple(sorted(labels.items()))))

    def test_counts_are_shown_under_etcds_names(self) -> None:
        """What is added to an attribute is seen at the next scrape."""
        self.metrics.proposals_failed += 2
        self.metrics.leader_changes += 1
        self.metrics.received(100)
        self.metrics.sent(7)
        self.assertEqual(self.value("etcd_server_proposals_failed_total"), 2)
        self.assertEqual(self.value("etcd_server_leader_changes_seen_total"), 1)
        self.assertEqual(self.value("etcd_network_client_grpc_received_bytes_total"), 100)
        self.assertEqual(self.value("etcd_network_client_grpc_sent_bytes_total"), 7)

    def test_what_others_know_is_asked_at_the_scrape(self) -> None:
        """A metric appears once somebody answers for it, and is never out of date."""
        self.assertIsNone(self.value("etcd_server_has_leader"))
        leader = [0]
        self.metrics.read("etcd_server_has_leader", lambda: leader[0])
        self.assertEqual(self.value("etcd_server_has_leader"), 0)
        leader[0] = 1
        self.assertEqual(self.value("etcd_server_has_leader"), 1)
        self.assertRaises(ValueError, self.metrics.read, "etcd_server_no_such_thing", lambda: 0)

    def test_facts_are_labels(self) -> None:
        """The version is in the label, and the metric is absent while there is none."""
        version = [""]
        self.metrics.read_fact("etcd_cluster_version", lambda: version[0])
        self.assertIsNone(self.value("etcd_cluster_version", cluster_version=""))
        version[0] = '3.5"\\\n'
        self.assertEqual(self.value("etcd_cluster_version", cluster_version='3.5"\\\n'), 1)
        self.assertRaises(ValueError, self.metrics.read_fact, "etcd_server_go_version", lambda: "")

    def test_calls_are_counted_by_method_and_status(self) -> None:
        """All methods show from zero with all statuses; unknown ones are not counted."""
        self.metrics.count_calls_of(ToyMember().methods.by_path.values())
        put = {"grpc_method": "Put", "grpc_service": "etcdserverpb.KV", "grpc_type": "unary"}
        self.assertEqual(self.value("grpc_server_started_total", **put), 0)
        self.assertEqual(self.value("grpc_server_handled_total", **put, grpc_code="Unauthenticated"), 0)
        for code in (Code.OK, Code.OK, Code.NOT_FOUND):
            call = self.call("/etcdserverpb.KV/Put")
            self.metrics.started(call)
            self.metrics.handled(call, code)
        other = RecordedCall(replace(call.method, path="/no.Such/Method"))
        self.metrics.started(other)
        self.metrics.handled(other, Code.OK)
        self.assertEqual(self.value("grpc_server_started_total", **put), 3)
        self.assertEqual(self.value("grpc_server_handled_total", **put, grpc_code="OK"), 2)
        self.assertEqual(self.value("grpc_server_handled_total", **put, grpc_code="NotFound"), 1)
        self.assertEqual(self.value("grpc_server_msg_received_total", **put), 3)
        self.assertEqual(self.value("grpc_server_msg_sent_total", **put), 2)

    def test_messages_of_streams_are_counted(self) -> None:
        """A stream's messages count one by one, both ways."""
        self.metrics.count_calls_of(ToyMember().methods.by_path.values())
        call = self.call("/etcdserverpb.Watch/Watch")
        self.metrics.started(call)
        self.metrics.message_received(call)
        for _ in range(3):
            self.metrics.message_sent(call)
        watch = {"grpc_method": "Watch", "grpc_service": "etcdserverpb.Watch", "grpc_type": "bidi_stream"}
        self.assertEqual(self.value("grpc_server_msg_received_total", **watch), 1)
        self.assertEqual(self.value("grpc_server_msg_sent_total", **watch), 3)

    def test_calls_are_counted_by_the_clients_version(self) -> None:
        """Also a client that says nothing counts, and one that makes versions up does not fill the memory."""
        self.metrics.count_calls_of(ToyMember().methods.by_path.values())
        for version in ("3.5", "3.5", *map(str, range(200))):
            self.metrics.started(self.call("/etcdserverpb.KV/Put", {"client-api-version": version}))
        self.metrics.started(self.call("/etcdserverpb.KV/Put"))
        name = "etcd_server_client_requests_total"
        self.assertEqual(self.value(name, type="unary", client_api_version="3.5"), 2)
        self.assertEqual(self.value(name, type="unary", client_api_version="unknown"), 200 - 49 + 1)
        self.assertIsNone(self.value(name, type="unary", client_api_version="199"))

    def test_the_time_of_calls_is_shown_when_asked_for(self) -> None:
        """With a clock each call's time falls into its method's buckets; without one there are none."""
        put = {"grpc_method": "Put", "grpc_service": "etcdserverpb.KV", "grpc_type": "unary"}
        self.metrics.count_calls_of(ToyMember().methods.by_path.values())
        self.assertIsNone(self.value("grpc_server_handling_seconds_count", **put))
        now = [5.0]
        self.metrics = Metrics(clock_s=lambda: now[0])
        self.metrics.count_calls_of(ToyMember().methods.by_path.values())
        call = self.call("/etcdserverpb.KV/Put")
        self.metrics.started(call)
        now[0] = 5.03
        self.metrics.handled(call, Code.OK)
        buckets = [self.value("grpc_server_handling_seconds_bucket", **put, le=le) for le in ("0.025", "0.05")]
        self.assertEqual(buckets, [0, 1])

    def test_distributions_are_cumulative(self) -> None:
        """An observation at the end of a bucket is in it; what is above all is only in the last."""
        for seconds in (0.0005, 0.001, 0.0011, 100.0):
            self.metrics.wal_fsync.observe(seconds)
        name = "etcd_disk_wal_fsync_duration_seconds"
        buckets = [self.value(f"{name}_bucket", le=le) for le in ("0.001", "0.002", "8.192", "+Inf")]
        self.assertEqual(buckets, [2, 3, 3, 4])
        self.assertEqual(self.value(f"{name}_count"), 4)
        self.assertAlmostEqual(self.value(f"{name}_sum") or 0, 100.0026)

    def test_applies_are_told_apart_by_operation(self) -> None:
        """Each operation and outcome has buckets of its own."""
        self.metrics.applied("Put", True, 0.00015)
        labels = {"version": "v3", "op": "Put", "success": "true"}
        self.assertEqual(self.value("etcd_server_apply_duration_seconds_bucket", **labels, le="0.0001"), 0)
        self.assertEqual(self.value("etcd_server_apply_duration_seconds_bucket", **labels, le="0.0002"), 1)

    def test_counters_of_a_program_around_the_member_are_shown_too(self) -> None:
        """The registry can be a given one, and prometheus-client's own counters keep their names in it."""
        registry = CollectorRegistry()
        self.metrics = Metrics(registry)
        Counter("theirs", "of others", registry=registry).inc(3)
        self.assertEqual(self.value("theirs_total"), 3)
        self.assertIn(b"# TYPE theirs_total counter\n", self.metrics.exposition())
        self.assertNotIn(b"_created", self.metrics.exposition())

    def test_two_members_in_one_process_count_apart(self) -> None:
        """There is no global registry."""
        other = Metrics()
        other.proposals_failed += 1
        self.assertEqual(self.value("etcd_server_proposals_failed_total"), 0)

    def test_the_process_is_described(self) -> None:
        """Memory, processor time and file descriptors are there."""
        for name in ("process_resident_memory_bytes", "process_cpu_seconds_total", "os_fd_used", "os_fd_limit"):
            self.assertGreater(self.value(name) or 0, 0, name)

    def test_names_come_sorted_and_once(self) -> None:
        """As Go writes them, each with its type."""
        lines = self.metrics.exposition().decode().splitlines()
        names = [line.split()[2] for line in lines if line.startswith("# TYPE ")]
        self.assertEqual(names, sorted(set(names)))


class DistributionTests(SynchronousTestCase):
    """The histogram by itself."""

    def test_every_observation_falls_into_one_bucket(self) -> None:
        """Below, between, on and above the bounds."""
        from prometheus_client.metrics_core import Metric

        distribution, metric = Distribution((1.0, 2.0)), Metric("m", "", "histogram")
        for value in (0.0, 1.0, 1.5, 2.0, 3.0):
            distribution.observe(value)
        distribution.add_to(metric, {})
        self.assertEqual([sample.value for sample in metric.samples], [2, 4, 5, 7.5, 5])
