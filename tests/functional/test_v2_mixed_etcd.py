"""Keys of the v2 API in a cluster of real etcd members and one of ours: one tree, whoever is asked, whoever leads."""

from __future__ import annotations

import http.client
import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from twisted.trial.unittest import SynchronousTestCase

from tests.functional.cluster import ClusterOfProcesses, until
from tests.functional.processes import MISSING_ETCD, EtcdProcess, ServerProcess, TwistedkvProcess

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
TIMEOUT_S = 20.0


class Said(NamedTuple):
    """An answer."""

    status: int
    index: str
    body: Any


def ask(member: ServerProcess, method: str, key: str, form: str = "") -> Said:
    """One request for a key."""
    connection = http.client.HTTPConnection("127.0.0.1", member.port, timeout=TIMEOUT_S)
    try:
        connection.request(method, f"/v2/keys/{key}", form or None, FORM if form else {})
        answer = connection.getresponse()
        return Said(answer.status, answer.headers["X-Etcd-Index"], json.load(answer))
    finally:
        connection.close()


class MixedTests(SynchronousTestCase):
    """Two members of etcd, and one of ours that joined them."""

    skip = MISSING_ETCD
    timeout = 120

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        options = ("--enable-v2=true",)
        self.cluster = ClusterOfProcesses(Path(directory.name), [EtcdProcess] * 2, options, secure=False)
        self.addCleanup(self.cluster.kill_all)
        self.cluster.start()

    def trees(self) -> set[str]:
        """All keys and the index, as each member has them."""
        return {repr(ask(each, "GET", "?recursive=true&sorted=true")) for each in self.cluster.members}

    def assert_one_tree(self) -> None:
        until("all members have the same tree", lambda: len(self.trees()) == 1)

    def join(self) -> ServerProcess:
        """Add a member of ours."""
        added: list[ServerProcess] = []

        def add() -> bool:
            added.append(self.cluster.add(TwistedkvProcess))
            return True

        until("a member is added", add)  # strict checks refuse it for a few seconds after a start
        added[0].start()
        return added[0]

    def test_one_tree(self) -> None:
        """What any member is asked for is done by all alike, from before ours joined until it leads."""
        cluster = self.cluster
        etcd, other = cluster.members
        ask(etcd, "PUT", "before/ours", "value=%C3%A9%FF%3C")
        ask(etcd, "PUT", "short", "value=1&ttl=1")
        until("a key has expired", lambda: ask(etcd, "GET", "short").status == 404)
        ours = self.join()
        self.assert_one_tree()
        for number, member in enumerate(cluster.members):
            directory = f"d{number}"
            created = ask(member, "POST", directory, f"value={number}")
            self.assertEqual(created.status, 201)
            ask(member, "PUT", f"{directory}/a", "value=x&prevExist=false")
            self.assertEqual(ask(member, "PUT", f"{directory}/a", "value=y&prevValue=x").status, 200)
            self.assertEqual(ask(member, "PUT", f"{directory}/a", "value=y&prevValue=x").status, 412)
            self.assertEqual(ask(member, "PUT", f"{directory}/a/b", "value=y").status, 400)
            ask(member, "PUT", f"{directory}/sub/c", "value=1")
            self.assertEqual(ask(member, "DELETE", f"{directory}/sub?recursive=true").status, 200)
        self.assert_one_tree()
        status = cluster.status(ours)
        cluster.ctl("move-leader", f"{status['header']['member_id']:x}", members=[cluster.leader()])
        until("ours leads", lambda: cluster.leader() is ours)
        made = ask(other, "PUT", "gone", "dir=true&ttl=1")
        seen = ask(etcd, "GET", f"gone?wait=true&waitIndex={int(made.index) + 1}")
        self.assertEqual((seen.status, seen.body["action"]), (200, "expire"))
        self.assert_one_tree()
