"""Clusters as their operators see them: members are lost and come back, join and leave, and are asked how they are.

Each test is one cluster's story, since its start is what costs most. Others have what is the same in etcd and here
(``test_membership_etcd``, ``test_migration_etcd``), and what befalls a cluster under load (``test_chaos``).
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from google.protobuf.message import Message
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.functional.clients import GrpcClient, Reply
from tests.functional.cluster import ClusterOfProcesses, start_together, until
from tests.functional.processes import MISSING_ETCD, ServerFailed, ServerProcess, TLSFiles, TwistedkvProcess
from tests.functional.tcpproxy import Network
from tests.functional.writing import Writer, missing
from twistedkv.pb import rpc_pb2 as pb

QUICK = ("--heartbeat-interval", "50", "--election-timeout", "500")
"""Where the defaults are not what is examined."""

SHORT_LOG = ("--snapshot-count", "200", "--snapshot-catchup-entries", "50")
UNAVAILABLE = 14
REMOVED = "the member has been permanently removed from the cluster"
_REQUEST_TIMEOUT_S = 5.0 + 2 * 0.5  # etcd's: 5 s and two election timeouts
_IDLE_SHARE = 0.02  # of a core
_IDLE_S = 5.0


class ClusterCase(SynchronousTestCase):
    """Makes clusters that end with the test."""

    skip = MISSING_ETCD  # etcdctl is from there

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)

    def cluster_of(
        self, count: int, *options: str, name: str = "cluster", tls: TLSFiles | None = None
    ) -> ClusterOfProcesses:
        """A cluster that is not started yet."""
        kinds = [TwistedkvProcess] * count
        cluster = ClusterOfProcesses(self.directory / name, kinds, (*QUICK, *options), tls=tls)
        self.addCleanup(cluster.kill_all)
        return cluster

    def ask(self, member: ServerProcess, request: Message) -> Reply:
        """One answer over a connection of its own."""
        client = GrpcClient(member)
        try:
            return client.call(request)
        finally:
            client.close()

    def value_at(self, member: ServerProcess, key: str) -> str:
        """What a linearizable read of one member gives."""
        return self.cluster.ctl("get", key, "--print-value-only", members=[member]).rstrip("\n")

    def put_at(self, member: ServerProcess, key: str, value: str) -> None:
        """Put until it is acknowledged: what was on its way to a leader that died is not."""
        self.eventually(f"{key} is put", lambda: self.cluster.ctl("put", key, value, members=[member]))

    def put_many(self, member: ServerProcess) -> None:
        """Put many/0 to many/299, which is more than SHORT_LOG keeps."""
        client = GrpcClient(member)
        self.addCleanup(client.close)
        for number in range(300):
            self.assertEqual(client.call(pb.PutRequest(key=b"many/%d" % number, value=b"v")).code, 0)

    def eventually(self, what: str, command: Callable[[], object]) -> None:
        """Give a command again and again until it is not refused: the moment has to be right for it."""

        def done() -> bool:
            command()
            return True

        until(what, done)

    cluster: ClusterOfProcesses


class LossTests(ClusterCase):
    def test_any_one_may_be_lost(self) -> None:
        """Whoever is killed, the others read and write on; it has everything when it is back, by log or by snapshot."""
        cluster = self.cluster = self.cluster_of(3, *SHORT_LOG)
        cluster.start()
        behind, other = cluster.members[:2]
        logged = behind.log_bytes
        behind.kill9()
        self.put_at(other, "without it", "v")
        self.put_many(other)
        behind.start()
        self.assertEqual(self.value_at(behind, "many/299"), "v")
        self.assertIn("installed the snapshot at index", behind.log_since(logged))
        cluster.wait_until_equal()

        writer = Writer(lambda: [each for each in cluster.members if each.running], b"w")
        writer.start()
        for victim in cluster.members:
            others = [each for each in cluster.members if each is not victim]
            victim.kill9()
            for other in others:
                self.put_at(other, f"without {victim.name}", f"by {other.name}")
                self.assertEqual(self.value_at(other, f"without {victim.name}"), f"by {other.name}")
            victim.start()
            self.assertEqual(self.value_at(victim, f"without {victim.name}"), f"by {others[-1].name}")
        writer.finish()
        cluster.wait_until_equal()
        for member in cluster.members:
            self.assertEqual(missing([writer], member, b"w"), [])

    def test_quorum_is_lost_and_everybody_stops(self) -> None:
        """Without a quorum nothing is promised and old values are there; after any stop of all, all is there again."""
        cluster = self.cluster = self.cluster_of(3)
        cluster.start()
        cluster.ctl("put", "k", "v")
        alone, *others = cluster.members
        self.assertEqual(self.value_at(alone, "k"), "v")
        for other in others:
            other.kill9()
        self.without_quorum(alone)
        start_together(others)
        cluster.ctl("put", "k", "after", members=others)
        self.assertEqual(self.value_at(alone, "k"), "after")

        with ThreadPoolExecutor() as threads:  # all at once
            self.assertEqual(list(threads.map(lambda each: each.stop(), cluster.members)), [0, 0, 0])
        cluster.start()
        cluster.ctl("put", "k2", "after a stop", members=[alone])
        cluster.kill_all()
        cluster.start()
        for member in cluster.members:
            self.assertEqual(self.value_at(member, "k"), "after")
            self.assertEqual(self.value_at(member, "k2"), "after a stop")
        cluster.wait_until_equal()

    def without_quorum(self, alone: ServerProcess) -> None:
        """etcd's texts and times (semantics of 3.5.1, requests without a leader)."""

        def timed(request: Message) -> tuple[Reply, float]:
            began_s = time.monotonic()
            return self.ask(alone, request), time.monotonic() - began_s

        waiting = (
            pb.RangeRequest(key=b"k"),
            pb.PutRequest(key=b"k", value=b"w"),
            pb.DeleteRangeRequest(key=b"k"),
            pb.CompactionRequest(revision=1),
            pb.LeaseGrantRequest(TTL=60),
        )
        with ThreadPoolExecutor() as threads:
            refused = threads.map(timed, waiting)
            reply, took_s = timed(pb.RangeRequest(key=b"k", serializable=True))
            assert isinstance(reply.message, pb.RangeResponse), reply
            self.assertEqual([kv.value for kv in reply.message.kvs], [b"v"])
            self.assertLess(took_s, 1.0)
            for request, (reply, took_s) in zip(waiting, refused, strict=True):
                text = "etcdserver: request timed out"
                self.assertEqual((reply.code, reply.text), (UNAVAILABLE, text), type(request))
                self.assertTrue(_REQUEST_TIMEOUT_S - 0.5 < took_s < _REQUEST_TIMEOUT_S + 2.0, took_s)
        self.assertEqual(self.cluster.status(alone)["errors"], ["etcdserver: no leader"])
        with self.assertRaisesRegex(ServerFailed, "unhealthy cluster"):
            self.cluster.ctl("endpoint", "health", members=[alone])

    def test_one_of_three_goes_on_alone(self) -> None:
        """--force-new-cluster keeps every acknowledged write of a leader that was killed while it wrote, serves alone,
        and another member can be added."""
        cluster = self.cluster = self.cluster_of(3)
        cluster.start()
        last = cluster.leader()
        writers = [Writer(lambda: [last], b"w%d" % number) for number in range(3)]
        for writer in writers:
            writer.start()
        until("they write", lambda: all(len(writer.acknowledged) > 50 for writer in writers))
        for other in cluster.members:
            if other is not last:
                other.kill9()
        last.kill9()  # with entries in its log of which nobody knows whether they are committed
        last.options = (*last.options, "--force-new-cluster")
        last.start()
        for writer in writers:
            writer.finish()
        self.assertEqual(missing(writers, last, b"w"), [])
        self.assertEqual([each["name"] for each in self.members_of(last)], [last.name])
        added = cluster.add(TwistedkvProcess)
        added.start()
        cluster.ctl("put", "k", "v", members=[added])
        self.assertEqual(self.value_at(last, "k"), "v")
        self.assertEqual(missing(writers, added, b"w"), [])
        cluster.wait_until_equal([last, added])

    def members_of(self, member: ServerProcess) -> Sequence[dict[str, object]]:
        """``member list`` as one member gives it."""
        found: Sequence[dict[str, object]] = self.cluster.ctl_json("member", "list", members=[member])["members"]
        return found


