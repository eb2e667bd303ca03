"""``/v2/stats``: what it shows, in etcd's form."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.protocols.httpfakes import PEER, RecordingOutlet
from twistedkv.members import MemberInfo, Membership
from twistedkv.peerstats import PeerStats
from twistedkv.protocols.answers import Answer
from twistedkv.protocols.v2stats import V2Stats, go_duration, go_float, go_time
from twistedkv.protocols.v2words import V2Request
from twistedkv.storage.directory import Directory
from twistedkv.v2watch import V2Hub

ME, TWO, THREE = 0xFD112E7E01F28835, 0x43A7984406F4E9F, 0xD998A61BACAEC281
WALL_S = 1_795_635_542.25  # 2026-11-25T19:39:02.25Z


class Member:
    """A member of a cluster of three, that leads if the test says so."""

    def __init__(self) -> None:
        self.member_id = ME
        self.leader_changes: list[Callable[[], None]] = []
        self.leader = 0
        self.membership = Membership({each: MemberInfo(each, ()) for each in (ME, TWO, THREE)})
        self.v2hub = V2Hub()
        self.directory = Directory(self.v2hub)

    @property
    def is_leader(self) -> bool:
        return self.leader == ME

    def lead_by(self, leader: int) -> None:
        """Another member leads, or nobody for 0."""
        self.leader = leader
        for tell in list(self.leader_changes):
            tell()


class V2StatsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.set_zone("UTC")
        self.clock = Clock()
        self.member = Member()
        self.stats = PeerStats(self.clock.seconds)
        self.site = V2Stats(self.member, "m0", self.stats, self.clock.seconds, lambda: WALL_S + self.clock.seconds())
        self.site.start()

    def set_zone(self, zone: str) -> None:
        """Be somewhere until the test is over."""
        before = os.environ.get("TZ")

        def back() -> None:
            os.environ.pop("TZ")
            if before is not None:
                os.environ["TZ"] = before
            time.tzset()

        self.addCleanup(back)
        os.environ["TZ"] = zone
        time.tzset()

    def ask(self, path: str, method: str = "GET") -> Answer:
        """The answer to one request."""
        outlet = RecordingOutlet()
        self.site.serve(V2Request(method, f"/v2/stats{path}", "", (), b"", PEER), outlet)
        (answer,) = outlet.answers
        return answer

    def body(self, path: str) -> str:
        """Of a good answer, which has JSON's type and nothing else."""
        answer = self.ask(path)
        self.assertEqual((answer.status, tuple(answer.fields.pairs)), (200, ((b"Content-Type", b"application/json"),)))
        return answer.body.decode()

    def test_self_of_a_new_member(self) -> None:
        """Before there is a leader it counts from its start, and rates that are 0 are left out."""
        self.assertEqual(
            self.body("/self"),
            '{"name":"m0","id":"fd112e7e01f28835","state":"StateFollower","startTime":"2026-11-25T19:39:02.25Z",'
            '"leaderInfo":{"leader":"","uptime":"0s","startTime":"2026-11-25T19:39:02.25Z"},'
            '"recvAppendRequestCnt":0,"sendAppendRequestCnt":0}',
        )

    def test_self_of_a_leader(self) -> None:
        """Its rates are those of what it sends."""
        self.clock.advance(0.5)
        self.member.lead_by(ME)
        for _ in range(3):
            self.clock.advance(0.25)
            self.stats.sent.note(1, 100)
        self.assertEqual(
            self.body("/self"),
            '{"name":"m0","id":"fd112e7e01f28835","state":"StateLeader","startTime":"2026-11-25T19:39:02.25Z",'
            '"leaderInfo":{"leader":"fd112e7e01f28835","uptime":"750ms","startTime":"2026-11-25T19:39:02.75Z"},'
            '"recvAppendRequestCnt":0,"sendAppendRequestCnt":3,"sendPkgRate":6,"sendBandwidthRate":600}',
        )

    def test_self_of_a_follower(self) -> None:
        """It names the leader, who stays named while nobody leads, and whose time goes on through its other terms."""
        self.member.lead_by(TWO)
        self.stats.received.note(2, 50)
        self.clock.advance(0.5)
        self.stats.received.note(2, 75)
        self.member.lead_by(0)
        self.clock.advance(0.5)
        self.member.lead_by(TWO)
        self.assertEqual(
            self.body("/self"),
            '{"name":"m0","id":"fd112e7e01f28835","state":"StateFollower","startTime":"2026-11-25T19:39:02.25Z",'
            '"leaderInfo":{"leader":"43a7984406f4e9f","uptime":"1s","startTime":"2026-11-25T19:39:02.25Z"},'
            '"recvAppendRequestCnt":4,"recvPkgRate":8,"recvBandwidthRate":250,"sendAppendRequestCnt":0}',
        )
        self.clock.advance(3723.5)
        self.member.lead_by(THREE)
        self.clock.advance(7261.25)
        info = json.loads(self.body("/self"))["leaderInfo"]
        self.assertEqual(
            info, {"leader": "d998a61bacaec281", "uptime": "2h1m1.25s", "startTime": "2026-11-25T20:41:06.75Z"}
        )

    def test_nobody_is_asked_after_the_stop(self) -> None:
        """The member calls no more."""
        self.site.stop()
        self.site.stop()
        self.assertEqual(self.member.leader_changes, [])

    def test_leader(self) -> None:
        """Its followers by their ids' texts, also one that got nothing, and none that is no member."""
        self.member.lead_by(ME)
        for seconds in (0.0005, 0.00025):
            self.stats.followers[THREE].success(1, seconds)
        self.stats.followers[THREE].failed += 4
        self.stats.followers[0xBAD].success(1, 1)
        self.assertEqual(
            self.body("/leader"),
            '{"leader":"fd112e7e01f28835","followers":{'
            '"43a7984406f4e9f":{"latency":{"current":0,"average":0,"standardDeviation":0,'
            '"minimum":9223372036854776000,"maximum":0},"counts":{"fail":0,"success":0}},'
            '"d998a61bacaec281":{"latency":{"current":0.25,"average":0.375,"standardDeviation":0.125,'
            '"minimum":0.25,"maximum":0.5},"counts":{"fail":4,"success":2}}}}',
        )

    def test_leader_of_a_lone_member(self) -> None:
        """Nobody follows it."""
        self.member.membership = Membership({ME: MemberInfo(ME, ())})
        self.member.lead_by(ME)
        self.assertEqual(self.body("/leader"), '{"leader":"fd112e7e01f28835","followers":{}}')

    def test_who_does_not_lead(self) -> None:
        """A follower does not know of others."""
        self.member.lead_by(TWO)
        answer = self.ask("/leader")
        self.assertEqual((answer.status, answer.body), (403, b'{"message":"not current leader"}'))
        self.assertEqual(tuple(answer.fields.pairs), ((b"Content-Type", b"application/json"),))

    def test_store(self) -> None:
        """Requests by kind, in etcd's order, and who watches."""

        class Watching:
            def happened(self, event: object) -> None: ...
            def lost(self) -> None: ...

        member = self.member
        member.directory.set("/1/a", False, "x")
        member.directory.get("/1/a", False, False)
        member.v2hub.watch("/1/a", False, False, 0, member.directory.index, Watching())
        self.assertEqual(
            self.body("/store"),
            '{"getsSuccess":1,"getsFail":0,"setsSuccess":1,"setsFail":0,"deleteSuccess":0,"deleteFail":0,'
            '"updateSuccess":0,"updateFail":0,"createSuccess":0,"createFail":0,"compareAndSwapSuccess":0,'
            '"compareAndSwapFail":0,"compareAndDeleteSuccess":0,"compareAndDeleteFail":0,"expireCount":0,"watchers":1}',
        )
        member.directory = Directory(V2Hub())  # as after a snapshot
        self.assertIn('"getsSuccess":0', self.body("/store"))

    def test_other_paths_and_methods(self) -> None:
        """404 comes before 405."""
        for path in ("", "/", "/self/", "/x", "/leader/x"):
            self.assertEqual((self.ask(path, "POST").status, self.ask(path).body), (404, b"404 page not found\n"))
        for path in ("/self", "/leader", "/store"):
            for method in ("HEAD", "POST", "get"):
                answer = self.ask(path, method)
                self.assertEqual((answer.status, answer.body), (405, b"Method Not Allowed\n"))
                self.assertEqual(dict(answer.fields.pairs)[b"Allow"], b"GET")

    def test_times_are_of_the_zone(self) -> None:
        """As Go writes them, with what of the second there is."""
        seen = {}
        for zone in ("UTC", "IST-5:30", "NST3:30"):
            self.set_zone(zone)
            seen[zone] = go_time(WALL_S)
        self.assertEqual(
            seen,
            {
                "UTC": "2026-11-25T19:39:02.25Z",
                "IST-5:30": "2026-11-26T01:09:02.25+05:30",
                "NST3:30": "2026-11-25T16:09:02.25-03:30",
            },
        )
        self.set_zone("UTC")
        self.assertEqual(go_time(0), "1970-01-01T00:00:00Z")
        self.assertEqual(go_time(1.0625), "1970-01-01T00:00:01.0625Z")


