"""The waiting room of proposals."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twistedkv import waiting
from twistedkv.errors import StoppedError
from twistedkv.v2request import PlainSet
from twistedkv.waiting import MOST_NOTED_BYTES, Outcome, WaitingRoom


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

    def test_a_note_is_taken_once(self) -> None:
        """By the bytes of its entry, be they the same object or not; another entry has none."""
        room = WaitingRoom(7.0)
        plain = [PlainSet(number, "/1/k", "v") for number in range(3)]
        for each in plain:
            room.note_set(b"entry %d" % each.ID, each)
        self.assertIsNone(room.take_set(b"entry 9"))
        self.assertIs(room.take_set(b"".join((b"entry", b" 1"))), plain[1])
        self.assertIsNone(room.take_set(b"entry 1"))
        self.assertEqual([room.take_set(b"entry %d" % number) for number in (2, 0)], [plain[2], plain[0]])
        self.assertIsNone(room.take_set(b"entry 0"))
        self.assertIsNone(WaitingRoom(7.0).take_set(b""))

    def test_notes_have_so_much_room(self) -> None:
        """When there is none for one more the others are forgotten; that is no loss but of time."""
        self.patch(waiting, "_MOST_SETS", 3)
        room = WaitingRoom(7.0)
        for number in range(5):
            room.note_set(b"%d" % number, PlainSet(number, "/1/k", "v"))
        found = [room.take_set(b"%d" % number) for number in range(5)]
        self.assertEqual([each and each.ID for each in found], [None, None, None, 3, 4])
        for number in range(5, 8):  # what was taken has left its place
            room.note_set(b"%d" % number, PlainSet(number, "/1/k", "v"))
        self.assertEqual([room.take_set(b"%d" % number) is None for number in range(5, 8)], [False] * 3)

    def test_a_long_entry_has_no_note(self) -> None:
        """It is not looked for, since that takes longer than to read it."""
        room = WaitingRoom(7.0)
        for length, noted in ((MOST_NOTED_BYTES, True), (MOST_NOTED_BYTES + 1, False)):
            room.note_set(b"x" * length, PlainSet(1, "/1/k", "v"))
            self.assertIs(room.take_set(b"x" * length) is not None, noted)

    def test_outcomes(self) -> None:
        """Something inside the member gets a Deferred of the answer or of the error."""
        answered, refused = Outcome(), Outcome()
        answered.reply(b"answer")
        refused.fail(StoppedError())
        self.assertEqual(self.successResultOf(answered.deferred), b"answer")
        self.failureResultOf(refused.deferred, StoppedError)
