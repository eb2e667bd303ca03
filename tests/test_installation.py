"""A snapshot in place of the state: the steps, what may go wrong between them, and what a start makes of the rest."""

from __future__ import annotations

from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.nopeers import NoPeers
from tests.station import Answer, FaultyDisk, HeldWorker, RefusingMemory, Station
from tests.wires import founder
from twistedkv.apply import META_APPLIED_INDEX, META_INSTALLED
from twistedkv.errors import InvariantError, StoppedError
from twistedkv.identity import META_MEMBER
from twistedkv.installation import RETRY_S, finish_installation
from twistedkv.pb.raft_internal_pb2 import InternalRaftRequest
from twistedkv.pb.rpc_pb2 import CompactionRequest, PutRequest, RangeRequest, RequestOp, TxnRequest
from twistedkv.raft.messages import ConfState, Entry, HardState, Message, MessageType, Snapshot
from twistedkv.raft.messages import SnapshotMeta as Meta
from twistedkv.snapshot import StateCopy, copy_state
from twistedkv.snapshotreader import SnapshotDamagedError
from twistedkv.storage.backend import Bucket
from twistedkv.storage.wal import WAL, Recovered

ME, LEADER = 1, 2


class InstallationTests(SynchronousTestCase):
    """Member 1 of three, and a snapshot that member 2 might have made."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.founders = [founder(each) for each in (1, 2, 3)]
        self.copy = self.snapshot()
        self.station = Station(ME, Path(self.mktemp()), self.founders)
        self.backend = self.station.backend = RefusingMemory()
        self.start()

    def tearDown(self) -> None:
        if not self.member.stopped:
            self.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def snapshot(self) -> StateCopy:
        """The state of another member, which has 30 revisions, the first ten compacted."""
        clock, other = Clock(), Station(LEADER, Path(self.mktemp()), self.founders)
        member = other.open(clock, NoPeers)
        member.start()
        clock.advance(0)
        other.elect(clock, (1, 3))
        for number in range(29):
            other.put(b"%d" % (number % 4), b"theirs")
        other.propose(InternalRaftRequest(compaction=CompactionRequest(revision=10)))
        clock.advance(0)
        other.acknowledge(clock, 3)
        self.assertEqual(member.revision, 30)
        copy = self.successResultOf(Deferred.fromCoroutine(copy_state(member, Path(), lambda: True)))
        assert copy is not None
        self.addCleanup(copy.close)
        self.successResultOf(Deferred.fromCoroutine(member.stop()))
        return copy

    def start(self) -> None:
        self.member = self.station.open(self.clock, NoPeers)
        self.member.start()
        self.clock.advance(0)
        peers = self.member.peers
        assert isinstance(peers, NoPeers)
        self.peers = peers

    def stop(self) -> None:
        stopped = Deferred.fromCoroutine(self.member.stop())
        for worker in (self.station.wal_worker, self.station.worker):
            assert isinstance(worker, HeldWorker)
            worker.release()
        self.successResultOf(stopped)

    def write(self, *requests: InternalRaftRequest) -> None:
        """Have a leader's entries committed and applied."""
        log = self.member._node.log
        entries = [
            Entry(2, index, request.SerializeToString()) for index, request in enumerate(requests, log.last_index + 1)
        ]
        message = Message(MessageType.APPEND, ME, sender=LEADER, term=2, entries=entries)
        message.index, message.log_term, message.commit = log.last_index, log.last_term, entries[-1].index
        self.member.step(message)
        self.clock.advance(0)

    def put(self, key: bytes) -> InternalRaftRequest:
        return InternalRaftRequest(put=PutRequest(key=key, value=b"ours"))

    def receive(self) -> None:
        """The snapshot arrives, and Raft is told; what it does about it comes with the next turn."""
        copy = self.copy
        copy._file.seek(0)
        snapshot = Snapshot(copy.meta, copy.v2_store)
        message = Message(MessageType.SNAPSHOT, ME, sender=LEADER, term=5, snapshot=snapshot)
        receiving = self.member._replication.snapshot_begin(message, copy.crc32c)
        self.successResultOf(receiving.write(copy.read(copy.size_bytes)))
        self.successResultOf(receiving.finish())

    def log(self) -> Recovered:
        """What the log on disk holds; the member is over."""
        wal, recovered = WAL.open(self.station.directory)
        wal.close()
        return recovered

    def assert_installed(self) -> None:
        """State, database and log are the snapshot's, and the leader is told."""
        member, index = self.member, self.copy.applied
        self.assertEqual((member.applied, member.revision, member.store.compacted), (index, 30, 10))
        responses = [each for each in self.peers.sent if each.type is MessageType.APPEND_RESPONSE]
        self.assertEqual([(each.to, each.index) for each in responses[-1:]], [(LEADER, index)])
        records = self.backend.records(Bucket.META)
        self.assertEqual(records[META_INSTALLED], b"%d" % index)
        self.assertEqual(records[META_MEMBER], b"%x" % ME)
        self.assertEqual(list((self.station.directory / "incoming").iterdir()), [])
        self.assertFalse(member._installation.busy)
        self.assertEqual(self.station.failures, [])

    def test_all_of_it(self) -> None:
        """After a snapshot the member has its state and goes on from it; a restart begins there, in its leader's
        term."""
        self.receive()
        self.clock.advance(0)
        self.assert_installed()
        self.stop()
        recovered = self.log()
        self.assertEqual((recovered.snapshot.index, recovered.hard_state.term), (self.copy.applied, 5))
        self.start()
        self.assertEqual((self.member.applied, self.member.revision, self.member.term), (self.copy.applied, 30, 5))
        self.write(self.put(b"k"))
        self.assertEqual(self.member.term, 5)  # what comes in an old term is not taken

    def test_what_an_earlier_life_left(self) -> None:
        """What a process that died had received of a snapshot is deleted when the next one starts."""
        self.receive()
        self.station.crash()
        self.assertEqual(len(list((self.station.directory / "incoming").iterdir())), 1)
        self.start()
        self.assertEqual(list((self.station.directory / "incoming").iterdir()), [])

    def test_entries_behind_it_in_the_same_turn(self) -> None:
        """What the leader sends behind the snapshot in the same turn goes into the log behind it, and is applied."""
        self.receive()
        index = self.copy.applied
        entry = Entry(5, index + 1, self.put(b"k").SerializeToString())
        message = Message(MessageType.APPEND, ME, sender=LEADER, term=5, index=index, log_term=2, commit=index + 1)
        message.entries = [entry]
        self.member.step(message)
        self.clock.advance(0)
        self.assertEqual((self.member.applied, self.member.revision), (index + 1, 31))
        self.stop()
        self.assertEqual([each.index for each in self.log().entries], [index + 1])

    def test_nobody_hears_of_it_before_it_is_durable(self) -> None:
        """The leader is told when database and log have it, and heartbeats are answered meanwhile."""
        self.receive()
        worker, log = self.station.slow_database(), self.station.slow_disk()
        self.clock.advance(0)
        self.member.step(Message(MessageType.HEARTBEAT, ME, sender=LEADER, term=5))
        self.clock.advance(0)
        self.assertEqual([each.type for each in self.peers.sent[-1:]], [MessageType.HEARTBEAT_RESPONSE])
        self.assertEqual(self.member.revision, 1)
        self.peers.sent.clear()
        worker.release()
        self.assertEqual((self.member.revision, self.peers.sent), (30, []))
        log.release()
        self.assert_installed()

    def test_a_database_that_refuses(self) -> None:
        """A database that refuses is asked again, every few seconds; the state stays the old one until then."""
        self.write(self.put(b"k"))
        self.clock.advance(1)
        self.backend.refuses = True
        self.receive()
        self.clock.advance(0)
        for _ in range(3):
            self.clock.advance(RETRY_S)
            self.assertEqual((self.member.revision, self.station.failures), (2, []))
        self.backend.refuses = False
        self.clock.advance(RETRY_S)
        self.assert_installed()

    def test_a_file_that_is_gone(self) -> None:
        """A file that somebody deleted meanwhile is no snapshot: that is said every few seconds, until the end."""
        self.receive()
        for path in (self.station.directory / "incoming").iterdir():
            path.unlink()
        self.clock.advance(0)
        self.clock.advance(RETRY_S)
        self.assertTrue(self.member._installation.busy)
        self.stop()

    def test_a_file_that_changed(self) -> None:
        """A file that was good when it came, and is damaged now, stops the member with its old state."""
        self.receive()
        (path,) = (self.station.directory / "incoming").iterdir()
        path.write_bytes(path.read_bytes()[:5000])
        self.clock.advance(0)
        self.assertEqual([type(each) for each in self.station.failures], [SnapshotDamagedError])
        self.flushLoggedErrors(SnapshotDamagedError)
        self.assertEqual(self.member.revision, 1)

    def test_a_stop_in_a_pause(self) -> None:
        """A member that is stopped while it waits to ask its database again tries nothing more."""
        self.clock.advance(1)  # written behind
        self.backend.refuses = True
        self.receive()
        self.clock.advance(0)
        self.backend.refuses = False
        self.stop()
        self.assertNotIn(META_INSTALLED, self.backend.records(Bucket.META))
        self.start()
        self.assertEqual(self.member.revision, 1)

    def test_a_stop_before_the_database_is_asked(self) -> None:
        """A member that is stopped while what was applied goes to the database leaves the snapshot alone."""
        worker = self.station.slow_database()
        self.write(self.put(b"k"))
        worker.held = False
        self.receive()
        worker.held = True
        self.clock.advance(0)
        self.stop()
        records = self.backend.records(Bucket.META)
        self.assertNotIn(META_INSTALLED, records)
        self.assertEqual(records[META_APPLIED_INDEX], b"4")
        self.start()
        self.assertEqual(self.member.revision, 2)

    def test_a_stop_while_the_database_takes_it(self) -> None:
        """A member that is stopped while its database is being replaced starts again on the snapshot: nothing of the
        old state, not even its index, is written over it."""
        worker = self.station.slow_database()
        self.write(self.put(b"k"))
        worker.release()
        self.receive()
        worker.held = True
        self.clock.advance(0)
        while worker.queue[0].args[:1] != (self.backend,):
            worker.step()
        self.stop()
        self.assertEqual(self.backend.records(Bucket.META)[META_APPLIED_INDEX], b"%d" % self.copy.applied)
        self.start()
        self.assertEqual((self.member.applied, self.member.revision), (self.copy.applied, 30))

    def test_a_database_that_refuses_after_the_end(self) -> None:
        """Trouble with the database after the end is no trouble any more."""
        self.receive()
        worker = self.station.slow_database()
        self.clock.advance(0)
        while worker.queue[0].args[:1] != (self.backend,):
            worker.step()
        self.backend.refuses = True
        self.stop()
        self.assertEqual(self.station.failures, [])

    def test_a_member_that_fails_meanwhile(self) -> None:
        """A member that stops of itself while a snapshot is installed is over, and starts again."""
        self.receive()
        worker = self.station.slow_database()
        self.clock.advance(0)
        self.member.leave()
        worker.release()
        self.assertEqual(self.member.revision, 1)
        self.station.crash()
        self.start()
        self.assertIn(self.member.revision, (1, 30))

    def test_a_full_log(self) -> None:
        """A log without room is asked again; the state is the new one meanwhile, and nothing is acknowledged."""
        self.receive()
        self.station.disk.full = True
        self.clock.advance(0)
        self.clock.advance(RETRY_S)
        self.assertEqual((self.member.revision, self.station.failures), (30, []))
        self.assertNotIn(MessageType.APPEND_RESPONSE, {each.type for each in self.peers.sent})
        self.station.disk.full = False
        self.clock.advance(RETRY_S)
        self.assert_installed()

    def test_a_full_log_and_a_stop(self) -> None:
        """A member that is stopped while its log has no room starts again on the snapshot that its database has."""
        self.receive()
        self.station.disk.full = True
        self.clock.advance(0)
        self.station.disk.full = False
        self.stop()
        self.assertEqual(self.log().snapshot.index, 0)
        self.start()
        self.assertEqual((self.member.applied, self.member.revision), (self.copy.applied, 30))

    def test_a_log_that_fails(self) -> None:
        """A log that cannot be written any more stops the member."""
        self.receive()
        self.station.disk.broken = True
        self.clock.advance(0)
        self.assertEqual(len(self.station.failures), 1)
        self.assertEqual(len(self.flushLoggedErrors()), 1)
        self.station.disk.broken = False

    def test_what_waits_to_be_applied(self) -> None:
        """An entry that waits for the database when a snapshot comes is dropped: the snapshot has it."""
        read_old = TxnRequest(
            success=[
                RequestOp(request_put=PutRequest(key=b"new")),
                RequestOp(request_range=RangeRequest(key=b"k", revision=2)),
            ]
        )
        self.write(self.put(b"k"), self.put(b"k"))
        worker = self.station.slow_database()
        self.write(InternalRaftRequest(txn=read_old), self.put(b"k"))
        self.assertEqual(self.member.applied, 5)
        worker.held = False
        self.receive()
        worker.held = True
        self.clock.advance(0)
        worker.release()
        self.assert_installed()
        self.assertEqual(self.station.get(b"new"), None)

    def test_whoever_waits_to_read(self) -> None:
        """A read that waits for an index that a snapshot brings is served with the snapshot's state."""
        self.member.step(Message(MessageType.HEARTBEAT, ME, sender=LEADER, term=5))
        self.clock.advance(0)
        read = self.station.read()
        self.clock.advance(0)
        (question,) = [each for each in self.peers.sent if each.type is MessageType.READ_INDEX]
        answer = Message(MessageType.READ_INDEX_RESPONSE, ME, sender=LEADER, term=5, index=self.copy.applied)
        answer.entries = question.entries
        self.member.step(answer)
        waits: list[int] = []
        self.member.when_applied(self.copy.applied, lambda: waits.append(self.member.revision))
        self.clock.advance(0)
        self.assertFalse(read.done or waits)
        self.receive()
        self.clock.advance(0)
        self.assertTrue(read.done)
        self.assertIsNone(read.error)
        self.assertEqual(waits, [30])

    def test_whoever_waits_for_a_put(self) -> None:
        """A put whose entry a snapshot has taken in cannot be answered here; it ends with its time, not twice."""
        put: Answer = self.station.put(b"k")
        self.receive()
        self.clock.advance(0)
        self.assert_installed()
        self.assertFalse(put.done)
        self.stop()
        self.assertIsInstance(put.error, StoppedError)

    def test_compactions_go_on(self) -> None:
        """What the snapshot's compactions have not deleted yet is deleted here; whoever waits for that is told."""
        worker = self.station.slow_database()
        self.write(*[self.put(b"k") for _ in range(4)], InternalRaftRequest(compaction=CompactionRequest(revision=4)))
        swept = self.member.sweeper.swept(10)
        worker.release()
        self.clock.advance(0.05)
        self.assertNoResult(swept)
        self.receive()
        self.clock.advance(0)
        self.clock.pump([0.01] * 5)
        self.assert_installed()
        self.successResultOf(swept)
        self.assertEqual(self.member.sweeper.done, 10)
        self.assertEqual(self.backend.scan(0, 1 << 62, 1)[0].revision >> 20 > 4, True)


