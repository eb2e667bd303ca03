"""Which version the cluster speaks."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import provider

from tests.askedpeers import Asked, AskedPeers
from twistedkv.apply import Alarms, Applier
from twistedkv.clusterversion import INTERVAL_S, ClusterVersion, Versions, decide, is_over
from twistedkv.downgrade import Downgrade
from twistedkv.errors import KVError, NoLeaderError, RequestTimeoutError
from twistedkv.lease import Lessor
from twistedkv.members import MemberInfo, Membership
from twistedkv.pb.raft_internal_pb2 import InternalRaftRequest
from twistedkv.storage.keyindex import KeyIndex
from twistedkv.storage.mvcc import Store

ME, B, C = 0xA, 0xB, 0xC
OLD, OURS, NEW = Versions("3.4.18", "3.4.0"), Versions("3.5.1", "3.5.0"), Versions("3.6.0", "3.5.0")


class DecideTests(SynchronousTestCase):
    """The rules. etcd cluster_util.go, decideClusterVersion; membership/downgrade.go."""

    def decided(self, current: str, *told: Versions | None, downgrade: Downgrade = Downgrade()) -> str:  # noqa: B008
        return decide(current, dict(enumerate(told)), downgrade)

    def test_the_first_version(self) -> None:
        """Is the lowest of all members', or the lowest there is while one of them says nothing."""
        self.assertEqual(self.decided("", OURS), "3.5.0")
        self.assertEqual(self.decided("", OURS, NEW, OLD), "3.4.0")
        self.assertEqual(self.decided("", OURS, None), "3.0.0")
        self.assertEqual(self.decided("", OURS, Versions("x", "")), "3.0.0")
        self.assertEqual(self.decided(""), "3.0.0")

    def test_it_rises_with_the_last_member(self) -> None:
        """Not before all are known to have it, and not to another major version."""
        for current in ("3.0.0", "3.4.0"):
            self.assertEqual(self.decided(current, OURS, OURS, NEW), "3.5.0")
        self.assertEqual(self.decided("3.4.0", OURS, None), "")
        self.assertEqual(self.decided("3.4.0", OURS, OLD), "")
        self.assertEqual(self.decided("3.5.0", OURS, OURS), "")
        self.assertEqual(self.decided("2.3.0", OURS), "")
        self.assertEqual(self.decided("3.9.0", Versions("3.10.0", "")), "3.10.0")

    def test_it_falls_by_a_downgrade_only(self) -> None:
        """To its target, and no further."""
        self.assertEqual(self.decided("3.5.0", OURS, OLD), "")
        self.assertEqual(self.decided("3.5.0", OURS, OLD, downgrade=Downgrade("3.4.0", True)), "3.4.0")
        self.assertEqual(self.decided("3.5.0", OURS, OURS, downgrade=Downgrade("3.4.0", True)), "")
        self.assertEqual(self.decided("3.6.0", OURS, OLD, downgrade=Downgrade("3.5.0", True)), "")
        self.assertEqual(self.decided("3.6.0", OURS, OLD, downgrade=Downgrade("3.4.0", True)), "")

    def test_what_cannot_be_read_stays(self) -> None:
        """A version that no one could have written is nobody's to change."""
        self.assertEqual(self.decided("three", OURS), "")

    def test_a_downgrade_is_over_when_all_speak_its_target(self) -> None:
        """Not while one does not, or says nothing."""
        going_on = Downgrade("3.4.0", True)
        self.assertTrue(is_over(going_on, {1: OLD, 2: Versions("3.5.1", "3.4.0")}))
        self.assertFalse(is_over(going_on, {1: OLD, 2: OURS}))
        self.assertFalse(is_over(going_on, {1: OLD, 2: None}))
        self.assertFalse(is_over(Downgrade(), {1: OLD}))


