"""Automatic compaction and the deletion of what it drops, on a clock of our own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from twistedkv.compaction import PeriodicCompaction, RevisionCompaction, Sweeper
from twistedkv.errors import CompactedError, RequestTimeoutError
from twistedkv.metrics import Metrics
from twistedkv.storage.backend import MAX_MAIN, BackendError, Bucket, pack
from twistedkv.storage.keyindex import KeyIndex
from twistedkv.storage.memory import MemoryBackend
from twistedkv.storage.mvcc import META_COMPACTION_DONE, Store


class FakeMember:
    """A member that compacts at once, or refuses as it is told."""

    def __init__(self) -> None:
        self.is_leader = True
        self.revision = 1
        self.compacted: list[int] = []
        self.refuse: Exception | None = None

    def compact(self, revision: int) -> Deferred[bytes]:
        if self.refuse is not None:
            return fail(self.refuse)
        self.compacted.append(revision)
        return succeed(b"")


class PeriodicCompactionTests(SynchronousTestCase):
    """``--auto-compaction-mode=periodic``."""

    def run_for(self, seconds: int, member: FakeMember, clock: Clock, step: int = 1) -> None:
        for _ in range(seconds // step):
            member.revision += step
            clock.advance(step)

    def test_keeps_one_period_of_history(self) -> None:
        """Nothing is compacted in the first period; then what was current one period ago is, once a period."""
        member, clock = FakeMember(), Clock()
        PeriodicCompaction(member, clock, 100.0).start()
        self.run_for(99, member, clock)
        self.assertEqual(member.compacted, [])
        self.run_for(1, member, clock)
        self.assertEqual(member.compacted, [1])
        self.run_for(99, member, clock)
        self.assertEqual(member.compacted, [1])
        self.run_for(101, member, clock)
        self.assertEqual(member.compacted, [1, 101, 201])

    def test_long_periods_compact_hourly(self) -> None:
        """A period of ten hours keeps ten hours, and compacts every hour after the first ten."""
        member, clock = FakeMember(), Clock()
        PeriodicCompaction(member, clock, 36_000.0).start()
        self.run_for(36_000, member, clock, 10)
        self.assertEqual(member.compacted, [1])
        self.run_for(3_600, member, clock, 10)
        self.assertEqual(member.compacted, [1, 3601])

    def test_unchanged_revision_is_not_compacted_again(self) -> None:
        """A store that nobody writes to is compacted once."""
        member, clock = FakeMember(), Clock()
        PeriodicCompaction(member, clock, 10.0).start()
        clock.pump([1.0] * 50)
        self.assertEqual(member.compacted, [1])

    def test_a_failure_is_tried_again_with_the_next_sample(self) -> None:
        """A compaction that failed comes a tenth of the interval later."""
        member, clock = FakeMember(), Clock()
        member.refuse = RequestTimeoutError()
        PeriodicCompaction(member, clock, 100.0).start()
        self.run_for(100, member, clock)
        member.refuse = None
        self.run_for(10, member, clock)
        self.assertEqual(member.compacted, [11])

    def test_compacted_by_somebody_else_counts(self) -> None:
        """If the revision is compacted already, the next one is due a whole period later."""
        member, clock = FakeMember(), Clock()
        member.refuse = CompactedError()
        PeriodicCompaction(member, clock, 100.0).start()
        self.run_for(100, member, clock)
        member.refuse = None
        self.run_for(99, member, clock)
        self.assertEqual(member.compacted, [])

    def test_followers_do_not_compact(self) -> None:
        """Only the leader compacts; the others take the entry from the log."""
        member, clock = FakeMember(), Clock()
        member.is_leader = False
        PeriodicCompaction(member, clock, 10.0).start()
        self.run_for(100, member, clock)
        self.assertEqual(member.compacted, [])

    def test_stop_leaves_nothing(self) -> None:
        """After stop no timer is left."""
        clock = Clock()
        compaction = PeriodicCompaction(FakeMember(), clock, 10.0)
        compaction.start()
        compaction.stop()
        self.assertEqual(clock.getDelayedCalls(), [])


class RevisionCompactionTests(SynchronousTestCase):
    """``--auto-compaction-mode=revision``."""

    def test_keeps_the_last_revisions(self) -> None:
        """Every five minutes all but the last so many revisions go, if there are more."""
        member, clock = FakeMember(), Clock()
        RevisionCompaction(member, clock, 100).start()
        member.revision = 90
        clock.advance(300)
        self.assertEqual(member.compacted, [])
        member.revision = 250
        clock.advance(300)
        clock.advance(300)
        self.assertEqual(member.compacted, [150])


class SweeperTests(SynchronousTestCase):
    """Deleting the rows of a compaction."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.backend = MemoryBackend()
        self.backend.open()
        self.store = Store(KeyIndex(1 << 20))
        self.trouble: Exception | None = None
        for number in range(25_000):
            self.store.begin()
            self.store.put(b"key", b"%d" % number, 0)
            self.store.end()
        self.sweeper = Sweeper(self.store, self.read, self.clock, -1, Metrics())

    def read(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        if self.trouble is not None:
            return fail(self.trouble)
        self.backend.write(self.store.take_batch())
        return succeed(function(self.backend, *arguments))

    def rows(self) -> int:
        return len(self.backend.scan(0, pack(MAX_MAIN), 100_000))

    def test_deletes_in_batches_with_pauses(self) -> None:
        """A big compaction goes batch by batch; a physical one is answered after the last."""
        self.store.compact(22_501)
        swept = self.sweeper.swept(22_501)
        self.assertEqual(self.rows(), 20_000)
        self.assertNoResult(swept)
        self.clock.pump([0.01] * 6)
        self.successResultOf(swept)
        self.assertEqual(self.rows(), 2_502)  # with the one that the compact revision made superfluous
        self.assertEqual(self.sweeper.done, 22_501)
        self.assertEqual(self.store.batch.records[Bucket.META, META_COMPACTION_DONE], b"22501")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_compaction_during_another_is_swept_as_well(self) -> None:
        """A second compaction is not forgotten because the first was still going on."""
        self.store.compact(10_000)
        first = self.sweeper.swept(10_000)
        self.store.compact(25_001)
        second = self.sweeper.swept(25_001)
        self.clock.pump([0.01] * 20)
        self.successResultOf(first)
        self.successResultOf(second)
        self.assertEqual(self.rows(), 2)

    def test_trouble_with_the_database_is_waited_out(self) -> None:
        """A refused batch is tried again a second later."""
        self.trouble = BackendError("disk full")
        self.store.compact(25_001)
        swept = self.sweeper.swept(25_001)
        self.trouble = None
        self.clock.advance(1.0)
        self.clock.pump([0.01] * 10)
        self.successResultOf(swept)
        self.assertEqual(self.rows(), 2)

    def test_holding_still(self) -> None:
        """While somebody holds, nothing is deleted; when the last one lets go it goes on where it was."""
        self.store.compact(22_501)
        swept = self.sweeper.swept(22_501)
        self.sweeper.hold()
        self.sweeper.hold()
        self.clock.pump([0.01] * 10)
        self.assertEqual(self.rows(), 20_000)
        self.sweeper.release()
        self.clock.pump([0.01] * 10)
        self.assertEqual(self.rows(), 20_000)
        self.sweeper.release()
        self.clock.pump([0.01] * 10)
        self.successResultOf(swept)
        self.assertEqual(self.rows(), 2_502)

    def test_a_compaction_while_held(self) -> None:
        """One that comes meanwhile begins afterwards, unless the member stops before."""
        self.sweeper.hold()
        self.store.compact(25_001)
        self.sweeper.sweep()
        self.clock.pump([0.01] * 10)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.sweeper.release()
        self.clock.pump([0.01] * 10)
        self.assertEqual(self.rows(), 2)
        self.sweeper.hold()
        self.sweeper.stop()
        self.sweeper.release()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop_in_a_pause(self) -> None:
        """Stopping leaves no timer; the next start begins where this one ended."""
        self.store.compact(25_001)
        self.sweeper.sweep()
        self.sweeper.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        again = Sweeper(self.store, self.read, self.clock, self.sweeper.done, Metrics())
        again.sweep()
        self.clock.pump([0.01] * 10)
        self.assertEqual(self.rows(), 2)

    def test_the_changes_of_the_compact_revision_stay(self) -> None:
        """A watch from the compact revision on finds its deletions, which etcd loses (issue 18089)."""
        self.store.begin()
        self.store.delete(b"key")
        deleted_at = self.store.end()
        self.store.compact(deleted_at)
        self.sweeper.sweep()
        self.clock.pump([0.01] * 10)
        row = self.backend.scan(pack(deleted_at), pack(MAX_MAIN), 10)[0]
        self.assertEqual((row.key, bool(row.tombstone)), (b"key", True))
        self.store.begin()
        self.store.put(b"other", b"", 0)
        self.store.compact(self.store.end())
        self.sweeper.sweep()
        self.clock.pump([0.01] * 10)
        self.assertEqual(self.rows(), 1)


class ReplacedTests(SynchronousTestCase):
    """A sweeper whose database is replaced by that of a snapshot, while one thing or another goes on."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.store = Store(KeyIndex(1 << 20))
        for number in range(30):
            self.store.begin()
            self.store.put(b"key", b"%d" % number, 0)
            self.store.end()
        self.asked: list[Deferred[tuple[int, int]]] = []  # batches that the storage thread has not answered
        self.sweeper = Sweeper(self.store, self.read, self.clock, 0, Metrics())

    def tearDown(self) -> None:
        self.sweeper.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def read(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        asked: Deferred[Any] = Deferred()
        self.asked.append(asked)
        return asked

    def replace(self, compacted: int, done: int) -> None:
        """Another database, compacted up to ``compacted`` and swept up to ``done``."""
        self.store.compacted = compacted
        self.sweeper.restored(done)

    def test_in_a_pause(self) -> None:
        """What was being swept is over; what the new database has not swept yet begins."""
        self.store.compact(10)
        self.sweeper.sweep()
        self.asked.pop().callback((5, 77))
        self.sweeper.hold()
        self.replace(20, 10)
        self.assertEqual(len(self.asked), 1)
        self.clock.advance(1)
        self.assertEqual(len(self.asked), 1)
        self.asked.pop().callback((5, 0))
        self.assertEqual(self.sweeper.done, 20)

    def test_a_batch_is_under_way(self) -> None:
        """The answer to a batch of the old database means nothing to the new one, which is swept already."""
        self.store.compact(10)
        self.sweeper.sweep()
        late = self.asked.pop()
        self.sweeper.hold()
        self.replace(20, 20)
        late.callback((5, 0))
        self.assertEqual((self.sweeper.done, self.asked, self.sweeper.rows_deleted), (20, [], 0))

    def test_held_by_others(self) -> None:
        """Whoever copies the state goes on holding: the new database is swept when they are done."""
        self.sweeper.hold()
        self.sweeper.hold()
        self.replace(20, 10)
        self.assertEqual(self.asked, [])
        self.sweeper.release()
        self.assertEqual(len(self.asked), 1)

    def test_held_in_the_middle(self) -> None:
        """A sweep that was held in the middle of the old database begins at the beginning of the new one."""
        self.store.compact(10)
        self.sweeper.sweep()
        self.sweeper.hold()
        self.asked.pop().callback((5, 77))
        self.clock.advance(1)
        self.assertEqual(self.asked, [])
        self.replace(20, 10)
        self.assertEqual(len(self.asked), 1)

    def test_trouble_before(self) -> None:
        """A batch that the old database refused is not tried on the new one."""
        self.store.compact(10)
        self.sweeper.sweep()
        self.asked.pop().errback(BackendError("disk full"))
        self.sweeper.hold()
        self.replace(20, 20)
        self.clock.advance(2)
        self.assertEqual(self.asked, [])

    def test_whoever_waits(self) -> None:
        """Of those who wait for rows to go, the ones that the snapshot has without them are told at once."""
        self.store.compact(10)
        first = self.sweeper.swept(10)
        second = self.sweeper.swept(25)
        self.asked.clear()
        self.sweeper.hold()
        self.replace(25, 20)
        self.successResultOf(first)
        self.assertNoResult(second)
        self.asked.pop().callback((1, 0))
        self.successResultOf(second)

    def test_after_the_end(self) -> None:
        """After the end nothing begins, whatever comes back or is let go."""
        self.store.compact(10)
        self.sweeper.sweep()
        self.store.compact(20)
        answered, refused = self.asked.pop(), Deferred[Any]()
        self.sweeper.hold()
        self.sweeper.stop()
        answered.callback((5, 77))
        self.sweeper._read_backend = lambda *_: refused
        self.sweeper.release()
        self.replace(20, 10)
        self.assertEqual(self.asked, [])
