"""The lessor of a leader: certain that it leads, and not behind what was committed."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.localmember import LocalMember
from twistedkv.errors import LeaderChangedError, LeaseNotFoundError, RequestTimeoutError
from twistedkv.leaseprimary import NotPrimaryError, PrimaryLessor, until
from twistedkv.pb.rpc_pb2 import LeaseTimeToLiveResponse


class PrimaryTestCase(SynchronousTestCase):
    """A leader of several voters, with leases 7 and 8."""

    def setUp(self) -> None:
        self.member = LocalMember()
        self.addCleanup(self.member.stop)
        self.member.may_read = False  # it has to ask the others
        for lease_id, ttl_s in ((7, 5), (8, 60)):
            self.member.lessor.grant(lease_id, ttl_s)
        self.primary = PrimaryLessor(self.member)

    def renew(self, lease_id: int = 7) -> Deferred[int]:
        return Deferred.fromCoroutine(self.primary.renew(lease_id))

    def time_to_live(self, lease_id: int, keys: bool = False) -> Deferred[LeaseTimeToLiveResponse]:
        return Deferred.fromCoroutine(self.primary.time_to_live(lease_id, keys))


class CertaintyTests(PrimaryTestCase):
    """A renewal holds only if no other member leads. etcd-io/etcd#20418, #20813."""

    def test_a_leader_asks_before_it_renews(self) -> None:
        """The first renewal waits for the quorum; those behind it wait for the same answer."""
        self.assertIsNone(self.primary.renew_at_once(7))
        renewals = [self.renew(7), self.renew(8)]
        self.assertEqual(len(self.member.readers), 1)
        for renewal in renewals:
            self.assertNoResult(renewal)
        self.member.confirm()
        self.assertEqual([self.successResultOf(each) for each in renewals], [5, 60])

    def test_a_quorums_word_serves_many(self) -> None:
        """For a while renewals are answered at once, and the quorum is asked again before that while is over."""
        self.renew()
        self.member.confirm()
        self.assertEqual(self.primary.renew_at_once(7), 5)
        self.member.clock.advance(0.6)
        self.assertEqual(self.primary.renew_at_once(7), 5)
        self.assertEqual(self.primary.renew_at_once(7), 5)
        self.assertEqual(len(self.member.readers), 1)
        self.member.confirm()
        self.member.clock.advance(0.6)
        self.assertEqual(self.primary.renew_at_once(8), 60)

    def test_a_leader_that_was_stopped_confirms_nothing(self) -> None:
        """Its process slept while others elected another leader: the word it had is too old, and no new one comes."""
        self.renew()
        self.member.confirm()
        self.member.clock.rightNow += 20  # nothing of it ran
        self.assertIsNone(self.primary.renew_at_once(8))
        renewal = self.renew(8)
        self.assertNoResult(renewal)
        self.member.lead_by(0xB)
        self.failureResultOf(renewal, NotPrimaryError)
        self.member.confirm()  # by the new leader
        self.assertIsNone(self.primary.renew_at_once(8))
        self.assertEqual(self.member.leases.renewed, 1)

    def test_an_answer_of_another_term_counts_for_nothing(self) -> None:
        """Who lost the lead and won it again has to ask again."""
        renewal = self.renew()
        self.member.term += 2
        self.member.confirm()
        self.assertNoResult(renewal)
        self.member.confirm()
        self.assertEqual(self.successResultOf(renewal), 5)

    def test_an_answer_that_took_too_long(self) -> None:
        """What the quorum said is as old as the question."""
        renewal = self.renew()
        self.member.clock.advance(1.5)
        self.member.confirm()
        self.assertNoResult(renewal)
        self.member.confirm()
        self.assertEqual(self.successResultOf(renewal), 5)

    def test_a_quorum_that_does_not_answer(self) -> None:
        """Whoever waits hears why, and the next one asks anew."""
        renewal = self.renew()
        self.member.refusals.pop()(RequestTimeoutError())
        self.failureResultOf(renewal, RequestTimeoutError)
        renewal = self.renew()
        self.member.refusals.pop()(LeaderChangedError())
        self.assertNoResult(renewal)
        self.member.confirm()
        self.assertEqual(self.successResultOf(renewal), 5)

    def test_a_sole_voter_asks_nobody(self) -> None:
        """It knows by itself that it leads."""
        self.member.may_read = True
        for _ in range(3):
            self.assertEqual(self.primary.renew_at_once(7), 5)
            self.member.clock.advance(2)
        self.assertEqual(self.successResultOf(self.time_to_live(8)).TTL, 54)

    def test_a_member_that_follows(self) -> None:
        """It counts no time; nor does one that was elected and has not applied the log yet."""
        self.member.lead_by(0xB)
        self.assertIsNone(self.primary.renew_at_once(7))
        self.failureResultOf(self.renew(), NotPrimaryError)
        self.failureResultOf(self.time_to_live(7), NotPrimaryError)
        self.assertEqual(str(NotPrimaryError()), "not a primary lessor")


