"""Keeping the log short, in memory and on disk, and keeping what others still need."""

from __future__ import annotations

from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.station import FaultyDisk, HeldWorker
from twistedkv import logkeeper
from twistedkv.logkeeper import LogKeeper
from twistedkv.logwriter import LogWriter
from twistedkv.metrics import Metrics
from twistedkv.raft.log import RaftLog
from twistedkv.raft.messages import ConfState, Entry, HardState, Ready, Snapshot, SnapshotMeta
from twistedkv.storage.backend import BackendError
from twistedkv.storage.wal import WAL

COUNT, CATCH_UP = 20, 5


class LogKeeperTests(SynchronousTestCase):
    """A log of small entries, cut short every twenty; five stay in memory."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.directory = Path(self.mktemp())
        self.disk = FaultyDisk()
        self.wal = WAL.create(self.directory, b"", segment_bytes=1 << 12, disk=self.disk)
        self.addCleanup(self.wal.close)
        self.worker = HeldWorker()
        self.failures: list[object] = []
        self.writer = LogWriter(
            self.wal,
            self.worker,  # type: ignore[arg-type]
            self.clock,
            Metrics(),
            lambda: None,
            self.failures.append,
        )
        self.log = RaftLog()
        self.syncs: list[Deferred[None]] = []
        self.waits = False  # for whoever syncs the database
        self.keeper = LogKeeper(self.log, self.writer, COUNT, CATCH_UP, self.make_durable)

    def make_durable(self) -> Deferred[None]:
        done: Deferred[None] = Deferred()
        self.syncs.append(done)
        if not self.waits:
            done.callback(None)
        return done

    def apply(self, count: int, size_bytes: int = 100) -> None:
        """Append, commit and apply so many entries, one a batch."""
        log = self.log
        for _ in range(count):
            index = log.last_index + 1
            entry = Entry(1, index, bytes(size_bytes))
            log.append([entry])
            ready = Ready(None, HardState(1, 0, index), [entry], None, [entry], [], [], [], True)
            self.writer.append(ready, lambda _: None)
            log.commit_to(index)
            log.applied_to(index)
            self.keeper.applied(size_bytes)
            self.keeper.look(index, lambda index=index: SnapshotMeta(index, 1, ConfState((1,))))  # type: ignore[misc]

    def begins(self) -> int:
        """The index after which the log on disk begins."""
        self.wal.close()
        self.wal, recovered = WAL.open(self.directory, segment_bytes=1 << 12, disk=self.disk)
        self.addCleanup(self.wal.close)
        return recovered.snapshot.index

    def test_in_memory_by_entries(self) -> None:
        """The log in memory keeps between once and twice the entries that others may catch up with."""
        for _ in range(10):
            self.apply(7)
            held = self.log.last_index - self.log.compacted
            self.assertTrue(CATCH_UP <= held <= 2 * CATCH_UP, held)

    def test_in_memory_by_bytes(self) -> None:
        """Of large entries fewer stay in memory: about so many bytes of them."""
        self.patch(logkeeper, "CATCH_UP_BYTES", 1000)
        self.apply(3, 400)
        self.assertEqual(self.log.last_index - self.log.compacted, 2)
        self.apply(1, 5000)
        self.assertEqual(self.log.last_index - self.log.compacted, 0)

    def test_held(self) -> None:
        """While a snapshot is on its way, of several the last, the log in memory grows; the one on disk is cut."""
        self.keeper.hold()
        self.keeper.hold()
        self.apply(30)
        self.keeper.release_hold()
        self.apply(30)
        self.assertEqual(self.log.compacted, 0)
        self.assertEqual(len(self.syncs), 3)
        self.keeper.release_hold()
        self.apply(1)
        self.assertEqual(self.log.last_index - self.log.compacted, CATCH_UP)

    def test_trimming_what_is_not_handed_on(self) -> None:
        """Only what Raft has handed on is dropped, and trimming twice drops nothing more."""
        self.apply(8)
        self.keeper.trim(100)
        self.assertEqual(self.log.compacted, 3)
        self.keeper.trim(8)
        self.assertEqual(self.log.compacted, 3)
        self.keeper.trim(2)
        self.assertEqual(self.log.compacted, 3)

    def test_on_disk_by_entries(self) -> None:
        """Every so many entries the log on disk lets go what the database has made durable."""
        self.apply(COUNT - 1)
        self.assertEqual(self.syncs, [])
        self.apply(1)
        self.assertEqual(len(self.syncs), 1)
        self.apply(COUNT + 5)
        self.assertEqual(len(self.syncs), 2)
        self.assertEqual(self.begins(), 2 * COUNT)

    def test_on_disk_by_bytes(self) -> None:
        """A log that has grown large is cut short before that."""
        self.patch(logkeeper, "LOG_BYTES", 3000)
        self.apply(8, 1000)
        self.assertGreaterEqual(len(self.syncs), 2)

    def test_one_at_a_time(self) -> None:
        """While the database syncs, and the log is cut, nothing further of this is begun."""
        self.waits = True
        self.apply(3 * COUNT)
        self.assertEqual(len(self.syncs), 1)
        self.syncs[0].callback(None)
        self.apply(1)
        self.assertEqual(len(self.syncs), 2)
        self.syncs[1].callback(None)
        self.assertEqual(self.begins(), 3 * COUNT + 1)

    def test_a_database_that_does_not_sync(self) -> None:
        """When the database cannot be synced the log stays, and after as many entries it is tried again."""
        self.waits = True
        self.apply(COUNT)
        self.syncs[0].errback(BackendError("no room"))
        self.apply(COUNT - 1)
        self.assertEqual(len(self.syncs), 1)
        self.waits = False
        self.apply(1)
        self.assertEqual(len(self.syncs), 2)
        self.assertEqual(self.begins(), 2 * COUNT)

    def test_a_full_disk(self) -> None:
        """A log without room for the note of it stays as it is."""
        self.waits = True
        self.apply(COUNT)
        self.disk.full = True
        self.syncs[0].callback(None)
        self.disk.full = False
        self.apply(COUNT)
        self.syncs[1].callback(None)
        self.assertEqual(self.begins(), 2 * COUNT)
        self.assertEqual(self.failures, [])

    def test_restored(self) -> None:
        """Behind a snapshot that came from the leader counting begins anew."""
        self.apply(COUNT - 2)
        meta = SnapshotMeta(1000, 3, ConfState((1,)))
        self.log.restore(Snapshot(meta))
        self.log.snapshot = None
        self.log.applied_to(1000)
        self.wal.save_snapshot(meta)
        self.keeper.restored()
        self.keeper.trim(1000)
        self.assertEqual(self.log.compacted, 1000)
        self.apply(COUNT - 1)
        self.assertEqual(self.syncs, [])
        self.apply(1)
        self.assertEqual(len(self.syncs), 1)
        self.assertEqual(self.begins(), 1000 + COUNT)
