"""What goes between this member and its peers, counted under etcd's metric names.

A series appears with the first thing that it counts, as in etcd, and stays when its peer is gone, since a counter must
not begin again. Counting is a dictionary entry, because the bytes of every write and every read are counted.

Names, types and buckets: etcd 3.5 ``etcdserver/api/rafthttp/metrics.go``. etcd notes the mean round trip every 30 s,
for each of two connections; here it is each one that is measured, every 4 s.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from twistedkv.metrics import Distribution
from twistedkv.peerstats import PeerStats
from twistedkv.protocols.msgappv2 import StreamKind

ROUND_TRIP_SECONDS: Final = tuple(0.0001 * 2**n for n in range(16))
SNAPSHOT_SECONDS: Final = tuple(0.1 * 2**n for n in range(10))


class PeerMetrics(Collector):
    """The counts of one member; a :class:`twistedkv.protocols.receiver.PeerObserver`, and a collector.

    Args:
        me: this member's id.
        clock_s: monotonic; by which the time that snapshots and appends take is measured.
    """

    def __init__(self, me: int, clock_s: Callable[[], float]) -> None:
        self.clock_s = clock_s
        self.stats = PeerStats(clock_s)
        self._me = me
        self._sent_bytes: dict[int, int] = defaultdict(int)  # a third of a Counter's time
        self._received_bytes: dict[int, int] = defaultdict(int)
        self._send_failures: Counter[int] = Counter()
        self._receive_failures: Counter[int] = Counter()
        self._disconnected: Counter[int] = Counter()
        self._streams: dict[int, set[StreamKind]] = {}  # that are read from each peer
        self._round_trips: dict[int, Distribution] = {}
        self._sending = _Snapshots(clock_s)
        self._receiving = _Snapshots(clock_s)

    # --- see PeerObserver ----------------------------------------------------------------------------

    def sent_bytes(self, member_id: int, count: int) -> None:
        """So many bytes of messages were handed to a connection."""
        self._sent_bytes[member_id] += count

    def received_bytes(self, member_id: int, count: int) -> None:
        """So many bytes of messages came."""
        self._received_bytes[member_id] += count

    def appends_written(self, member_id: int, size: int, count: int, seconds: float) -> None:
        """So many appends went onto their stream."""
        self._sent_bytes[member_id] += size
        self.stats.sent.note(count, size)
        self.stats.followers[member_id].success(count, seconds)

    def appends_sent(self, member_id: int, size: int, count: int) -> None:
        """So many appends go another way."""
        self.stats.sent.note(count, size)

    def append_posted(self, member_id: int, seconds: float) -> None:
        """A posted append was taken."""
        self.stats.followers[member_id].success(1, seconds)

    def append_lost(self, member_id: int) -> None:
        """A posted append was not."""
        self.stats.followers[member_id].failed += 1

    def appends_received(self, member_id: int, size: int, count: int) -> None:
        """So many appends came."""
        self.stats.received.note(count, size)

    def send_failed(self, member_id: int) -> None:
        """A message was dropped."""
        self._send_failures[member_id] += 1

    def receive_failed(self, member_id: int) -> None:
        """What came was malformed or not for us."""
        self._receive_failures[member_id] += 1

    def stream_active(self, member_id: int, kind: StreamKind, active: bool) -> None:
        """A stream from this member began or ended. A peer without any is disconnected."""
        streams = self._streams.setdefault(member_id, set())
        if active:
            streams.add(kind)
        elif kind in streams:
            streams.remove(kind)
            if not streams:
                self._disconnected[member_id] += 1

    def round_trip(self, member_id: int, rtt_s: float, drift_s: float) -> None:
        """How long a question and its answer took; clocks that differ are logged, not counted."""
        distribution = self._round_trips.get(member_id)
        if distribution is None:
            distribution = self._round_trips[member_id] = Distribution(ROUND_TRIP_SECONDS)
        distribution.observe(rtt_s)

    def snapshot_sending(self, member_id: int) -> None:
        """A snapshot for this member is on its way."""
        self._sending.begin(member_id)

    def snapshot_sent(self, member_id: int, ok: bool) -> None:
        """It is there, or is not."""
        self._sending.end(member_id, ok)

    def snapshot_receiving(self, member_id: int) -> None:
        """A snapshot from this member begins to arrive."""
        self._receiving.begin(member_id)

    def snapshot_received(self, member_id: int, ok: bool) -> None:
        """It is saved, or is not."""
        self._receiving.end(member_id, ok)

    # --- the scrape ------------------------------------------------------------------------------------

    def collect(self) -> Iterator[Metric]:
        """Everything as prometheus-client's metrics, each with etcd's exact name."""
        network = "etcd_network_"
        for name, label, text, counts in (
            ("peer_sent_bytes_total", "To", "Bytes sent to peers.", self._sent_bytes),
            ("peer_received_bytes_total", "From", "Bytes received from peers.", self._received_bytes),
            ("peer_sent_failures_total", "To", "Messages that did not reach a peer.", self._send_failures),
            (
                "peer_received_failures_total",
                "From",
                "Messages of peers that could not be taken.",
                self._receive_failures,
            ),
        ):
            yield _labelled(network + name, "counter", text, label, counts)
        yield from self._collect_connections()
        trips = Metric(f"{network}peer_round_trip_time_seconds", "Time from a question to its answer.", "histogram")
        for member_id, distribution in self._round_trips.items():
            distribution.add_to(trips, {"To": f"{member_id:x}"})
        yield trips
        yield from self._sending.collect(f"{network}snapshot_send_", "To", "sent to a peer")
        yield from self._receiving.collect(f"{network}snapshot_receive_", "From", "received from a peer")

    def _collect_connections(self) -> Iterator[Metric]:
        active = Metric("etcd_network_active_peers", "1 if this peer is connected.", "gauge")
        lost = Metric("etcd_network_disconnected_peers_total", "Connections to peers lost.", "counter")
        local = f"{self._me:x}"
        for member_id, streams in self._streams.items():
            active.add_sample(active.name, {"Local": local, "Remote": f"{member_id:x}"}, int(bool(streams)))
        for member_id, count in self._disconnected.items():
            lost.add_sample(lost.name, {"Local": local, "Remote": f"{member_id:x}"}, count)
        yield from (active, lost)


class _Snapshots:
    """Snapshots that go one way."""

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self._began_s: dict[int, list[float]] = {}  # of those on their way
        self._done: Counter[int] = Counter()
        self._failed: Counter[int] = Counter()
        self._seconds: dict[int, Distribution] = {}

    def begin(self, member_id: int) -> None:
        """One is on its way."""
        self._began_s.setdefault(member_id, []).append(self._clock_s())

    def end(self, member_id: int, ok: bool) -> None:
        """The oldest one has arrived, or will not."""
        began_s = self._began_s.get(member_id)
        seconds = self._clock_s() - began_s.pop(0) if began_s else 0.0
        if not ok:  # maybe it could not even begin
            self._failed[member_id] += 1
            return
        self._done[member_id] += 1
        if member_id not in self._seconds:
            self._seconds[member_id] = Distribution(SNAPSHOT_SECONDS)
        self._seconds[member_id].observe(seconds)

    def collect(self, beginning: str, label: str, what: str) -> Iterator[Metric]:
        """The four metrics.

        Args:
            beginning: of their names.
            label: names the peer.
            what: happened to the snapshots.
        """
        inflight = {member_id: len(began_s) for member_id, began_s in self._began_s.items()}
        yield _labelled(f"{beginning}inflights_total", "gauge", f"Snapshots being {what}.", label, inflight)
        yield _labelled(f"{beginning}success", "counter", f"Snapshots {what}.", label, self._done)
        yield _labelled(f"{beginning}failures", "counter", f"Snapshots that could not be {what}.", label, self._failed)
        seconds = Metric(f"{beginning}total_duration_seconds", f"Time for a snapshot to be {what}.", "histogram")
        for member_id, distribution in self._seconds.items():
            distribution.add_to(seconds, {label: f"{member_id:x}"})
        yield seconds


def _labelled(name: str, kind: str, text: str, label: str, values: Mapping[int, int]) -> Metric:
    metric = Metric(name, text, kind)
    for member_id, value in values.items():
        metric.add_sample(name, {label: f"{member_id:x}"}, value)
    return metric
