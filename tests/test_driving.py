"""The drive loop, in a member whose peers are not there: what waits for the disk and what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.nopeers import NoPeers
from tests.station import HeldWorker, Station
from tests.wires import founder
from twistedkv.errors import InvariantError, StoppedError
from twistedkv.raft.messages import Entry, Message, MessageType, Snapshot, SnapshotMeta

ME, LEADER = 1, 2


class DrivingCase(SynchronousTestCase):
    """Member 1, of three or alone."""

    size = 3

    def setUp(self) -> None:
        self.clock = Clock()
        self.station = Station(ME, Path(self.mktemp()), [founder(each) for each in range(1, self.size + 1)])
        self.member = self.station.open(self.clock, NoPeers)
        peers = self.member.peers
        assert isinstance(peers, NoPeers)
        self.peers = peers
        self.driving = self.member._driving
        self.member.start()
        self.clock.advance(0)
        self.clock.advance(0)

    def tearDown(self) -> None:
        if not self.member.stopped:
            stopped = Deferred.fromCoroutine(self.member.stop())
            for worker in (self.station.wal_worker, self.station.worker):
                assert isinstance(worker, HeldWorker)
                worker.release()
            self.successResultOf(stopped)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def turn(self) -> list[MessageType]:
        """A turn of the reactor; returns the types of what was sent."""
        self.peers.sent.clear()
        self.clock.advance(0)
        return [message.type for message in self.peers.sent]

    def hear(self, kind: MessageType, **fields: Any) -> None:
        """A message from the leader of term 2."""
        self.member.step(Message(kind, ME, sender=LEADER, term=2, **fields))

    def append(self, *datas: bytes, commit: int = 3) -> None:
        """The leader's next entries."""
        log = self.member._node.log
        last = log.last_index
        entries = [Entry(2, index, data) for index, data in enumerate(datas, last + 1)]
        self.hear(MessageType.APPEND, index=last, log_term=log.last_term, entries=entries, commit=commit)


