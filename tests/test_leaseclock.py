"""The leader's time for leases, on a clock of the tests' own."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from twistedkv.errors import LeaseNotFoundError, TooManyRequestsError
from twistedkv.lease import Lessor
from twistedkv.leaseclock import CHECKPOINT_S, REVOKED_A_SCAN, LeaseClock
from twistedkv.metrics import LEASE_SECONDS, Distribution
from twistedkv.pb.raft_internal_pb2 import InternalRaftRequest


class LeaseClockTests(SynchronousTestCase):
    """Renewal, expiry and checkpoints. etcd semantics §7."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.now_s = 1000.0  # the monotonic one
        self.lessor = Lessor()
        self.proposed: list[InternalRaftRequest] = []
        self.answers: list[Deferred[bytes]] = []
        self.failures: list[Failure] = []
        self.leases = self.make()
        self.leases.start()
        self.leases.lead()

    def tearDown(self) -> None:
        self.leases.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.failures, [])

    def make(self, checkpoints: bool = False) -> LeaseClock:
        return LeaseClock(
            self.lessor,
            self.propose,
            self.clock,
            lambda: self.now_s,
            1.0,
            Distribution(LEASE_SECONDS),
            checkpoints,
            self.failures.append,
        )

    def propose(self, request: InternalRaftRequest) -> Deferred[bytes]:
        self.proposed.append(request)
        self.answers.append(Deferred())
        return self.answers[-1]

    def pass_s(self, seconds: float, step_s: float = 0.1) -> None:
        """Both clocks go on."""
        for _ in range(round(seconds / step_s)):
            self.now_s += step_s
            self.clock.advance(step_s)

    def revoked(self) -> list[int]:
        return [each.lease_revoke.ID for each in self.proposed if each.HasField("lease_revoke")]

    def test_a_lease_is_revoked_soon_after_its_time_and_never_before(self) -> None:
        """A lease that is not renewed is revoked within half a second of its end."""
        self.lessor.grant(7, 5)
        self.pass_s(4.9)
        self.assertEqual(self.revoked(), [])
        self.pass_s(0.6)
        self.assertEqual(self.revoked(), [7])

    def test_a_leader_is_certain_for_as_long_as_a_new_one_waits(self) -> None:
        """A quorum's word holds for the time that a new leader adds to every lease, from when it was asked for."""
        self.assertFalse(self.leases.is_certain)
        self.assertTrue(self.leases.wants_confirmation)
        asked_s = self.leases.now_s()
        self.now_s += 0.25
        self.leases.confirm(asked_s)
        self.assertEqual((self.leases.is_certain, self.leases.wants_confirmation), (True, False))
        self.leases.confirm(asked_s - 5)  # an answer that comes late takes nothing back
        self.now_s += 0.25
        self.assertEqual((self.leases.is_certain, self.leases.wants_confirmation), (True, True))
        self.now_s += 0.5
        self.assertFalse(self.leases.is_certain)

    def test_a_quorums_word_is_for_one_leader(self) -> None:
        """Who leads again asks again, and who follows takes no word for it."""
        self.leases.confirm(self.now_s)
        self.leases.follow()
        self.leases.confirm(self.now_s)
        self.assertFalse(self.leases.is_certain)
        self.leases.lead()
        self.assertFalse(self.leases.is_certain)

    def test_begin_and_end_of_leading_are_told(self) -> None:
        """Each is told after it has happened, and stopping is an end."""
        told: list[bool] = []
        self.leases.changes.append(lambda: told.append(self.leases.leading))
        self.leases.follow()
        self.leases.lead()
        self.leases.stop()
        self.assertEqual(told, [False, True, False])

    def test_waiting_for_the_end_of_a_lease(self) -> None:
        """Whoever waits is told of the revocation, of another leader and of the stop, unless it was taken back."""
        told: list[str] = []
        for end in (lambda: self.lessor.revoke(7), self.leases.follow, self.leases.stop):
            self.leases.lead()
            if 7 not in self.lessor:
                self.lessor.grant(7, 5)
            self.leases.when_over(7, lambda: told.append("stays"))
            cancel = self.leases.when_over(7, lambda: told.append("goes"))
            cancel()
            cancel()
            end()
        self.assertEqual(told, ["stays"] * 3)

    def test_the_wall_clock_ends_no_lease(self) -> None:
        """Setting the machine's clock forward by a day ends nothing: time is what passed, not what a clock says."""
        self.lessor.grant(7, 5)
        self.clock.advance(86_400)
        self.assertEqual(self.revoked(), [])

    def test_renewals_keep_a_lease(self) -> None:
        """As long as it is renewed in time a lease lives, each time for all of its TTL."""
        self.lessor.grant(7, 5)
        for _ in range(10):
            self.pass_s(4)
            self.assertEqual(self.leases.renew(7), 5)
        self.pass_s(4.9)
        self.assertEqual(self.revoked(), [])
        self.pass_s(1)
        self.assertEqual(self.revoked(), [7])
        self.assertEqual(self.leases.renewed, 10)

    def test_an_unknown_lease_cannot_be_renewed(self) -> None:
        """It has no time."""
        self.assertRaises(LeaseNotFoundError, self.leases.renew, 7)

    def test_what_has_ended_is_not_renewed(self) -> None:
        """A lease past its end waits for its revocation, and whoever wants to renew it is told when that is done."""
        self.lessor.grant(7, 5)
        self.pass_s(5)
        told: list[str] = []
        self.assertIsNone(self.leases.renew(7))
        self.leases.when_over(7, lambda: told.append("first"))
        self.leases.when_over(7, lambda: told.append("second"))
        self.pass_s(1)
        self.assertEqual(told, [])
        self.lessor.revoke(7)
        self.assertEqual(told, ["first", "second"])
        self.assertRaises(LeaseNotFoundError, self.leases.renew, 7)

    def test_an_expired_lease_is_proposed_once_and_again_if_that_fails(self) -> None:
        """However long the commit takes a lease is not proposed at every look, and one that failed is tried again."""
        self.lessor.grant(7, 5)
        self.pass_s(7)
        self.assertEqual(self.revoked(), [7])
        self.answers[0].errback(TooManyRequestsError())
        self.pass_s(2)
        self.assertEqual(self.revoked(), [7, 7])
        self.answers[1].callback(b"")
        self.lessor.revoke(7)
        self.pass_s(10)
        self.assertEqual((self.revoked(), self.leases.expired), ([7, 7], 1))

    def test_somebody_else_may_revoke_it_first(self) -> None:
        """A lease that a client revokes at that moment is no failure, and no expiry either."""
        self.lessor.grant(7, 5)
        self.pass_s(5.5)
        self.lessor.revoke(7)
        self.answers[0].errback(LeaseNotFoundError())
        self.pass_s(10)
        self.assertEqual((self.revoked(), self.leases.expired), ([7], 0))

    def test_many_that_end_together_are_spread(self) -> None:
        """A look has a bounded number revoked; the next ones follow."""
        for lease_id in range(1, 2 * REVOKED_A_SCAN + 2):
            self.lessor.grant(lease_id, 5)
        self.pass_s(5.5)
        self.assertEqual(len(self.revoked()), REVOKED_A_SCAN)
        self.pass_s(1)
        self.assertEqual(len(set(self.revoked())), 2 * REVOKED_A_SCAN + 1)

    def test_only_a_leader_ends_leases(self) -> None:
        """A member that does not lead revokes nothing, and who waits for an end is sent to ask again."""
        self.lessor.grant(7, 5)
        self.pass_s(5)
        told: list[str] = []
        self.leases.when_over(7, lambda: told.append("ask again"))
        self.leases.follow()
        self.assertEqual(told, ["ask again"])
        self.pass_s(20)
        self.assertEqual((self.revoked(), self.leases.leading), ([], False))

    def test_a_new_leader_gives_every_lease_all_of_its_time(self) -> None:
        """It knows of no renewals, so each lease begins anew, with an election timeout on top."""
        self.lessor.grant(7, 5)
        self.pass_s(4)
        self.leases.follow()
        self.leases.lead()
        self.assertEqual(self.leases.remaining_s(7), 6.0)
        self.pass_s(5.9)
        self.assertEqual(self.revoked(), [])
        self.pass_s(0.6)
        self.assertEqual(self.revoked(), [7])

    def test_a_checkpoint_is_where_a_new_leader_goes_on(self) -> None:
        """A lease whose remaining time was logged gets that, not all of it."""
        self.lessor.grant(7, 900)
        self.lessor.checkpoint(7, 400)
        self.leases.lead()
        self.assertEqual(self.leases.remaining_s(7), 401.0)

    def test_leases_are_listed_by_their_end(self) -> None:
        """The first to end comes first; on a member that does not lead, by what they were granted."""
        for lease_id, ttl_s in ((1, 30), (2, 10), (3, 20)):
            self.lessor.grant(lease_id, ttl_s)
        self.assertEqual(self.leases.by_end(), [2, 3, 1])
        self.pass_s(9)
        self.leases.renew(2)
        self.assertEqual(self.leases.by_end(), [2, 3, 1])
        self.pass_s(3)
        self.leases.renew(1)
        self.leases.renew(2)
        self.assertEqual(self.leases.by_end(), [3, 2, 1])
        self.leases.follow()
        self.assertEqual(self.leases.by_end(), [2, 3, 1])

    def test_how_long_leases_have_left_is_logged(self) -> None:
        """With checkpoints on, every five minutes the leases with more than that left are logged, once renewed anew."""
        self.leases.stop()
        self.leases = self.make(checkpoints=True)
        self.leases.start()
        self.leases.lead()
        self.lessor.grant(1, 900)
        self.lessor.grant(2, 310)
        self.pass_s(CHECKPOINT_S, 0.5)
        (request,) = self.proposed
        (checkpoint,) = request.lease_checkpoint.checkpoints
        self.assertEqual((checkpoint.ID, checkpoint.remaining_TTL), (1, 600))
        self.lessor.checkpoint(1, 600)
        self.leases.renew(1)
        (checkpoint,) = self.proposed[-1].lease_checkpoint.checkpoints
        self.assertEqual((checkpoint.ID, checkpoint.remaining_TTL), (1, 0))
        self.lessor.checkpoint(1, 0)
        self.leases.renew(1)
        self.assertEqual(len(self.proposed), 2)

    def test_no_lease_is_a_timer(self) -> None:
        """A hundred thousand leases add no delayed call, and a look at them while none has ended looks at one."""
        before = len(self.clock.getDelayedCalls())
        for lease_id in range(1, 100_001):
            self.lessor.grant(lease_id, 600)
        self.assertEqual(len(self.clock.getDelayedCalls()), before)
        self.pass_s(60, 0.5)
        self.assertEqual(self.proposed, [])
