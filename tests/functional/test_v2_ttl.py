"""Keys of the v2 API go when their time is over: not before, within a second after, whatever happens to the members."""

from __future__ import annotations

import calendar
import http.client
import json
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.functional.cluster import ClusterOfProcesses, until
from tests.functional.processes import MISSING_ETCD, ServerProcess, TwistedkvProcess

LATEST_S = 1.0  # after the due time
PATIENCE_S = 20.0
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def now_s() -> float:
    """Unix seconds."""
    return datetime.now(UTC).timestamp()


def due_s(node: dict[str, Any]) -> float:
    """When a node is to go, in Unix seconds."""
    moment, _, fraction = node["expiration"].rstrip("Z").partition(".")
    return calendar.timegm(time.strptime(moment, "%Y-%m-%dT%H:%M:%S")) + float(f"0.{fraction or 0}")


def put(member: ServerProcess, key: str, form: str) -> dict[str, Any]:
    """Set a key, and return its node."""
    connection = http.client.HTTPConnection("127.0.0.1", member.port, timeout=PATIENCE_S)
    try:
        connection.request("PUT", f"/v2/keys/{key}", form, FORM)
        answer = json.load(connection.getresponse())
        return dict(answer["node"])
    finally:
        connection.close()


class Expiries:
    """Watches the whole tree of one member from an index on, and notes when each key went."""

    def __init__(self, member: ServerProcess, since: int) -> None:
        self.seen: dict[str, float] = {}  # Unix seconds by key
        self._connection = http.client.HTTPConnection("127.0.0.1", member.port, timeout=PATIENCE_S)
        self._connection.request("GET", f"/v2/keys/?wait=true&recursive=true&stream=true&waitIndex={since}")
        self._response = self._connection.getresponse()

    def wait_for(self, keys: set[str]) -> None:
        """Read until all of them have gone."""
        while not keys <= self.seen.keys():
            event = json.loads(self._response.readline())
            if event["action"] == "expire":
                self.seen[event["node"]["key"]] = now_s()

    def close(self) -> None:
        """Watch no more."""
        self._connection.close()


class TimeToLiveTests(SynchronousTestCase):
    """One member, and three."""

    skip = MISSING_ETCD
    timeout = 120

    def start(self, count: int) -> ClusterOfProcesses:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        options = ("--heartbeat-interval", "100", "--election-timeout", "1000")
        cluster = ClusterOfProcesses(Path(directory.name), [TwistedkvProcess] * count, options, secure=False)
        self.addCleanup(cluster.kill_all)
        cluster.start()
        return cluster

    def assert_in_time(
        self, member: ServerProcess, nodes: dict[str, dict[str, Any]], since: int, served_s: float = 0.0
    ) -> None:
        """All of these go within their second, or the one after the members serve again, as a client sees it."""
        expiries = Expiries(member, since)
        self.addCleanup(expiries.close)
        expiries.wait_for(nodes.keys())
        for key, node in nodes.items():
            self.assertGreaterEqual(expiries.seen[key], due_s(node), key)
            self.assertLessEqual(expiries.seen[key], max(due_s(node), served_s) + LATEST_S, key)

    def test_across_restarts(self) -> None:
        """Files and directories go in time, also those whose member was killed or stopped while they waited."""
        (member,) = self.start(1).members
        first = {"/a": put(member, "a", "value=1&ttl=1"), "/d": put(member, "d", "dir=true&ttl=1")}
        since = first["/a"]["modifiedIndex"]
        self.assert_in_time(member, first, since)
        later = {"/b": put(member, "b", "value=1&ttl=4")}
        member.kill9()
        member.start()
        later["/c"] = put(member, "c", "value=1&ttl=4")
        put(member, "kept", "value=1&ttl=100")
        member.restart()
        self.assert_in_time(member, later, since, now_s())
        connection = http.client.HTTPConnection("127.0.0.1", member.port, timeout=PATIENCE_S)
        self.addCleanup(connection.close)
        connection.request("GET", "/v2/keys/?recursive=true")
        left = json.load(connection.getresponse())["node"]["nodes"]
        self.assertEqual([node["key"] for node in left], ["/kept"])

    def test_across_a_change_of_the_leader(self) -> None:
        """Keys go in time when another member leads by then, as clients of a member see it that never led."""
        cluster = self.start(3)
        leader = cluster.leader()
        nodes = {f"/k{ttl}": put(leader, f"k{ttl}", f"value=1&ttl={ttl}") for ttl in (4, 5)}
        leader.kill9()
        until("another member leads", lambda: cluster.leader() is not leader)
        led_s = now_s()
        follower = next(each for each in cluster.members if each.running and each is not cluster.leader())
        self.assert_in_time(follower, nodes, nodes["/k4"]["modifiedIndex"], led_s)