class AppliedTests(PrimaryTestCase):
    """What is committed may have been answered by another member already."""

    def setUp(self) -> None:
        super().setUp()
        self.member.may_read = True
        self.member.applied, self.member.committed = 8, 9

    def apply(self, index: int) -> None:
        self.member.applied = index
        self.member.apply_wait.applied(index)

    def test_a_revocation_on_its_way(self) -> None:
        """A lease that is revoked by an entry not applied yet is not renewed."""
        self.assertIsNone(self.primary.renew_at_once(7))
        renewal = self.renew()
        self.assertNoResult(renewal)
        self.member.lessor.revoke(7)
        self.apply(9)
        self.failureResultOf(renewal, LeaseNotFoundError)

    def test_a_grant_on_its_way(self) -> None:
        """A lease that another member has applied already is found."""
        question = self.time_to_live(9)
        self.assertNoResult(question)
        self.member.lessor.grant(9, 30)
        self.apply(9)
        self.assertEqual(self.successResultOf(question).grantedTTL, 30)

    def test_what_is_committed_later_is_not_waited_for(self) -> None:
        """Else a busy leader would never answer."""
        renewal = self.renew()
        self.member.committed = 20
        self.apply(9)
        self.assertEqual(self.successResultOf(renewal), 5)

    def test_the_lead_is_lost_meanwhile(self) -> None:
        """Nobody is left waiting."""
        renewal = self.renew()
        self.member.lead_by(0)
        self.failureResultOf(renewal, NotPrimaryError)
        self.apply(9)


class EndedTests(PrimaryTestCase):
    """A lease that has ended, and is not revoked yet."""

    def setUp(self) -> None:
        super().setUp()
        self.member.may_read = True
        self.member.holding = True
        self.member.clock.advance(5)
        self.assertIsNone(self.primary.renew_at_once(7))
        self.renewal = self.renew()
        self.assertNoResult(self.renewal)

    def test_it_is_gone_when_it_is_revoked(self) -> None:
        """Not before: its keys are there until then."""
        self.member.clock.advance(0.5)
        self.assertNoResult(self.renewal)
        self.member.commit()
        self.failureResultOf(self.renewal, LeaseNotFoundError)

    def test_another_leader_may_let_it_live(self) -> None:
        """So who asked has to ask that one."""
        self.member.lead_by(0xB)
        self.failureResultOf(self.renewal, NotPrimaryError)

    def test_who_asked_is_gone(self) -> None:
        """Nothing is told any more."""
        self.renewal.cancel()
        self.failureResultOf(self.renewal)
        self.member.clock.advance(0.5)
        self.member.commit()
        self.assertNotIn(7, self.member.lessor)


class TimeToLiveTests(PrimaryTestCase):
    """What is told of a lease."""

    def test_what_is_left(self) -> None:
        """Whole seconds, towards zero, and the keys if they are asked for."""
        self.member.may_read = True
        self.member.lessor.attach(8, b"k")
        self.member.clock.advance(0.5)
        found = self.successResultOf(self.time_to_live(8, keys=True))
        self.assertEqual((found.ID, found.TTL, found.grantedTTL, list(found.keys)), (8, 59, 60, [b"k"]))
        self.assertEqual(list(self.successResultOf(self.time_to_live(8)).keys), [])
        self.failureResultOf(self.time_to_live(9), LeaseNotFoundError)


class UntilTests(SynchronousTestCase):
    """A Deferred in place of a callback."""

    def setUp(self) -> None:
        self.tells: list[Callable[[], None]] = []
        self.taken_back = 0

    def begin(self, tell: Callable[[], None]) -> Callable[[], None]:
        self.tells.append(tell)
        return self.take_back

    def begin_and_tell(self, tell: Callable[[], None]) -> Callable[[], None]:
        tell()
        return self.take_back

    def take_back(self) -> None:
        self.taken_back += 1

    def test_it_fires_when_it_is_told(self) -> None:
        """At once or later; to be told twice does nothing."""
        self.successResultOf(until(self.begin_and_tell))
        waiting = until(self.begin)
        self.assertNoResult(waiting)
        self.tells[0]()
        self.tells[0]()
        self.successResultOf(waiting)
        self.assertEqual(self.taken_back, 0)

    def test_it_can_be_taken_back(self) -> None:
        """To be told afterwards does nothing."""
        waiting = until(self.begin)
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.tells[0]()
        self.assertEqual(self.taken_back, 1)
