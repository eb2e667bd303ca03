"""The waiting room of proposals."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twistedkv.errors import StoppedError
from twistedkv.waiting import Outcome, WaitingRoom


class WaitingRoomTests(SynchronousTestCase):
    """Who waits, and for how long."""

    def test_each_is_told_once(self) -> None:
        """Who is taken waits no more; requests of other members have nobody here."""
        room, waiter = WaitingRoom(7.0), Outcome()
        room.add(1, waiter, 0.0)
        self.assertIsNone(room.take(2))
        self.assertIs(room.take(1), waiter)
        self.assertIsNone(room.take(1))
        self.assertEqual(len(room), 0)

    def test_time_is_up_for_the_oldest_first(self) -> None:
        """After the time-out, and not before, those who waited as long are let go, and the others stay."""
        room = WaitingRoom(7.0)
        waiters = [Outcome() for _ in range(4)]
        for number, waiter in enumerate(waiters):
            room.add(number, waiter, float(number))
        self.assertEqual(room.expired(6.9), [])
        self.assertEqual(room.expired(8.0), list(enumerate(waiters[:2])))
        self.assertEqual(room.expired(8.0), [])
        self.assertEqual(room.empty(), waiters[2:])
        self.assertEqual(len(room), 0)

    def test_those_of_a_former_leader_are_let_go_together(self) -> None:
        """All requests up to an id are taken, later ones stay."""
        room = WaitingRoom(7.0)
        waiters = [Outcome() for _ in range(4)]
        for number, waiter in enumerate(waiters, 10):
            room.add(number, waiter, 0.0)
        self.assertEqual(room.up_to(11), waiters[:2])
        self.assertEqual(room.up_to(11), [])
        self.assertEqual(room.empty(), waiters[2:])

    def test_outcomes(self) -> None:
        """Something inside the member gets a Deferred of the answer or of the error."""
        answered, refused = Outcome(), Outcome()
        answered.reply(b"answer")
        refused.fail(StoppedError())
        self.assertEqual(self.successResultOf(answered.deferred), b"answer")
        self.failureResultOf(refused.deferred, StoppedError)