class OperationTests(ClusterCase):
    def test_etcdctl_knows_the_whole_cluster(self) -> None:
        """move-leader, status, health, hashes and the list of members through any one of them; and a new peer URL."""
        network = Network()
        self.addCleanup(network.close)
        cluster = self.cluster = self.cluster_of(3)
        cluster.start()
        ids = {each: cluster.id_of(each) for each in cluster.members}
        leader = cluster.leader()
        for target in (*(each for each in cluster.members if each is not leader), leader):
            said = cluster.ctl("move-leader", f"{ids[target]:x}")
            self.assertEqual(said, f"Leadership transferred from {ids[leader]:x} to {ids[target]:x}\n")
            self.assertIs(cluster.leader(), target)
            leader = target

        asked = [cluster.members[1]]
        cluster.wait_until_equal()
        statuses = cluster.ctl_json("endpoint", "status", "--cluster", members=asked)
        self.assertEqual({each["Status"]["header"]["member_id"] for each in statuses}, set(ids.values()))
        self.assertEqual({each["Status"]["leader"] for each in statuses}, {ids[leader]})
        self.assertEqual(len({each["Status"]["raftIndex"] for each in statuses}), 1)
        self.assertTrue(all("errors" not in each["Status"] for each in statuses), statuses)
        hashes = cluster.ctl_json("endpoint", "hashkv", "--cluster", members=asked)
        self.assertEqual(len({each["HashKV"]["hash"] for each in hashes}), 1)
        self.assertEqual({each["Endpoint"] for each in hashes}, {each.endpoint for each in cluster.members})
        health = cluster.ctl_json("endpoint", "health", "--cluster", members=asked)
        self.assertEqual([each["health"] for each in health], [True] * 3)
        table = [
            f"{ids[each]:x}, started, {each.name}, {each.peer_url}, {each.endpoint}, false" for each in cluster.members
        ]
        for member in cluster.members:
            listed = cluster.ctl("member", "list", members=[member])
            self.assertEqual(sorted(listed.splitlines()), sorted(table))

        moved = cluster.members[2]
        front = network.front(moved)
        cluster.ctl("member", "update", f"{ids[moved]:x}", f"--peer-urls={front}")
        self.assertIn(front, cluster.ctl("member", "list", members=[moved]))
        until("others dial the new URL", lambda: network.passed_bytes > 0)
        cluster.ctl("move-leader", f"{ids[moved]:x}")
        cluster.ctl("put", "k", "v", members=[cluster.members[0]])
        self.assertEqual(self.value_at(moved, "k"), "v")
        moved.restart()  # its own flags do not matter any more
        self.assertIn(front, cluster.ctl("member", "list", members=[moved]))
        cluster.wait_until_equal()

    def test_members_come_and_go(self) -> None:
        """One joins, one learns and is promoted, one is removed while it runs and one while it does not, and one whose
        directory was lost comes back under another id."""
        cluster = self.cluster = self.cluster_of(3, *SHORT_LOG)
        cluster.start()
        first, second, third = cluster.members
        self.put_many(first)
        fourth = self.joined()
        self.assertIn("installed the snapshot at index", fourth.log_since())
        self.assertEqual(self.value_at(fourth, "many/299"), "v")

        learner = self.joined(learner=True)
        self.assertEqual(self.learners(), [learner.name])
        self.assertEqual(self.ask(learner, pb.RangeRequest(key=b"k", serializable=True)).code, 0)
        reply = self.ask(learner, pb.PutRequest(key=b"k"))
        self.assertEqual((reply.code, reply.text), (UNAVAILABLE, "etcdserver: rpc not supported for learner"))
        identity = f"{cluster.id_of(learner):x}"
        self.eventually("the learner is promoted", lambda: cluster.ctl("member", "promote", identity, members=[first]))
        self.assertEqual(self.learners(), [])
        cluster.ctl("put", "k", "by the former learner", members=[learner])
        self.assertEqual(self.value_at(second, "k"), "by the former learner")

        self.remove(fourth)
        self.assertEqual(fourth.wait_for_end(), 1)
        self.assertIn(f"twistedkv: {REMOVED}\n", fourth.log_since())
        self.assert_turned_away(fourth)

        third.kill9()
        self.remove(third)
        self.assert_turned_away(third)

        second_id = cluster.id_of(second)
        second.kill9()
        shutil.rmtree(second.directory / "data")
        self.remove(second, f"{second_id:x}")
        again = self.joined()
        self.assertNotEqual(cluster.id_of(again), second_id)
        serving = [first, learner, again]
        cluster.wait_until_equal(serving)
        self.assertEqual(len(cluster.ctl_json("member", "list", members=serving)["members"]), 3)
        cluster.ctl("put", "k", "at the end", members=[again])
        self.assertEqual(self.value_at(first, "k"), "at the end")

    def joined(self, *, learner: bool = False) -> ServerProcess:
        """A new member that serves; for some seconds after a change, strict checks refuse the next one."""
        cluster, made = self.cluster, list[ServerProcess]()

        def add() -> None:
            before = len(cluster.members)
            try:
                made.append(cluster.add(TwistedkvProcess, learner=learner))
            except ServerFailed:
                del cluster.members[before:]
                raise

        self.eventually("a member is added", add)
        made[0].start()
        return made[0]

    def remove(self, member: ServerProcess, identity: str = "") -> None:
        """Take a member out of the cluster, by its id if it does not run."""
        others = [each for each in self.cluster.members if each.running and each is not member]
        listed = self.cluster.ctl_json("member", "list", members=others)["members"]
        identity = identity or next(f"{each['ID']:x}" for each in listed if each["name"] == member.name)
        self.eventually(
            f"{member.name} is removed", lambda: self.cluster.ctl("member", "remove", identity, members=others)
        )

    def learners(self) -> list[str]:
        """Their names."""
        listed = self.cluster.ctl_json("member", "list")["members"]
        return [each["name"] for each in listed if each.get("isLearner")]

    def assert_turned_away(self, member: ServerProcess) -> None:
        """When it is started again it ends by itself, and says why."""
        logged = member.log_bytes
        member.spawn()
        self.assertEqual(member.wait_for_end(), 1)
        self.assertIn(f"twistedkv: {REMOVED}\n", member.log_since(logged))


