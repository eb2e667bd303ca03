"""Leadership from one member to another."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.changingmember import ME, ChangingMember, learner, started
from twistedkv.errors import LeaderTransferTimeoutError, NotLeaderError
from twistedkv.handover import hand_over, transfer


class HandoverCase(SynchronousTestCase):
    """The leader of three voters and a learner."""

    def setUp(self) -> None:
        self.member = ChangingMember([started(ME), started(2), started(3), learner(4)])

    def tearDown(self) -> None:
        self.assertEqual((self.member.reactor.getDelayedCalls(), self.member.leader_changes), ([], []))


class TransferTests(HandoverCase):
    """One that was asked for."""

    def test_it_is_over_when_the_target_leads(self) -> None:
        """Neither the time without a leader nor another leader in between ends the waiting."""
        moved = transfer(self.member, 2, 7.0)
        self.assertEqual(self.member.transfers, [2])
        for leader in (0, 3, 0):
            self.member.lead_by(leader)
            self.assertNoResult(moved)
        self.member.lead_by(2)
        self.successResultOf(moved)

    def test_it_takes_too_long(self) -> None:
        """Raft gives it up in silence; who asked is told when the time is over."""
        moved = transfer(self.member, 2, 7.0)
        self.member.reactor.advance(6.9)
        self.assertNoResult(moved)
        self.member.reactor.advance(0.1)
        self.failureResultOf(moved, LeaderTransferTimeoutError)
        self.member.lead_by(2)  # late, and nobody hears of it

    def test_nobody_leads(self) -> None:
        """Then there is nothing to move."""
        self.member.leader = 0
        self.failureResultOf(transfer(self.member, 2, 7.0), NotLeaderError)

    def test_who_leads_already(self) -> None:
        """Nothing has to be waited for."""
        self.member.leader = 2
        self.successResultOf(transfer(self.member, 2, 7.0))

    def test_nobody_waits_any_more(self) -> None:
        """A client that leaves ends the waiting."""
        moved = transfer(self.member, 2, 7.0)
        moved.cancel()
        self.failureResultOf(moved, CancelledError)


class HandOverTests(HandoverCase):
    """What a leader does before it stops."""

    def hand_over(self) -> Deferred[None]:
        return Deferred.fromCoroutine(hand_over(self.member, 7.0))

    def test_to_the_voter_that_was_connected_for_the_longest_time(self) -> None:
        """A learner is none, and one that is down cannot lead."""
        self.member.peers.since_s.update({2: 500.0, 3: 400.0, 4: 300.0})
        done = self.hand_over()
        self.assertEqual(self.member.transfers, [3])
        self.assertNoResult(done)
        self.member.lead_by(3)
        self.successResultOf(done)
        self.member.lead_by(ME)
        del self.member.peers.since_s[3]
        done = self.hand_over()
        self.assertEqual(self.member.transfers, [3, 2])
        self.member.lead_by(2)
        self.successResultOf(done)

    def test_nobody_to_hand_over_to(self) -> None:
        """It stops all the same: without leading, without other voters, without a connection."""
        self.successResultOf(self.hand_over())
        self.member.peers.since_s[2] = 500.0
        self.member.leader = 2
        self.successResultOf(self.hand_over())
        self.member.leader = 0
        self.successResultOf(self.hand_over())
        self.member = ChangingMember([started(ME), learner(4)])
        self.member.peers.since_s[4] = 500.0
        self.successResultOf(self.hand_over())
        self.assertEqual(self.member.transfers, [])

    def test_it_does_not_succeed(self) -> None:
        """The member stops after that time, and the others elect a leader."""
        self.member.peers.since_s[2] = 500.0
        done = self.hand_over()
        self.member.reactor.advance(7)
        self.successResultOf(done)

    def test_it_fails_in_a_way_that_it_should_not(self) -> None:
        """What is wrong with the member does not keep it from stopping, but is logged."""
        self.member.peers.since_s[2] = 500.0

        def refuse(target: int) -> None:
            self.member.reactor.getDelayedCalls()[0].cancel()
            self.member.leader_changes.clear()
            raise LookupError(target)

        self.patch(self.member, "transfer_leader", refuse)
        self.successResultOf(self.hand_over())
        self.assertEqual(len(self.flushLoggedErrors(LookupError)), 1)
