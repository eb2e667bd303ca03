"""Snapshots for members that are far behind: made one at a time, delivered, and the log that waits for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import google_crc32c
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.nopeers import NoPeers
from tests.station import HeldWorker, Station, UnreadableMemory
from tests.wires import founder
from twistedkv.outgoing import KEPT_S, OutgoingSnapshots
from twistedkv.raft.messages import Message, MessageType
from twistedkv.storage.backend import BackendError
from twistedkv.storage.bbolt import BoltReader
from twistedkv.v2text import decode

ME, OTHER, THIRD = 1, 2, 3
CATCH_UP = 5


class Deliveries(NoPeers):
    """Keeps the snapshots that are to be delivered."""

    def __init__(self, receiver: Any) -> None:
        super().__init__(receiver)
        self.snapshots: list[tuple[Message, Callable[[], Iterator[bytes]], int]] = []

    def send_snapshot(self, message: Message, chunks: Callable[[], Iterator[bytes]], crc32c: int) -> None:
        self.snapshots.append((message, chunks, crc32c))


class OutgoingTests(SynchronousTestCase):
    """A member alone, whose state is copied for two that are not there."""

    def setUp(self) -> None:
        self.clock = Clock()
        options = {"snapshot-catchup-entries": str(CATCH_UP)}
        self.station = Station(ME, Path(self.mktemp()), [founder(ME)], options)
        self.backend = self.station.backend = UnreadableMemory()
        self.member = self.station.open(self.clock, NoPeers)
        self.member.start()
        self.clock.advance(0)
        self.clock.advance(0)
        self.peers = Deliveries(None)
        self.is_wanted = True
        self.failed: list[int] = []
        self.copies = Path(self.mktemp())
        self.copies.mkdir()
        self.outgoing = self.make(self.copies)
        assert isinstance(self.station.worker, HeldWorker)
        self.worker = self.station.worker
        self.put(3)

    def tearDown(self) -> None:
        self.outgoing.stop()
        self.worker.release()
        self.successResultOf(Deferred.fromCoroutine(self.member.stop()))
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(list(self.copies.iterdir()), [])

    def make(self, directory: Path) -> OutgoingSnapshots:
        return OutgoingSnapshots(
            self.member,
            directory,
            self.member._keeper,
            self.peers,
            lambda message: self.is_wanted,
            self.failed.append,
            self.member.later,
        )

    def put(self, count: int) -> None:
        for _ in range(count):
            self.station.put(b"k")
            self.clock.advance(0)

    def send(self, member: int = OTHER) -> Message:
        message = Message(MessageType.SNAPSHOT, member, sender=ME, term=self.member.term)
        self.outgoing.send(message)
        return message

    def assert_log_kept(self, kept: bool) -> None:
        """Whether the log grows now, however much is written."""
        self.put(3 * CATCH_UP)
        held = self.member._node.log.last_index - self.member._node.log.compacted
        self.assertEqual(held > 2 * CATCH_UP + 1, kept, held)

    def test_a_copy_is_sent(self) -> None:
        """What goes out is the whole state as of the index that its message names, members and all, with a checksum."""
        message = self.send()
        ((sent, chunks, crc32c),) = self.peers.snapshots
        self.assertIs(sent, message)
        assert message.snapshot is not None
        self.assertEqual(message.snapshot.meta.index, self.member.applied)
        self.assertEqual(message.snapshot.meta.conf_state.voters, (ME,))
        self.assertEqual(decode(message.snapshot.data).facts.membership.members.keys(), {ME})
        data = b"".join(chunks())
        self.assertEqual(google_crc32c.value(data), crc32c)
        self.assertEqual(len(list(BoltReader(data).items(b"key"))), 3)
        self.outgoing.over(OTHER)

    def test_one_for_a_member_at_a_time(self) -> None:
        """While one is made or delivered another one for the same member is not, and after that it is."""
        self.worker.held = True
        self.send()
        self.send()
        self.worker.release()
        self.send()
        self.assertEqual(len(self.peers.snapshots), 1)
        self.outgoing.over(OTHER)
        self.outgoing.over(OTHER)
        self.send()
        self.assertEqual(len(self.peers.snapshots), 2)

    def test_copies_are_made_one_after_the_other(self) -> None:
        """For two members at once one copy is begun when the other one is complete: each is a file."""
        self.worker.held = True
        self.send(OTHER)
        self.send(THIRD)
        self.assertEqual(len(self.worker.queue), 1)
        while not self.peers.snapshots:
            self.worker.step()
        self.assertEqual([sent.to for sent, _, _ in self.peers.snapshots], [OTHER])
        self.worker.release()
        self.assertEqual([sent.to for sent, _, _ in self.peers.snapshots], [OTHER, THIRD])

    def test_the_log_waits(self) -> None:
        """While a snapshot is on its way the log keeps what follows it, and half a minute after it was delivered."""
        self.assert_log_kept(False)
        self.send()
        self.assert_log_kept(True)
        self.outgoing.over(OTHER, delivered=True)
        self.clock.advance(KEPT_S - 1)
        self.assert_log_kept(True)
        self.clock.advance(1)
        self.assert_log_kept(False)

    def test_the_log_waits_for_nothing_that_was_lost(self) -> None:
        """A delivery that failed, or a member that is gone, keeps no log."""
        self.send(OTHER)
        self.send(THIRD)
        self.outgoing.over(OTHER)
        self.assert_log_kept(True)
        self.outgoing.over(THIRD)
        self.assert_log_kept(False)

    def test_one_that_is_not_wanted_any_more(self) -> None:
        """A copy that became useless while it was made is dropped, and Raft is told."""
        self.worker.held = True
        self.send()
        self.worker.step()
        self.is_wanted = False
        self.worker.release()
        self.assertEqual((self.peers.snapshots, self.failed), ([], [OTHER]))
        self.assert_log_kept(False)

    def test_one_that_became_useless_when_it_was_complete(self) -> None:
        """A copy whose use ends with its last step is not sent either."""
        wanted = iter([True] * 5 + [False] * 9)  # before it; before each of its four steps; at the end
        self.outgoing._wanted = lambda message: next(wanted)
        self.send()
        self.assertEqual((self.peers.snapshots, self.failed), ([], [OTHER]))

    def test_one_whose_term_is_over_before_it_begins(self) -> None:
        """A copy that waited for its turn for too long is not begun."""
        self.worker.held = True
        self.send(OTHER)
        self.send(THIRD)
        self.is_wanted = False
        self.worker.release()
        self.assertEqual(self.peers.snapshots, [])
        self.assertEqual(sorted(self.failed), [OTHER, THIRD])

    def test_a_member_that_goes_while_its_copy_is_made(self) -> None:
        """For a member that was removed nothing is sent, and nothing is told: Raft knows."""
        self.worker.held = True
        self.send()
        self.worker.step()
        self.outgoing.over(OTHER)
        self.worker.release()
        self.assertEqual((self.peers.snapshots, self.failed), ([], []))

    def test_no_room_for_a_copy(self) -> None:
        """Without room for its file a snapshot fails, and Raft is told so that it asks again."""
        self.outgoing = self.make(self.copies / "missing")
        self.send()
        self.assertEqual((self.peers.snapshots, self.failed), ([], [OTHER]))
        self.assert_log_kept(False)

    def test_a_database_that_cannot_be_read(self) -> None:
        """When the database fails the snapshot does, and the next one may succeed."""
        self.backend.error = BackendError("the disk is gone")
        self.send()
        self.assertEqual((self.peers.snapshots, self.failed), ([], [OTHER]))
        self.backend.error = None
        self.send()
        self.assertEqual(len(self.peers.snapshots), 1)

    def test_a_failure_of_our_own(self) -> None:
        """What must not happen is logged; the member gets another snapshot when Raft asks again, and no log is kept."""
        self.backend.error = RuntimeError("a mistake")
        self.send()
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual((self.peers.snapshots, self.failed), ([], [OTHER]))
        self.assert_log_kept(False)
        self.backend.error = None
        self.send()
        self.assertEqual(len(self.peers.snapshots), 1)

    def test_the_end(self) -> None:
        """When the member stops, copies are given up wherever they are, their files go, and none is begun."""
        self.send(OTHER)
        self.worker.held = True
        self.send(THIRD)
        self.worker.step()
        self.outgoing.stop()
        self.send(OTHER)
        self.worker.release()
        ((_, chunks, _),) = self.peers.snapshots
        with self.assertRaises(ValueError):  # of a closed file
            next(chunks())
        self.assertEqual(self.failed, [])