class GoTextTests(SynchronousTestCase):
    def test_durations(self) -> None:
        """The unit is the largest in which there is something before the point; below a second there is one only."""
        for ns, text in {
            -5: "0s",
            0: "0s",
            1: "1ns",
            1_100: "1.1µs",
            29_069_703: "29.069703ms",
            999_999_999: "999.999999ms",
            1_000_000_000: "1s",
            6_112_600_522: "6.112600522s",
            59_999_999_999: "59.999999999s",
            60_000_000_000: "1m0s",
            3_600_000_000_000: "1h0m0s",
            90_061_500_000_000: "25h1m1.5s",
        }.items():
            self.assertEqual(go_duration(ns), text)

    def test_numbers(self) -> None:
        """Written out from a millionth up to 10^21, and with Go's exponents beyond."""
        for number, text in {
            0.0: "0",
            6.0: "6",
            0.000791: "0.000791",
            0.0020300769230769235: "0.0020300769230769235",
            1e-06: "0.000001",
            9.9e-07: "9.9e-7",
            1.5e-10: "1.5e-10",
            9.223372036854775808e18: "9223372036854776000",
            1e20: "100000000000000000000",
            1e21: "1e+21",
            820.3734271475923: "820.3734271475923",
        }.items():
            self.assertEqual(go_float(number), text)

    @given(st.floats(0, allow_infinity=False, allow_nan=False))
    def test_numbers_are_kept(self, number: float) -> None:
        """What is written is the number, and JSON."""
        self.assertEqual(float(json.loads(go_float(number))), number)