class FollowerTests(DrivingCase):
    """What a follower does with what its leader says."""

    def test_many_messages_of_a_turn_are_one_batch(self) -> None:
        """What comes in a turn of the reactor is written and answered together, at its end."""
        for data in (b"", b"a", b"b"):
            self.append(data)
        before = self.station.disk.syncs
        self.assertEqual(self.turn(), [MessageType.APPEND_RESPONSE] * 3)
        self.assertEqual(self.station.disk.syncs, before + 1)

    def test_nothing_is_acknowledged_before_it_is_durable(self) -> None:
        """While the disk works heartbeats are answered, and appends and votes are not."""
        self.turn()
        worker = self.station.slow_disk()
        self.append(b"")
        self.assertEqual(self.turn(), [])
        self.hear(MessageType.HEARTBEAT, commit=3)
        self.append(b"")
        self.member.step(Message(MessageType.PRE_VOTE, ME, sender=3, term=1, index=1, log_term=1))
        self.assertEqual(self.turn(), [MessageType.HEARTBEAT_RESPONSE])
        self.peers.sent.clear()
        worker.step()
        self.assertEqual([message.type for message in self.peers.sent], [MessageType.APPEND_RESPONSE])
        self.peers.sent.clear()
        worker.step()
        kinds = {message.type for message in self.peers.sent}
        self.assertEqual(kinds, {MessageType.APPEND_RESPONSE, MessageType.PRE_VOTE_RESPONSE})

    def test_a_commit_index_alone_costs_no_sync(self) -> None:
        """What is committed is applied at once; that it is needs no disk of its own."""
        self.append(b"")
        self.turn()
        before = self.station.disk.syncs
        self.hear(MessageType.HEARTBEAT, commit=4)
        self.turn()
        self.assertEqual((self.member.applied, self.station.disk.syncs), (4, before))

    def test_what_is_committed_and_durable_does_not_wait(self) -> None:
        """Entries that are on the disk already are applied while further ones are being written."""
        self.append(b"")
        self.turn()
        worker = self.station.slow_disk()
        self.append(b"", commit=4)
        self.turn()
        self.assertEqual(self.member.applied, 4)
        self.assertTrue(worker.queue)
        worker.release()
        self.assertEqual(self.member.applied, 4)
        self.hear(MessageType.HEARTBEAT, commit=5)
        self.turn()
        self.assertEqual(self.member.applied, 5)

    def test_what_is_committed_and_not_durable_waits(self) -> None:
        """Entries that come together with the news that they are committed are applied when they are on the disk."""
        worker = self.station.slow_disk()
        self.append(b"", b"", commit=5)
        self.turn()
        self.assertEqual(self.member.applied, 3)
        worker.release()
        self.assertEqual(self.member.applied, 5)

    def test_a_message_that_cannot_be(self) -> None:
        """A leader that says more is committed than this member has, and has acknowledged, stops it."""
        self.hear(MessageType.HEARTBEAT, commit=99)
        self.assertEqual([type(each) for each in self.station.failures], [InvariantError])
        self.flushLoggedErrors(InvariantError)
        self.assertTrue(self.member.stopped)

    def test_an_error_in_the_loop(self) -> None:
        """An entry that cannot be carried out stops the member, and does not leave it half alive."""
        put = self.station.put(b"k")
        self.append(b"\xff")
        self.turn()
        self.hear(MessageType.HEARTBEAT, commit=4)
        self.turn()
        self.assertEqual([type(each) for each in self.station.failures], [InvariantError])
        self.flushLoggedErrors(InvariantError)
        self.assertIsInstance(put.error, StoppedError)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_after_the_end(self) -> None:
        """Whatever is said, stirred or becomes durable after the end: nothing follows from it."""
        worker = self.station.slow_disk()
        self.append(b"", b"", commit=5)
        self.turn()
        self.append(b"")
        self.member.leave()
        self.peers.sent.clear()
        self.append(b"")
        self.member.stirred()
        self.driving.stir()
        worker.release()
        self.clock.advance(1)
        self.assertEqual((self.peers.sent, self.member.applied), ([], 3))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stopped_by_itself(self) -> None:
        """A loop that is stopped takes nothing further from Raft, not even when the disk is done; twice is no error."""
        worker = self.station.slow_disk()
        self.append(b"", b"", commit=5)
        self.turn()
        self.driving.stop()
        self.driving.stop()
        worker.release()
        self.assertEqual(self.member.applied, 3)

    def test_a_snapshot_that_raft_has_no_use_for(self) -> None:
        """A snapshot of what the member has already is not installed, and its file goes."""
        self.append(b"", b"", commit=5)
        self.turn()
        directory = self.station.directory / "incoming"
        self.member._incoming._examine = lambda *_: None
        meta = SnapshotMeta(4, 2, self.member.membership.conf_state())
        message = Message(MessageType.SNAPSHOT, ME, sender=LEADER, term=2, snapshot=Snapshot(meta))
        receiving = self.member._replication.snapshot_begin(message, None)
        self.successResultOf(receiving.write(b"state"))
        self.successResultOf(receiving.finish())
        self.assertEqual(len(list(directory.iterdir())), 1)
        self.assertEqual(self.turn(), [MessageType.APPEND_RESPONSE])
        self.assertEqual(list(directory.iterdir()), [])
        self.assertFalse(self.member._installation.busy)

    def test_a_snapshot_whose_database_is_not_here(self) -> None:
        """A message of a snapshot that did not come by the way of snapshots stops the member."""
        conf_state = self.member.membership.conf_state()
        self.hear(MessageType.SNAPSHOT, snapshot=Snapshot(SnapshotMeta(50, 2, conf_state)))
        self.turn()
        self.assertEqual([type(each) for each in self.station.failures], [InvariantError])
        self.flushLoggedErrors(InvariantError)

    def test_reads_without_a_leader_are_asked_later(self) -> None:
        """A read that nobody can be asked about is asked as soon as somebody leads."""
        read = self.station.read()
        self.assertNotIn(MessageType.READ_INDEX, self.turn())
        self.clock.advance(0.1)
        self.assertNotIn(MessageType.READ_INDEX, self.turn())
        self.hear(MessageType.HEARTBEAT)
        self.turn()
        questions = [message for message in self.peers.sent if message.type is MessageType.READ_INDEX]
        self.assertEqual({message.to for message in questions}, {LEADER})
        self.hear(MessageType.READ_INDEX_RESPONSE, index=3, entries=questions[-1].entries)
        self.turn()
        self.assertTrue(read.done)
        self.assertIsNone(read.error)

    def test_a_read_while_the_disk_works(self) -> None:
        """A read is asked and answered while the disk is busy, if the state has all that it is to see."""
        self.hear(MessageType.HEARTBEAT)
        self.turn()
        worker = self.station.slow_disk()
        self.append(b"")
        self.turn()
        self.assertTrue(worker.queue)
        read = self.station.read()
        self.assertEqual(self.turn(), [MessageType.READ_INDEX])
        (question,) = self.peers.sent
        self.hear(MessageType.READ_INDEX_RESPONSE, index=3, entries=question.entries)
        self.turn()
        self.assertIsNone(read.error)
        self.assertTrue(read.done)
        worker.release()

    def test_a_read_that_is_confirmed_together_with_an_append(self) -> None:
        """A read does not wait for what came with its confirmation to be written."""
        self.hear(MessageType.HEARTBEAT)
        self.turn()
        read = self.station.read()
        self.turn()
        (question,) = [message for message in self.peers.sent if message.type is MessageType.READ_INDEX]
        worker = self.station.slow_disk()
        self.append(b"")
        self.hear(MessageType.READ_INDEX_RESPONSE, index=3, entries=question.entries)
        self.turn()
        self.assertTrue(worker.queue)
        self.assertTrue(read.done)
        self.assertIsNone(read.error)
        worker.release()


