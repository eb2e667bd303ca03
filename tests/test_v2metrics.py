"""What the v2 store counts, as Prometheus sees it."""

from __future__ import annotations

import contextlib  # the name suppress means something to trial

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from twisted.trial.unittest import SynchronousTestCase

from twistedkv.storage.directory import Directory
from twistedkv.v2errors import V2Error
from twistedkv.v2events import Event
from twistedkv.v2metrics import V2Metrics
from twistedkv.v2watch import V2Hub


class Deaf:
    """A watcher."""

    def happened(self, event: Event) -> None:
        pass

    def lost(self) -> None:
        pass


class V2MetricsTests(SynchronousTestCase):
    """The text of a scrape."""

    def test_names_and_values(self) -> None:
        """Reads and writes are told apart as etcd does it; what never came is not shown."""
        hub = V2Hub()
        directory = Directory(hub)
        directory.set("/1/k", False, "v", 10**18)
        directory.get("/1", True)
        directory.get("/1")
        with contextlib.suppress(V2Error):
            directory.get("/1/none", True)
        with contextlib.suppress(V2Error):
            directory.create("/1/k", False, "v")
        directory.expire(10**18)
        hub.watch("/1/k", False, False, 0, directory.index, Deaf())
        registry = CollectorRegistry()
        registry.register(V2Metrics(directory.counters, hub))
        lines = [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]
        self.assertEqual(
            lines,
            [
                'etcd_debugging_store_reads_total{action="get"} 1.0',
                'etcd_debugging_store_reads_total{action="getRecursive"} 1.0',
                'etcd_debugging_store_reads_failed_total{action="getRecursive"} 1.0',
                'etcd_debugging_store_writes_total{action="set"} 1.0',
                'etcd_debugging_store_writes_failed_total{action="create"} 1.0',
                "etcd_debugging_store_expires_total 1.0",
                "etcd_debugging_store_watch_requests_total 1.0",
                "etcd_debugging_store_watchers 1.0",
            ],
        )
