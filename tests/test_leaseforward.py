"""Renewals that go to the leader."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.askedpeers import Asked
from tests.localmember import LocalMember
from twistedkv.errors import LeaseNotFoundError, NoLeaderError, RequestTimeoutError, StoppedError
from twistedkv.leaseforward import BRISK, MOST, RETRY_S, SLOW_S, LeaseForward, Window
from twistedkv.leaseprimary import PrimaryLessor
from twistedkv.pb.lease_pb2 import LeaseInternalRequest, LeaseInternalResponse
from twistedkv.pb.rpc_pb2 import LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseTimeToLiveResponse, ResponseHeader

ME, B, C = 0xA, 0xB, 0xC
NOT_FOUND = b"lease not found\n"


class ForwardTestCase(SynchronousTestCase):
    """A follower of B."""

    def setUp(self) -> None:
        self.member = LocalMember()
        self.member.lead_by(B)
        self.forward = LeaseForward(self.member, PrimaryLessor(self.member))

    def tearDown(self) -> None:
        self.member.stop()
        self.assertEqual(self.member.clock.getDelayedCalls(), [])
        self.assertEqual(self.member.leader_changes, [])
        self.assertEqual(self.member.peers.asked, [])

    def asked(self) -> Asked:
        """The only question that was asked since the last one."""
        (asked,) = self.member.peers.take()
        return asked

    def renewed(self, asked: Asked, ttl_s: int, lease_id: int = 7) -> None:
        asked.answer(200, LeaseKeepAliveResponse(ID=lease_id, TTL=ttl_s).SerializeToString())


class RenewTests(ForwardTestCase):
    """etcd v3_server.go, LeaseRenew."""

    def test_the_leader_is_asked(self) -> None:
        """By etcd's message, at its peer port; the answer is the leader's."""
        renewal = self.forward.renew(7)
        asked = self.asked()
        self.assertEqual(
            (asked.member_id, asked.method, asked.path, asked.content_type),
            (B, "POST", "/leases", "application/protobuf"),
        )
        self.assertEqual(LeaseKeepAliveRequest.FromString(asked.body).ID, 7)
        self.assertNoResult(renewal)
        self.renewed(asked, 60)
        self.assertEqual(self.successResultOf(renewal), 60)
        self.assertIsNone(self.forward.renew_at_once(7))

    def test_a_lease_that_the_leader_does_not_know(self) -> None:
        """Is not there: the leader has all that is committed."""
        renewal = self.forward.renew(7)
        self.asked().answer(404, NOT_FOUND)
        self.failureResultOf(renewal, LeaseNotFoundError)

    def test_what_is_no_answer_is_asked_again(self) -> None:
        """A member that leads no more, or is behind, or answers something else; each time after a moment."""
        renewal = self.forward.renew(7)
        for status, body in (
            (400, b"not a primary lessor\n"),
            (408, b"waiting for node to catch up its applied index has timed out\n"),
            (404, b"404 page not found\n"),
            (200, b"\xff"),
            (200, LeaseKeepAliveResponse(ID=8, TTL=5).SerializeToString()),
            (500, b""),
        ):
            self.asked().answer(status, body)
            self.assertEqual(self.member.peers.take(), [])
            self.member.clock.advance(RETRY_S)
        self.renewed(self.asked(), 60)
        self.assertEqual(self.successResultOf(renewal), 60)

    def test_a_leader_that_cannot_be_reached(self) -> None:
        """Is asked until the time of a request is over."""
        self.member.peers.missing.add(B)
        renewal = self.forward.renew(7)
        self.member.clock.pump([RETRY_S] * 130)
        self.assertNoResult(renewal)
        self.member.clock.pump([RETRY_S] * 20)
        self.failureResultOf(renewal, RequestTimeoutError)

    def test_a_leader_that_does_not_answer(self) -> None:
        """As etcd: request timed out."""
        renewal = self.forward.renew(7)
        asked = self.asked()
        self.member.clock.advance(7)
        self.failureResultOf(renewal, RequestTimeoutError)
        self.assertTrue(asked.cancelled)

    def test_another_leader_is_asked_at_once(self) -> None:
        """The answer of the former one is not waited for."""
        renewal = self.forward.renew(7)
        former = self.asked()
        self.member.lead_by(C)
        self.assertTrue(former.cancelled)
        asked = self.asked()
        self.assertEqual(asked.member_id, C)
        self.renewed(asked, 60)
        self.assertEqual(self.successResultOf(renewal), 60)

    def test_nobody_leads(self) -> None:
        """The next leader is waited for, and the question goes to it."""
        self.member.lead_by(0)
        renewal = self.forward.renew(7)
        self.assertEqual(self.member.peers.take(), [])
        self.member.clock.advance(3)
        self.member.lead_by(C)
        self.renewed(self.asked(), 60)
        self.assertEqual(self.successResultOf(renewal), 60)

    def test_nobody_leads_for_long(self) -> None:
        """As etcd: no leader, after the time of a request."""
        self.member.lead_by(0)
        renewal = self.forward.renew(7)
        self.member.clock.advance(6.9)
        self.assertNoResult(renewal)
        self.member.clock.advance(0.1)
        self.failureResultOf(renewal, NoLeaderError)

    def test_this_member_is_elected(self) -> None:
        """It answers itself, once it has applied what its predecessors committed."""
        renewal = self.forward.renew(7)
        former = self.asked()
        self.member.lead_by(ME)
        self.assertTrue(former.cancelled)
        self.assertNoResult(renewal)
        self.member.lessor.grant(7, 60)
        self.member.leases.lead()
        self.assertEqual(self.successResultOf(renewal), 60)

    def test_this_member_is_elected_and_loses_again(self) -> None:
        """The question goes on to the next leader."""
        renewal = self.forward.renew(7)
        self.asked()
        self.member.lead_by(ME)
        self.member.lead_by(C)
        self.renewed(self.asked(), 60)
        self.assertEqual(self.successResultOf(renewal), 60)

    def test_this_member_loses_the_lead(self) -> None:
        """A renewal that waited for the quorum here is made by the new leader."""
        self.member.lead_by(ME)
        self.member.leases.lead()
        self.member.lessor.grant(7, 60)
        self.member.may_read = False
        renewal = self.forward.renew(7)
        self.assertNoResult(renewal)
        self.member.lead_by(B)
        self.renewed(self.asked(), 30)
        self.assertEqual(self.successResultOf(renewal), 30)

    def test_this_member_stops(self) -> None:
        """Who waits here is told."""
        self.member.lead_by(ME)
        self.member.leases.lead()
        self.member.lessor.grant(7, 60)
        self.member.may_read = False
        renewal = self.forward.renew(7)
        self.member.stop()
        self.failureResultOf(renewal, StoppedError)
        self.failureResultOf(self.forward.renew(7), StoppedError)

    def test_who_asked_is_gone(self) -> None:
        """Wherever the question is, it is given up, and nothing of it is left."""
        renewal = self.forward.renew(7)
        asked = self.asked()
        renewal.cancel()
        self.failureResultOf(renewal, CancelledError)
        self.assertTrue(asked.cancelled)

        renewal = self.forward.renew(7)
        self.asked().answer(500)  # it waits to ask again
        renewal.cancel()
        self.failureResultOf(renewal, CancelledError)

        self.member.lead_by(0)
        renewal = self.forward.renew(7)
        renewal.cancel()
        self.failureResultOf(renewal, CancelledError)

        self.member.lead_by(ME)
        renewal = self.forward.renew(7)
        renewal.cancel()
        self.failureResultOf(renewal, CancelledError)

        self.member.leases.lead()
        self.member.lessor.grant(7, 60)
        self.member.may_read = False
        renewal = self.forward.renew(7)
        renewal.cancel()
        self.failureResultOf(renewal, CancelledError)
        self.assertEqual(self.member.leader_changes, [])

    def test_a_flood(self) -> None:
        """So many questions at once wait for each other, not for the one that gets no answer."""
        renewals = [self.forward.renew(each) for each in range(1, 101)]
        silent, *rest = self.member.peers.take()
        self.assertEqual(len(rest), BRISK - 1)
        answered = 0
        while rest:
            for asked in rest:
                self.renewed(asked, 60, LeaseKeepAliveRequest.FromString(asked.body).ID)
                answered += 1
            rest = self.member.peers.take()
        self.assertEqual(answered, 99)
        self.assertEqual([self.successResultOf(each) for each in renewals[1:]], [60] * 99)
        self.renewed(silent, 60, 1)
        self.assertEqual(self.successResultOf(renewals[0]), 60)

    def test_a_flood_without_a_peer(self) -> None:
        """Questions that fail at once do not pile up on the stack."""
        self.member.peers.missing.add(B)
        renewals = [self.forward.renew(7) for _ in range(400)]
        self.member.clock.advance(7)
        for renewal in renewals:
            self.failureResultOf(renewal, RequestTimeoutError)


class TimeToLiveTests(ForwardTestCase):
    """etcd v3_server.go, LeaseTimeToLive."""

    def test_the_leader_is_asked(self) -> None:
        """By etcd's message; its empty header is not passed on."""
        question = self.forward.time_to_live(7, keys=True)
        asked = self.asked()
        self.assertEqual((asked.method, asked.path), ("POST", "/leases/internal"))
        request = LeaseInternalRequest.FromString(asked.body).LeaseTimeToLiveRequest
        self.assertEqual((request.ID, request.keys), (7, True))
        told = LeaseTimeToLiveResponse(header=ResponseHeader(), ID=7, TTL=5, grantedTTL=60, keys=[b"k"])
        asked.answer(200, LeaseInternalResponse(LeaseTimeToLiveResponse=told).SerializeToString())
        found = self.successResultOf(question)
        self.assertEqual((found.ID, found.TTL, found.grantedTTL, list(found.keys)), (7, 5, 60, [b"k"]))
        self.assertFalse(found.HasField("header"))

    def test_what_the_leader_does_not_know(self) -> None:
        """An unknown lease, and an answer about another one, which is asked again."""
        question = self.forward.time_to_live(7, keys=False)
        other = LeaseInternalResponse(LeaseTimeToLiveResponse=LeaseTimeToLiveResponse(ID=8))
        self.asked().answer(200, other.SerializeToString())
        self.member.clock.advance(RETRY_S)
        self.asked().answer(404, NOT_FOUND)
        self.failureResultOf(question, LeaseNotFoundError)

    def test_this_member_leads(self) -> None:
        """It answers itself."""
        self.member.lead_by(ME)
        self.member.leases.lead()
        self.member.lessor.grant(7, 60)
        self.assertEqual(self.successResultOf(self.forward.time_to_live(7, keys=False)).TTL, 60)