class VersionedMember:
    """Member ME of a cluster of three, of which the test says who leads."""

    def __init__(self, *members: int) -> None:
        self.reactor = Clock()
        self.member_id = ME
        self.is_leader = True
        self.term = 2
        self.peers = AskedPeers()
        self.membership = Membership({each: MemberInfo(each, (f"http://192.0.2.{each}:2380",)) for each in members})
        self.applier = Applier(Store(KeyIndex(1 << 20)), Lessor(2), Alarms(), self.membership)
        self.leader_changes: list[Callable[[], None]] = []
        self.readers: list[Callable[[], None]] = []
        self.refusal: KVError | None = None
        self.proposed: list[InternalRaftRequest] = []

    def when_readable(self, ready: Callable[[], None], refuse: Callable[[KVError], None]) -> None:
        if self.refusal is None:
            self.readers.append(ready)
        else:
            refuse(self.refusal)

    def readable(self) -> None:
        """What former leaders committed is applied."""
        readers, self.readers = self.readers, []
        for ready in readers:
            ready()

    def propose_request(self, request: InternalRaftRequest) -> Deferred[bytes]:
        self.proposed.append(request)
        if self.refusal is not None:
            return fail(self.refusal)
        self.applier.apply(request)
        return succeed(b"")


class ClusterVersionTests(SynchronousTestCase):
    """The leader, who asks and decides."""

    def make(self, *members: int) -> None:
        self.member = VersionedMember(*members)
        self.versions = ClusterVersion(self.member, "3.5.1")
        self.addCleanup(self.versions.stop)

    def begin(self) -> list[Asked]:
        """The leader of a cluster of three begins; who it asks."""
        self.make(ME, B, C)
        self.versions.start()
        self.member.readable()
        return self.asked()

    def asked(self) -> list[Asked]:
        asked = self.member.peers.take()
        self.assertEqual([(each.member_id, each.method, each.path) for each in asked], [
            (B, "GET", "/version"), (C, "GET", "/version")
        ])  # fmt: skip
        return asked

    def tell(self, asked: Asked, versions: Versions) -> None:
        asked.answer(200, b'{"etcdserver":"%b","etcdcluster":"%b"}' % tuple(each.encode() for each in versions))

    @property
    def current(self) -> str:
        return self.member.applier.cluster_version

    def test_alone(self) -> None:
        """A single member decides as soon as it leads."""
        self.make(ME)
        self.member.is_leader = False
        self.versions.start()
        self.assertEqual(self.member.readers, [])
        self.member.is_leader = True
        for tell in self.member.leader_changes:
            tell()
        self.assertEqual(self.current, "")
        self.member.readable()
        self.assertEqual(self.current, "3.5.0")
        self.member.reactor.advance(INTERVAL_S)
        self.assertEqual(len(self.member.proposed), 1)

    def test_all_answer(self) -> None:
        """The lowest version is the cluster's, once the last one has answered."""
        b, c = self.begin()
        self.tell(b, Versions("3.4.18", "not_decided"))
        self.assertEqual(self.current, "")
        self.tell(c, Versions("3.5.1", "not_decided"))
        self.assertEqual(self.current, "3.4.0")

    def test_one_does_not_answer(self) -> None:
        """First the version that everybody can do, then, when it is there, the right one."""
        b, c = self.begin()
        self.tell(b, Versions("3.5.1", "not_decided"))
        c.reply.errback(ConnectionError("refused"))
        self.assertEqual(self.current, "3.0.0")
        self.member.reactor.advance(INTERVAL_S)
        for each in self.asked():
            self.tell(each, Versions("3.5.1", "3.0.0"))
        self.assertEqual(self.current, "3.5.0")

    def test_answers_that_are_none(self) -> None:
        """Count as silence."""
        asked = self.begin()
        for status, body in (
            (500, b""),
            (200, b"x"),
            (200, b"[]"),
            (200, b"{}"),
            (200, b'{"etcdserver":5,"etcdcluster":""}'),
        ):
            asked[0].answer(status, body)
            self.tell(asked[1], OURS)
            self.assertEqual(self.current, "3.0.0")
            self.member.reactor.advance(INTERVAL_S)
            asked = self.asked()

    def test_one_look_at_a_time(self) -> None:
        """A member that is slow to answer is not asked again meanwhile."""
        b, c = self.begin()
        self.member.reactor.advance(INTERVAL_S)
        self.assertEqual(self.member.peers.take(), [])
        for each in (b, c):
            self.tell(each, OURS)
        self.assertEqual(self.current, "3.5.0")

    def test_who_lost_the_lead_decides_nothing(self) -> None:
        """Neither does who leads again by now, in another term."""
        for lose in (
            lambda: setattr(self.member, "is_leader", False),
            lambda: setattr(self.member, "term", 4),
        ):
            b, c = self.begin()
            lose()
            for each in (b, c):
                self.tell(each, OURS)
            self.assertEqual(self.member.proposed, [])

    def test_who_follows_asks_nobody(self) -> None:
        """It is the leader's to ask."""
        for each in self.begin():
            self.tell(each, OURS)
        self.member.is_leader = False
        self.member.reactor.advance(3 * INTERVAL_S)
        self.assertEqual(self.member.peers.take(), [])

    def test_a_leader_without_a_quorum(self) -> None:
        """Looks again at the next interval, whatever became of its proposal."""
        b, c = self.begin()
        self.member.refusal = RequestTimeoutError()
        for each in (b, c):
            self.tell(each, OURS)
        self.assertEqual(self.current, "")
        for tell in self.member.leader_changes:
            tell()
        self.member.refusal = None
        self.member.reactor.advance(INTERVAL_S)
        for each in self.asked():
            self.tell(each, OURS)
        self.assertEqual(self.current, "3.5.0")

    def test_a_downgrade(self) -> None:
        """The version falls with the first member of the target, and the downgrade ends when all speak it."""
        for each in self.begin():
            self.tell(each, OURS)
        self.member.applier.downgrade = Downgrade("3.4.0", True)
        for told, version, going_on in (
            ((OURS, OURS), "3.5.0", True),
            ((OURS, Versions("3.4.18", "3.5.0")), "3.4.0", True),
            ((OURS, OLD), "3.4.0", True),
            ((Versions("3.5.1", "3.4.0"), OLD), "3.4.0", False),
        ):
            self.member.reactor.advance(INTERVAL_S)
            for each, versions in zip(self.asked(), told, strict=True):
                self.tell(each, versions)
            self.assertEqual((self.current, self.member.applier.downgrade.enabled), (version, going_on))

    def test_a_newer_member(self) -> None:
        """Is warned of, once."""
        events: list[LogEvent] = []

        @provider(ILogObserver)
        def observe(event: LogEvent) -> None:
            events.append(event)

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        asked = self.begin()
        for _ in range(3):
            self.tell(asked[0], NEW)
            self.tell(asked[1], Versions("3.5.9", "3.5.0"))
            self.member.reactor.advance(INTERVAL_S)
            asked = self.asked()
        warnings = [event for event in events if "newer" in (event.get("log_format") or "")]
        self.assertEqual([(event["peer"], event["version"]) for event in warnings], [(B, "3.6.0")])

    def test_stopping(self) -> None:
        """Gives up what is under way, and leaves nothing."""
        asked = self.begin()
        self.versions.stop()
        self.assertEqual([each.cancelled for each in asked], [True, True])
        self.assertEqual((self.member.reactor.getDelayedCalls(), self.member.leader_changes), ([], []))
        self.versions.look()
        self.assertEqual((self.member.peers.take(), self.member.proposed), ([], []))

    def test_nobody_leads(self) -> None:
        """A leader that is none by the time it could read waits for the next change."""
        self.make(ME, B, C)
        self.member.refusal = NoLeaderError()
        self.versions.start()
        self.assertEqual(self.member.peers.take(), [])
