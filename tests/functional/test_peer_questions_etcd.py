"""What members tell each other besides Raft, between us and a real etcd 3.5.1: leases, hashes and versions."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet import reactor as trial_reactor  # noqa: TID251  the one that trial runs
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.functional.follower import Follower
from tests.functional.processes import MISSING_ETCD, EtcdProcess, etcd_binary, free_ports
from twistedkv.apply import Alarms, Applier
from twistedkv.clusterversion import ClusterVersion
from twistedkv.corruption import HASHKV_PATH, CorruptionCheck
from twistedkv.downgrade import Downgrade
from twistedkv.errors import KVError, LeaseNotFoundError
from twistedkv.lease import Lessor
from twistedkv.leaseclock import LeaseClock
from twistedkv.leaseforward import LeaseForward
from twistedkv.leaseprimary import PrimaryLessor
from twistedkv.leasesite import LeaseSite
from twistedkv.members import MemberInfo, Membership
from twistedkv.metrics import LEASE_SECONDS, Distribution
from twistedkv.pb.raft_internal_pb2 import InternalRaftRequest
from twistedkv.peersite import PeerRequest
from twistedkv.protocols.answers import PAGE_NOT_FOUND, Answer
from twistedkv.raft.messages import Role
from twistedkv.storage.keyindex import KeyIndex
from twistedkv.storage.mvcc import Store

LEASE = 0x77


class AskingMember:
    """The member around a bare Raft node, as far as questions go."""

    def __init__(self, follower: Follower, etcd_id: int) -> None:
        self.follower = follower
        self.reactor: Any = trial_reactor
        self.peers = follower.peers
        self.member_id = follower.node.config.id
        self.timeout_s = 7.0
        self.stopped = False
        self.leader_changes: list[Callable[[], None]] = []
        self.failures: list[Any] = []
        self.lessor = Lessor()
        self.leases = LeaseClock(
            self.lessor,
            self.propose_request,
            self.reactor,
            time.monotonic,
            1.0,
            Distribution(LEASE_SECONDS),
            False,
            self.failures.append,
        )
        self.membership = Membership({each: MemberInfo(each, ("http://x",)) for each in (self.member_id, etcd_id)})
        self.applier = Applier(Store(KeyIndex(1 << 20)), self.lessor, Alarms(), self.membership, "3.5.0")
        self.primary = PrimaryLessor(self)
        self.site = LeaseSite(self.primary, self.reactor)
        self.asked: list[str] = []
        follower.peers.extra = self.answer

    @property
    def term(self) -> int:
        return self.follower.node.term

    @property
    def leader(self) -> int:
        return self.follower.node.leader

    @property
    def is_leader(self) -> bool:
        return self.follower.node.role is Role.LEADER

    @property
    def committed(self) -> int:
        return self.follower.node.commit

    @property
    def applied(self) -> int:
        return self.follower.node.applied

    def when_leader(self, known: Callable[[], None]) -> Callable[[], None]:
        self.follower.when(lambda: self.leader != 0).addCallback(lambda _: known())
        return lambda: None

    def when_applied(self, index: int, reached: Callable[[], None]) -> None:
        self.follower.when(lambda: self.applied >= index).addCallback(lambda _: reached())

    def when_readable(self, ready: Callable[[], None], fail: Callable[[KVError], None]) -> None:
        reads = len(self.follower.reads)
        self.follower.node.read_index(reads.to_bytes(8, "big"))
        self.follower.drive()
        self.follower.when(lambda: len(self.follower.reads) > reads).addCallback(lambda _: ready())

    def propose_request(self, request: InternalRaftRequest) -> Deferred[Any]:
        before = self.follower.node.commit
        request.header.ID = before + 1000  # etcd counts on there being one
        self.follower.node.propose([request.SerializeToString()])
        self.follower.drive()
        committed = self.follower.when(lambda: self.follower.node.commit > before)
        return committed.addCallback(lambda _: self.applier.apply(request))

    def answer(self, method: str, path: str, fields: Any, body: bytes) -> Deferred[Answer]:
        """Our peer port."""
        self.asked.append(f"{method} {path}")
        request = PeerRequest(path, fields, body)
        if path == "/leases":
            return self.site.renew(request)
        if path == "/leases/internal":
            return self.site.time_to_live(request)
        unknown: Deferred[Answer] = Deferred()
        unknown.callback(PAGE_NOT_FOUND)
        return unknown


class QuestionsTests(TestCase):
    """A member of ours and one of etcd's in one cluster, which lead by turns."""

    skip = MISSING_ETCD
    timeout = 90

    @inlineCallbacks
    def setUp(self) -> Any:  # type: ignore[override]
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.server = EtcdProcess(Path(directory.name) / "etcd")
        self.addCleanup(self.server.kill9)  # without our vote it would try in vain to hand over
        self.server.start()
        (port,) = free_ports(1)
        url = f"http://127.0.0.1:{port}"
        added = yield self.ctl("member", "add", "ours", "--learner", "--peer-urls", url, "-w", "json")
        self.etcd_id = added["header"]["member_id"]
        self.follower = Follower(
            trial_reactor, added["member"]["ID"], added["header"]["cluster_id"], url, Path(directory.name)
        )
        self.addCleanup(self.follower.stop)
        self.follower.start()
        self.follower.peers.set_peer(self.etcd_id, [self.server.peer_url])
        self.member = AskingMember(self.follower, self.etcd_id)
        yield self.follower.when(lambda: self.member.leader == self.etcd_id)

    def ctl(self, *arguments: str) -> Any:
        """What etcdctl answers; it does not hold up the reactor."""
        command = [str(etcd_binary("etcdctl")), "--endpoints", self.server.endpoint, *arguments]

        def run() -> Any:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
            if done.returncode:
                raise RuntimeError(done.stderr)
            return json.loads(done.stdout) if done.stdout.startswith("{") else done.stdout

        return deferToThread(run)

    @inlineCallbacks
    def lead(self) -> Any:
        """Our member leads, with a lease that is its own."""
        node = self.follower.node
        while node.config.id not in node.configuration.voters:
            try:
                yield self.ctl("member", "promote", f"{node.config.id:x}")
            except RuntimeError as error:  # etcd does not know yet how much of the log we have
                self.assertIn("in sync with leader", str(error))
            else:
                yield self.follower.when(lambda: node.config.id in node.configuration.voters)
        yield self.ctl("move-leader", f"{node.config.id:x}")
        yield self.follower.when(lambda: node.role is Role.LEADER and node.log.term(node.applied) == node.term)
        self.member.leases.lead()
        self.member.lessor.grant(LEASE, 60)
        self.member.lessor.attach(LEASE, b"k")

    @inlineCallbacks
    def test_we_ask_etcd(self) -> Any:
        """Renewals, remaining time, hashes and versions come from etcd's leader, and so does the end of a lease."""
        granted = yield self.ctl("lease", "grant", "60")
        lease_id = int(granted.split()[1], 16)
        yield self.ctl("put", f"--lease={lease_id:x}", "k", "v")
        forward = LeaseForward(self.member, self.member.primary)
        self.assertIsNone(forward.renew_at_once(lease_id))
        self.assertEqual((yield forward.renew(lease_id)), 60)
        found = yield forward.time_to_live(lease_id, keys=True)
        self.assertEqual((found.grantedTTL, list(found.keys)), (60, [b"k"]))
        self.assertIn(found.TTL, (58, 59))
        yield self.assertFailure(forward.renew(1), LeaseNotFoundError)
        yield self.assertFailure(forward.time_to_live(1, keys=False), LeaseNotFoundError)

        told = yield self.follower.peers.ask(self.etcd_id, "GET", "/version")
        self.assertEqual(json.loads(told.body), {"etcdserver": "3.5.1", "etcdcluster": "3.5.0"})
        check = CorruptionCheck(self.member, 0)  # type: ignore[arg-type]
        (theirs,) = yield check._ask_all(2)
        hashed = yield self.ctl("endpoint", "hashkv", "-w", "json")
        self.assertIn(str(theirs.hash.hash), str(hashed))
        (refused,) = yield check._ask_all(99)
        self.assertIn("is a future revision", refused.problem)
        told = yield self.follower.peers.ask(self.etcd_id, "GET", HASHKV_PATH, b"x", "application/json")
        self.assertEqual((told.status, told.body), (400, b"error unmarshalling request\n"))

    @inlineCallbacks
    def test_etcd_asks_us(self) -> Any:
        """etcd's clients renew at our leader, and what they see is what it says."""
        yield self.lead()
        kept = yield self.ctl("lease", "keep-alive", "--once", f"{LEASE:x}", "-w", "json")
        self.assertEqual((kept["ID"], kept["TTL"], kept["member_id"]), (LEASE, 60, self.etcd_id))
        left = yield self.ctl("lease", "timetolive", f"{LEASE:x}", "--keys", "-w", "json")
        self.assertEqual((left["id"], left["granted-ttl"], left["keys"]), (LEASE, 60, ["aw=="]))
        gone = yield self.ctl("lease", "timetolive", "1234", "-w", "json")
        self.assertEqual(gone["ttl"], -1)
        self.assertEqual(self.member.asked, ["POST /leases", *["POST /leases/internal"] * 2])
        self.assertEqual(self.member.leases.renewed, 1)

    @inlineCallbacks
    def test_etcd_takes_our_versions(self) -> Any:
        """What our leader decides is what etcd tells everybody, down and up, and a downgrade ends by it."""
        yield self.lead()
        # Of which etcd 3.5.1 is not told: while it knows of one, it ends itself when the version falls below its own.
        self.member.applier.downgrade = Downgrade("3.4.0", True)
        older = ClusterVersion(self.member, "3.4.0")
        older.start()
        self.addCleanup(older.stop)
        yield self.told_version("3.4.0")
        older.look()
        yield self.follower.when(lambda: not self.member.applier.downgrade.enabled)
        older.stop()
        ours = ClusterVersion(self.member, "3.5.1")
        ours.start()
        self.addCleanup(ours.stop)
        yield self.told_version("3.5.0")

    @inlineCallbacks
    def told_version(self, expected: str) -> Any:
        """Ask etcd until it has applied that the cluster has this version."""
        found = ""
        while found != expected:
            reply = yield self.follower.peers.ask(self.etcd_id, "GET", "/version")
            found = json.loads(reply.body)["etcdcluster"]