class WindowTests(SynchronousTestCase):
    """How many questions are on their way."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.window = Window(self.clock)
        self.open: list[Deferred[int]] = []

    def ask(self, count: int) -> list[Deferred[int]]:
        return [Deferred.fromCoroutine(self.window.ask(self.question)) for _ in range(count)]

    def question(self) -> Deferred[int]:
        self.open.append(Deferred())
        return self.open[-1]

    def test_slow_ones_make_room_for_others(self) -> None:
        """A few at a time, more while they take long, and never more than a bound."""
        answers = self.ask(200)
        self.assertEqual(len(self.open), BRISK)
        self.clock.advance(SLOW_S)
        self.assertEqual(len(self.open), 2 * BRISK)
        self.clock.pump([SLOW_S] * 100)
        self.assertEqual(len(self.open), MOST)
        for number in range(200):
            self.open[number].callback(number)  # in the order in which they were asked
        self.assertEqual([self.successResultOf(each) for each in answers], list(range(200)))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_one_that_fails_makes_room_too(self) -> None:
        """And who gives up before it could ask does not count."""
        answers = self.ask(BRISK + 2)
        answers[BRISK].cancel()
        self.failureResultOf(answers[BRISK], CancelledError)
        self.open[0].errback(ValueError("no"))
        self.failureResultOf(answers[0], ValueError)
        self.assertEqual(len(self.open), BRISK + 1)
        self.open[BRISK].callback(5)
        self.assertEqual(self.successResultOf(answers[BRISK + 1]), 5)

    def test_answers_that_are_there_at_once(self) -> None:
        """Thousands of them need no more of the stack than one."""
        self.ask(BRISK)
        answers = [Deferred.fromCoroutine(self.window.ask(lambda: succeed(1))) for _ in range(2000)]
        for each in list(self.open):
            each.callback(0)
        self.assertEqual(sum(map(self.successResultOf, answers)), 2000)
