"""The leader's word for what time it is, by which keys of the v2 API go."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from twistedkv.errors import NotLeaderError
from twistedkv.pb.etcdserver_pb2 import Request
from twistedkv.storage.directory import Directory
from twistedkv.v2clock import INTERVAL_S, V2Clock
from twistedkv.v2watch import V2Hub
from twistedkv.waiting import Waiter

START_S = 1_700_000_000


class Member:
    """A member with one key."""

    def __init__(self, clock: Clock) -> None:
        self.reactor = clock
        self.is_leader = True
        self.directory = Directory(V2Hub())
        self.asked: list[tuple[Request, Waiter]] = []

    def propose_v2(self, fields: bytes, waiter: Waiter, *, leading: bool = False) -> None:
        assert leading
        self.asked.append((Request.FromString(fields), waiter))


class V2ClockTests(SynchronousTestCase):
    """A clock over a tree."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.rightNow = float(START_S)
        self.member = Member(self.clock)
        self.timer = V2Clock(self.member)
        self.timer.start()
        self.member.directory.set("/1/k", False, "v", (START_S + 5) * 10**9)

    def tearDown(self) -> None:
        self.timer.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def pass_s(self, seconds: float) -> None:
        self.clock.pump([INTERVAL_S] * int(seconds / INTERVAL_S))

    def test_when_a_key_ends(self) -> None:
        """Nothing is said before a key's end; then once, and not again while that is under way."""
        self.pass_s(4.75)
        self.assertEqual(self.member.asked, [])
        self.pass_s(3)
        ((request, waiter),) = self.member.asked
        self.assertEqual(request.Method, "SYNC")
        self.assertGreaterEqual(request.Time, (START_S + 5) * 10**9)
        self.assertLess(request.Time, (START_S + 5) * 10**9 + INTERVAL_S * 1e9 + 1)
        self.member.directory.expire(request.Time)
        waiter.reply(b"")
        self.pass_s(3)
        self.assertEqual(len(self.member.asked), 1)

    def test_when_it_was_lost(self) -> None:
        """What did not get into the log is said again, with the time that it is then."""
        self.pass_s(5)
        request, waiter = self.member.asked[-1]
        waiter.fail(NotLeaderError())
        self.pass_s(INTERVAL_S)
        self.assertEqual(len(self.member.asked), 2)
        self.assertGreater(self.member.asked[1][0].Time, request.Time)

    def test_a_follower_says_nothing(self) -> None:
        """Only the leader says what time it is; whoever leads next goes on."""
        self.member.is_leader = False
        self.pass_s(10)
        self.assertEqual(self.member.asked, [])
        self.member.is_leader = True
        self.pass_s(INTERVAL_S)
        self.assertEqual(len(self.member.asked), 1)