class StrangerTests(ClusterCase):
    def test_other_clusters_are_refused(self) -> None:
        """A member with another token, and one of another cluster that was given a wrong URL: both sides say so, and
        the cluster goes on as before."""
        cluster = self.cluster = self.cluster_of(3)
        first, second, other = cluster.members
        other.options = (*other.options, "--initial-cluster-token", "another")
        for each in cluster.members:
            each.spawn()
        for each in (first, second):
            each.wait_until_ready()
        refusal = "cluster ID mismatch"
        until("the other token is refused there", lambda: f"it refuses us: {refusal}" in other.log_since())
        until("and here", lambda: re.search(rf"refused .*which says .*: {refusal}", first.log_since()) is not None)
        self.assertTrue(other.running)
        self.assertNotIn("ready to serve", other.log_since())
        other.kill9()

        stranger = self.cluster_of(1, "--strict-reconfig-check=false", name="strangers", tls=cluster.tls)
        stranger.start()
        stranger.ctl("member", "add", "wrong", f"--peer-urls={first.peer_url}", "--learner")
        (lone,) = stranger.members
        logged = first.log_bytes
        until("the stranger is refused there", lambda: f"it refuses us: {refusal}" in lone.log_since())
        identity = f"{stranger.id_of(lone):x}"
        refused = rf"refused .*which says that it is member {identity} of cluster [0-9a-f]+: {refusal}"
        until("and here", lambda: re.search(refused, first.log_since(logged)) is not None)
        stranger.ctl("put", "k", "theirs")
        cluster.ctl("put", "k", "ours", members=[first])
        self.assertEqual(self.value_at(second, "k"), "ours")
        self.assertEqual(stranger.ctl("get", "k", "--print-value-only"), "theirs\n")


class IdleTests(ClusterCase):
    def test_idle_members_cost_little(self) -> None:
        """Three members that nobody asks for anything, with the timeouts at their defaults."""
        if os.getloadavg()[0] > 2.0 * (os.cpu_count() or 1):
            raise SkipTest(f"the machine is busy: load {os.getloadavg()[0]:.1f}")
        cluster = ClusterOfProcesses(self.directory / "cluster", [TwistedkvProcess] * 3)
        self.addCleanup(cluster.kill_all)
        cluster.start()
        threading.Event().wait(2.0)  # what a start brings with it is over
        before = [each.cpu_nanoseconds() for each in cluster.members]
        began_s = time.monotonic()
        threading.Event().wait(_IDLE_S)
        took_s = time.monotonic() - began_s
        after = [each.cpu_nanoseconds() for each in cluster.members]
        shares = [(end - begin) / 1e9 / took_s for begin, end in zip(before, after, strict=True)]
        print("\nidle members: " + ", ".join(f"{share:.2%}" for share in shares) + " of a core")
        self.assertLess(max(shares), _IDLE_SHARE)
