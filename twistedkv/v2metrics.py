"""What the v2 store counts, under etcd's metric names.

Source: etcd ``server/etcdserver/api/v2store/metrics.go``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from twistedkv.v2events import Counters
from twistedkv.v2watch import V2Hub

_PREFIX = "etcd_debugging_store_"
_WRITES = {  # etcd's word for it in these metrics: the beginning of the counters' names
    "create": "create",
    "set": "sets",
    "update": "update",
    "compareAndSwap": "compareAndSwap",
    "delete": "delete",
    "compareAndDelete": "compareAndDelete",
}


class V2Metrics(Collector):
    """The counts of one member.

    Args:
        counters: of requests.
        hub: of its watchers.
    """

    def __init__(self, counters: Counters, hub: V2Hub) -> None:
        self._counters = counters
        self._hub = hub

    def collect(self) -> Iterator[Metric]:
        """Everything as prometheus-client's metrics, under etcd's exact names; kinds that never came are left out."""
        counters, counts = self._counters, self._counters.counts
        good, bad = counters.recursive_gets_succeeded, counters.recursive_gets_failed
        yield _by_action("reads_total", "Reads.", {"get": counts["getsSuccess"] - good, "getRecursive": good})
        yield _by_action("reads_failed_total", "Reads refused.", {"get": counts["getsFail"] - bad, "getRecursive": bad})
        writes = {action: counts[f"{kind}Success"] for action, kind in _WRITES.items()}
        yield _by_action("writes_total", "Changes.", writes)
        refused = {action: counts[f"{kind}Fail"] for action, kind in _WRITES.items()}
        yield _by_action("writes_failed_total", "Changes refused.", refused)
        for name, kind, text, value in (
            ("expires_total", "counter", "Nodes whose time was over.", counts["expireCount"]),
            ("watch_requests_total", "counter", "Watchers so far.", self._hub.requests),
            ("watchers", "gauge", "Watchers that wait.", self._hub.count),
        ):
            metric = Metric(_PREFIX + name, text, kind)
            metric.add_sample(metric.name, {}, value)
            yield metric


def _by_action(name: str, text: str, values: Mapping[str, int]) -> Metric:
    metric = Metric(_PREFIX + name, text, "counter")
    for action, value in values.items():
        if value:
            metric.add_sample(metric.name, {"action": action}, value)
    return metric