class LeaderTests(DrivingCase):
    """What a leader does."""

    def setUp(self) -> None:
        super().setUp()
        self.station.elect(self.clock)
        self.station.acknowledge(self.clock)

    def test_others_are_told_while_the_disk_works(self) -> None:
        """Thesis §10.2.1: a leader sends its entries while it writes them, and counts itself when they are there."""
        worker = self.station.slow_disk()
        put = self.station.put(b"k")
        self.assertEqual(self.turn(), [MessageType.APPEND])
        self.station.acknowledge(self.clock, 2)
        self.assertFalse(put.done)
        worker.release()
        self.turn()
        self.assertEqual(put.revision, 2)

    def test_a_put_is_answered_while_the_next_is_written(self) -> None:
        """A put that is committed and on the disk is answered, though the disk is busy with the next one."""
        first = self.station.put(b"k")
        self.turn()
        worker = self.station.slow_disk()
        second = self.station.put(b"k")
        self.station.acknowledge(self.clock, 2)
        self.assertEqual(first.revision, 2)
        self.assertTrue(worker.queue)
        self.assertFalse(second.done)
        worker.release()
        self.station.acknowledge(self.clock, 2)
        self.assertEqual(second.revision, 3)

    def test_heartbeats_while_the_disk_works(self) -> None:
        """A disk that takes longer than an election timeout does not make others elect another leader."""
        worker = self.station.slow_disk()
        self.station.put(b"k")
        self.turn()
        self.peers.sent.clear()
        for _ in range(5):
            self.clock.advance(0.1)
            self.clock.advance(0)
        beats = [message for message in self.peers.sent if message.type is MessageType.HEARTBEAT]
        self.assertEqual(len(beats), 10)
        worker.release()

    def test_other_work_on_a_slow_log_has_its_turn(self) -> None:
        """Under load a slow disk always has a next batch; what else is to be done to the log comes between two."""
        worker = self.station.slow_disk()
        done: list[str] = []
        self.station.put(b"k")
        self.turn()
        self.member._writer.run(lambda wal: done.append("cut short"))
        for _ in range(3):
            self.station.put(b"k")
            self.turn()
            worker.step()
        self.assertEqual(done, ["cut short"])
        worker.release()

    def test_a_tick_brings_what_was_kept(self) -> None:
        """What Raft would not take is given to it again with each tick."""
        self.member.transfer_leader(2)
        put = self.station.put(b"k")
        self.turn()
        self.assertTrue(self.member._proposals.any)
        for _ in range(9):
            self.clock.advance(0.1)
            self.member._replication.received(
                Message(MessageType.HEARTBEAT_RESPONSE, ME, sender=2, term=self.member.term)
            )
            self.clock.advance(0)
        self.assertTrue(self.member._proposals.any)
        self.clock.advance(0.1)  # the hand-over came to nothing
        self.clock.advance(0)
        self.assertFalse(self.member._proposals.any)
        self.station.acknowledge(self.clock)
        self.assertEqual(put.revision, 2)


class AloneTests(DrivingCase):
    """A member alone."""

    size = 1

    def test_reads_ask_nobody(self) -> None:
        """A member alone answers a read at once."""
        read = self.station.read()
        self.assertTrue(read.done)
        self.assertIsNone(read.error)

    def test_a_log_that_fails(self) -> None:
        """A log that cannot be written any more stops the member from within the loop."""
        self.station.disk.broken = True
        put = self.station.put(b"k")
        self.turn()
        self.assertIsInstance(put.error, StoppedError)
        self.assertEqual(len(self.flushLoggedErrors()), 1)
        self.assertEqual(len(self.station.failures), 1)

    def test_a_log_that_fails_on_its_thread(self) -> None:
        """So does one that fails on the log's thread."""
        worker = self.station.slow_disk()
        self.station.disk.broken = True
        put = self.station.put(b"k")
        self.turn()
        worker.release()
        self.assertIsInstance(put.error, StoppedError)
        self.assertEqual(len(self.flushLoggedErrors()), 1)
        self.assertEqual(len(self.station.failures), 1)
