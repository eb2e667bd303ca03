"""From etcd to twistedkv without downtime: a live etcd 3.5.1 cluster whose members are replaced one by one."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.functional.cluster import ClusterOfProcesses
from tests.functional.processes import MISSING_ETCD, EtcdProcess, ServerFailed, ServerProcess, TwistedkvProcess
from tests.functional.writing import Writer, missing

PATIENCE_S = 20.0
INTERVAL_S = 0.1


class MigrationTests(SynchronousTestCase):
    """Two members of etcd become three of twistedkv while somebody writes."""

    skip = MISSING_ETCD
    timeout = 180

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.cluster = ClusterOfProcesses(Path(directory.name), [EtcdProcess, EtcdProcess])
        self.addCleanup(self.cluster.kill_all)
        self.gone: list[ServerProcess] = []
        self.bell = threading.Event()

    def until(self, what: str, condition: Callable[[], bool]) -> None:
        """Ask again until it is so: other processes tell nobody."""
        deadline = time.monotonic() + PATIENCE_S
        problem: object = "it is not so"
        while time.monotonic() < deadline:
            try:
                if condition():
                    return
            except ServerFailed as error:
                problem = error
            self.bell.wait(INTERVAL_S)  # which nobody rings: a pause between two questions
        self.fail(f"{what}: {problem}")

    def serving(self) -> list[ServerProcess]:
        """Members that take writes."""
        return [each for each in self.cluster.members if each.running and each not in self.gone]

    def id_of(self, member: ServerProcess) -> int:
        found: int = self.cluster.status(member)["header"]["member_id"]
        return found

    def join(self) -> ServerProcess:
        """Add a twistedkv member and wait until it serves."""

        def added() -> bool:
            nonlocal member
            member = self.cluster.add(TwistedkvProcess)
            return True

        member: ServerProcess | None = None
        self.until("a member is added", added)  # strict checks refuse it for a few seconds after the last change
        assert member is not None
        member.start()
        return member

    def replace(self, old: ServerProcess) -> None:
        """Take a member out of the cluster and off the machine."""
        self.gone.append(old)
        identity = f"{self.id_of(old):x}"

        def removed() -> bool:
            self.cluster.ctl("member", "remove", identity, members=self.serving())
            return True

        self.until("a member is removed", removed)
        old.kill9()

    def test_members_are_replaced_one_by_one(self) -> None:
        """Nothing acknowledged is lost on the way, and all have the same at the end."""
        cluster = self.cluster
        cluster.start()
        first, second = cluster.members
        cluster.ctl("put", "before", "everything")
        writer = Writer(self.serving, b"w")
        writer.start()
        ours = self.join()
        self.assertEqual(cluster.ctl("get", "before", "--print-value-only", members=[ours]), "everything\n")
        cluster.ctl("put", "through", "ours", members=[ours])  # forwarded to etcd's leader
        self.assertEqual(cluster.ctl("get", "through", "--print-value-only", members=[first]), "ours\n")
        self.until("three members hash alike", lambda: len(cluster.hashes()) == 1)

        cluster.ctl("move-leader", f"{self.id_of(ours):x}", members=[cluster.leader()])
        self.until("ours leads", lambda: cluster.leader() is ours)
        cluster.ctl("put", "under", "our lead", members=[second])
        self.assertEqual(cluster.ctl("get", "under", "--print-value-only", members=[first]), "our lead\n")

        self.replace(first)
        self.join()
        self.replace(second)
        self.join()
        writer.finish()
        members = self.serving()
        self.assertEqual({type(each) for each in members}, {TwistedkvProcess})
        self.assertEqual(len(cluster.ctl_json("member", "list", members=members)["members"]), 3)
        self.assertGreater(len(writer.acknowledged), 50)
        for member in members:
            self.assertEqual(missing([writer], member, b"w"), [])
        self.until("all hash alike", lambda: len(cluster.hashes(members)) == 1)