class FinishTests(SynchronousTestCase):
    """What the next start makes of a crash between the database and the log."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.wal = WAL.create(self.directory, b"", disk=FaultyDisk())
        self.wal.append(HardState(3, 2, 2), [Entry(1, 1, b""), Entry(3, 2, b"")])

    def tearDown(self) -> None:
        self.wal.close()

    def open(self) -> Recovered:
        self.wal.close()
        self.wal, recovered = WAL.open(self.directory, disk=FaultyDisk())
        return recovered

    def finish(self, installed: int, meta: Meta) -> bool:
        """Start on the log as it is."""
        recovered = self.open()
        return finish_installation(self.wal, recovered, installed, meta)

    def test_nothing_was_installed(self) -> None:
        """A log whose database was never replaced, or whose last snapshot it has noted, is left alone."""
        self.assertFalse(self.finish(0, Meta(2, 3)))
        self.wal.save_snapshot(Meta(9, 3, ConfState((1,))))
        self.assertFalse(self.finish(9, Meta(12, 3)))

    def test_the_log_begins_behind_it(self) -> None:
        """The log begins behind the snapshot, in its term, of which this member has promised nothing to anybody."""
        meta = Meta(9, 5, ConfState((1, 2, 3)))
        self.assertTrue(self.finish(9, meta))
        recovered = self.open()
        self.assertEqual((recovered.snapshot, recovered.entries), (meta, []))
        self.assertEqual(recovered.hard_state, HardState(5, 0, 9))
        self.assertFalse(self.finish(9, meta))

    def test_a_vote_is_kept(self) -> None:
        """A vote in the log's own term counts on: a second one in it would make two leaders."""
        self.assertTrue(self.finish(9, Meta(9, 3, ConfState((1, 2, 3)))))
        self.assertEqual(self.open().hard_state[:2], (3, 2))

    def test_a_database_that_went_on(self) -> None:
        """A database that has applied more than its snapshot, without a log that has it, is not believed."""
        with self.assertRaises(InvariantError):
            self.finish(9, Meta(11, 3))
