"""What goes between members, counted."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from twistedkv.metrics import Metrics
from twistedkv.peermetrics import PeerMetrics
from twistedkv.protocols.msgappv2 import StreamKind
from twistedkv.protocols.receiver import PeerObserver

ME, B, C = 0x2C5B70912B585603, 0x2EF4B9B31BB0E971, 0x43A7984406F4E9F

_TRIP_BOUNDS = (
    "0.0001 0.0002 0.0004 0.0008 0.0016 0.0032 0.0064 0.0128 0.0256 0.0512 0.1024 0.2048 0.4096 0.8192 1.6384 3.2768"
)
_SNAPSHOT_BOUNDS = "0.1 0.2 0.4 0.8 1.6 3.2 6.4 12.8 25.6 51.2"
# As two members of a real etcd 3.5.1 show them, one of which was sent a snapshot and then killed: type, labels, bounds.
# The two of failures to receive were not provoked; their names are in the binary.
OF_ETCD = {
    "etcd_network_active_peers": ("gauge", {"Local", "Remote"}, ""),
    "etcd_network_disconnected_peers_total": ("counter", {"Local", "Remote"}, ""),
    "etcd_network_peer_received_bytes_total": ("counter", {"From"}, ""),
    "etcd_network_peer_received_failures_total": ("counter", {"From"}, ""),
    "etcd_network_peer_round_trip_time_seconds": ("histogram", {"To"}, _TRIP_BOUNDS),
    "etcd_network_peer_sent_bytes_total": ("counter", {"To"}, ""),
    "etcd_network_peer_sent_failures_total": ("counter", {"To"}, ""),
    "etcd_network_snapshot_receive_failures": ("counter", {"From"}, ""),
    "etcd_network_snapshot_receive_inflights_total": ("gauge", {"From"}, ""),
    "etcd_network_snapshot_receive_success": ("counter", {"From"}, ""),
    "etcd_network_snapshot_receive_total_duration_seconds": ("histogram", {"From"}, _SNAPSHOT_BOUNDS),
    "etcd_network_snapshot_send_failures": ("counter", {"To"}, ""),
    "etcd_network_snapshot_send_inflights_total": ("gauge", {"To"}, ""),
    "etcd_network_snapshot_send_success": ("counter", {"To"}, ""),
    "etcd_network_snapshot_send_total_duration_seconds": ("histogram", {"To"}, _SNAPSHOT_BOUNDS),
}


class PeerMetricsTests(SynchronousTestCase):
    """One member's peers."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.peers = PeerMetrics(ME, self.clock.seconds)
        self.metrics = Metrics()
        self.metrics.include(self.peers)

    def value(self, name: str, **labels: str) -> float | None:
        """The value of one sample."""
        families = text_string_to_metric_families(self.metrics.exposition().decode())
        for sample in (sample for family in families for sample in family.samples):
            if sample.labels == labels and sample.name.removesuffix("_total") == f"etcd_network_{name}".removesuffix(
                "_total"
            ):
                return sample.value
        return None

    def test_names_types_labels_and_buckets_are_etcds(self) -> None:
        """A dashboard finds what it looks for."""
        observer: PeerObserver = self.peers
        observer.sent_bytes(B, 1)
        observer.received_bytes(B, 1)
        observer.send_failed(B)
        observer.receive_failed(B)
        observer.stream_active(B, StreamKind.APPENDS, True)
        observer.stream_active(B, StreamKind.APPENDS, False)
        observer.round_trip(B, 0.001, 0.0)
        for ok in (True, False):
            self.peers.snapshot_sending(B)
            self.peers.snapshot_sent(B, ok)
            self.peers.snapshot_receiving(B)
            self.peers.snapshot_received(B, ok)
        text = self.metrics.exposition().decode()
        types = dict(line.split()[2:4] for line in text.splitlines() if line.startswith("# TYPE "))
        found = {}
        for family in text_string_to_metric_families(text):
            name = family.name if family.name in types else f"{family.name}_total"
            if name in OF_ETCD:
                labels = {label for sample in family.samples for label in sample.labels} - {"le"}
                bounds = [sample.labels["le"] for sample in family.samples if "le" in sample.labels]
                found[name] = (types[name], labels, " ".join(bounds).removesuffix(" +Inf"))
        self.assertEqual(found, OF_ETCD)

    def test_nothing_is_shown_of_who_was_never_met(self) -> None:
        """A member without peers has no such series, as etcd's."""
        names = {family.name for family in text_string_to_metric_families(self.metrics.exposition().decode())}
        self.assertEqual({name for name in OF_ETCD if name in names or name.removesuffix("_total") in names}, set())

    def test_bytes_and_failures_are_told_apart_by_peer(self) -> None:
        """Ids are hexadecimal without padding."""
        for member_id, count in ((B, 100), (C, 7), (B, 20)):
            self.peers.sent_bytes(member_id, count)
            self.peers.received_bytes(member_id, 2 * count)
        self.peers.send_failed(B)
        self.peers.receive_failed(C)
        self.assertEqual(self.value("peer_sent_bytes_total", To="2ef4b9b31bb0e971"), 120)
        self.assertEqual(self.value("peer_received_bytes_total", From="43a7984406f4e9f"), 14)
        self.assertEqual(self.value("peer_sent_failures_total", To=f"{B:x}"), 1)
        self.assertIsNone(self.value("peer_sent_failures_total", To=f"{C:x}"))
        self.assertEqual(self.value("peer_received_failures_total", From=f"{C:x}"), 1)

    def test_appends_make_figures_of_their_own(self) -> None:
        """Those of a write on their stream count as bytes as well; those sent by another way were counted before."""
        self.peers.appends_written(B, 300, 3, 0.003)
        self.peers.appends_sent(C, 50, 1)
        self.peers.append_posted(C, 0.5)
        self.peers.append_lost(C)
        self.peers.appends_received(B, 70, 2)
        self.assertEqual(self.value("peer_sent_bytes_total", To=f"{B:x}"), 300)
        self.assertIsNone(self.value("peer_sent_bytes_total", To=f"{C:x}"))
        stats = self.peers.stats
        self.assertEqual((stats.sent.count, stats.received.count), (4, 2))
        figures = {each: (stats.followers[each].succeeded, stats.followers[each].failed) for each in (B, C)}
        self.assertEqual(figures, {B: (3, 0), C: (1, 1)})
        self.assertEqual([stats.followers[each].latency().current for each in (B, C)], [1.0, 500.0])

    def test_a_peer_is_connected_while_one_stream_is(self) -> None:
        """It is lost with the last one, and a stream that never began is no loss."""
        labels = {"Local": f"{ME:x}", "Remote": f"{B:x}"}
        seen = []
        for kind, active in (
            (StreamKind.APPENDS, False),
            (StreamKind.APPENDS, True),
            (StreamKind.MESSAGES, True),
            (StreamKind.APPENDS, False),
            (StreamKind.MESSAGES, False),
            (StreamKind.MESSAGES, False),
            (StreamKind.MESSAGES, True),
        ):
            self.peers.stream_active(B, kind, active)
            seen.append((self.value("active_peers", **labels), self.value("disconnected_peers_total", **labels)))
        self.assertEqual(seen, [(0, None), (1, None), (1, None), (1, None), (0, 1), (0, 1), (1, 1)])

    def test_snapshots(self) -> None:
        """How many are on their way, arrived and failed, and how long those took that arrived."""
        self.peers.snapshot_sending(B)
        self.clock.advance(0.3)
        self.peers.snapshot_sending(B)
        self.assertEqual(self.value("snapshot_send_inflights_total", To=f"{B:x}"), 2)
        self.clock.advance(0.3)
        self.peers.snapshot_sent(B, True)
        self.peers.snapshot_sent(B, False)
        self.peers.snapshot_sent(B, False)  # without having begun
        to = {"To": f"{B:x}"}
        self.assertEqual(self.value("snapshot_send_inflights_total", **to), 0)
        self.assertEqual(
            (self.value("snapshot_send_success", **to), self.value("snapshot_send_failures", **to)), (1, 2)
        )
        buckets = [self.value("snapshot_send_total_duration_seconds_bucket", le=le, **to) for le in ("0.4", "0.8")]
        self.assertEqual(buckets, [0, 1])
        self.assertIsNone(self.value("snapshot_receive_success", From=f"{B:x}"))
