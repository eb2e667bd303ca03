"""The recent past in memory, and reading what is older."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedkv.history import BATCH_BYTES, BATCH_REVISIONS, History, Moment, Replay, Wanting
from twistedkv.storage.backend import Batch, Bucket, RevisionRow, pack
from twistedkv.storage.memory import MemoryBackend
from twistedkv.storage.mvcc import META_COMPACTED, Change
from twistedkv.watchers import RangeIndex


def moment(revision: int, size: int = 10) -> Moment:
    return Moment(revision, [Change(b"k", bytes(size), None, False)])


class HistoryTests(SynchronousTestCase):
    """What is kept."""

    def test_keeps_the_newest(self) -> None:
        """So many revisions are kept, without a gap, and any part of them can be had."""
        history = History(2, most_revisions=5)
        self.assertEqual((history.since(2), len(history)), ([], 0))
        for revision in range(2, 100):
            history.append(moment(revision))
            self.assertLessEqual(len(history), 5)
            self.assertEqual(history.first, max(2, revision - 4))
            found = [each.revision for each in history.since(history.first)]
            self.assertEqual(found, list(range(history.first, revision + 1)))
        self.assertEqual([each.revision for each in history.since(97, 2)], [97, 98])
        self.assertEqual(history.since(100), [])

    def test_bounded_in_bytes(self) -> None:
        """Large values push out older ones, and one that is too large is not kept at all."""
        history = History(2, most_bytes=10_000)
        for revision in range(2, 50):
            history.append(moment(revision, 2_000))
            self.assertLessEqual(history.bytes, 10_000)
        self.assertEqual(len(history), 4)
        history.append(moment(50, 20_000))
        self.assertEqual((len(history), history.bytes, history.first), (0, 0, 51))
        history.append(moment(51))
        self.assertEqual([each.revision for each in history.since(51)], [51])

    def test_clear(self) -> None:
        """It can begin anew at any revision."""
        history = History(2, most_revisions=3)
        for revision in range(2, 9):
            history.append(moment(revision))
        history.clear(20)
        history.append(moment(20))
        self.assertEqual((history.first, [each.revision for each in history.since(20)]), (20, [20]))


class Watcher:
    def __init__(self, wants_previous: bool = False) -> None:
        self.wants_previous = wants_previous


class ReplayTests(SynchronousTestCase):
    """What is read."""

    def setUp(self) -> None:
        self.backend = MemoryBackend()
        self.backend.open()
        self.wanted: RangeIndex[Wanting] = RangeIndex()
        self.wanted.add(b"k", b"", Watcher())

    def put(self, revision: int, *keys: bytes, size: int = 10, version: int = 2) -> None:
        rows = [
            RevisionRow(pack(revision, sub), key, 2, version, 0, bytes(size), False) for sub, key in enumerate(keys)
        ]
        self.backend.write(Batch(rows))

    def run_replay(self, first: int, last: int, compacted: int = -1) -> Any:
        return Replay(first, last, self.wanted, compacted).run(self.backend)[:2]

    def test_only_what_is_wanted(self) -> None:
        """Changes of other keys are left out; what was read counts as read all the same."""
        self.put(2, b"k", b"other")
        self.put(3, b"other")
        self.put(4, b"other", b"k")
        moments, last = self.run_replay(2, 9)
        self.assertEqual(
            [(each.revision, [change.key for change in each.changes]) for each in moments], [(2, [b"k"]), (4, [b"k"])]
        )
        self.assertEqual(last, 9)

    def test_bounded_in_revisions(self) -> None:
        """One step ends after so many revisions, and says where."""
        for revision in range(2, BATCH_REVISIONS + 50):
            self.put(revision, b"k")
        moments, last = self.run_replay(2, BATCH_REVISIONS + 49)
        self.assertEqual((len(moments), last), (BATCH_REVISIONS, BATCH_REVISIONS + 1))
        moments, last = self.run_replay(last + 1, BATCH_REVISIONS + 49)
        self.assertEqual((len(moments), last), (48, BATCH_REVISIONS + 49))

    def test_bounded_in_bytes_at_the_end_of_a_revision(self) -> None:
        """Large values end a step early, but never inside a revision."""
        for revision in range(2, 30):
            self.put(revision, b"a", b"k", size=BATCH_BYTES // 4)
        self.wanted.add(b"a", b"", Watcher())
        moments, last = self.run_replay(2, 29)
        self.assertEqual(([len(each.changes) for each in moments], last), ([2, 2], 3))

    def test_the_pair_before_the_transaction(self) -> None:
        """A key that one transaction puts and deletes has before both what it was before the transaction."""
        self.wanted.add(b"p", b"", Watcher(wants_previous=True))
        self.put(2, b"p", version=1)
        self.put(3, b"p")
        self.backend.write(Batch([RevisionRow(pack(3, 1), b"p", 0, 0, 0, b"", True)]))
        moments, _ = self.run_replay(2, 3)
        before = moments[0].changes[0].pair
        self.assertEqual([change.previous for change in moments[1].changes], [before, before])
        moments, _ = self.run_replay(3, 3)
        self.assertEqual([change.previous for change in moments[0].changes], [before, before])

    def test_the_pair_before(self) -> None:
        """It is looked for where it is wanted, in what was read and before it, but not below the compact revision."""
        self.wanted.add(b"p", b"", Watcher(wants_previous=True))
        self.put(2, b"p", b"k", version=1)
        self.put(3, b"p", b"k")
        self.put(4, b"p", b"k")
        moments, _ = self.run_replay(3, 4)
        found = [(change.key, change.previous is not None) for each in moments for change in each.changes]
        self.assertEqual(found, [(b"p", True), (b"k", False)] * 2)
        moments, _ = self.run_replay(3, 4, compacted=3)
        found = [(change.key, change.previous is not None) for each in moments for change in each.changes]
        self.assertEqual(found, [(b"p", False), (b"k", False), (b"p", True), (b"k", False)])

    def test_what_the_database_knows_of_compactions(self) -> None:
        """It says below which revision the database it was read from has lost something, asked for or not."""
        self.put(2, b"k")
        replayed = Replay(2, 2, self.wanted, 9).run(self.backend)
        self.assertEqual((replayed.last, replayed.compacted), (2, -1))
        self.backend.write(Batch(records={(Bucket.META, META_COMPACTED): b"5"}))
        for revision in range(6, BATCH_REVISIONS + 10):
            self.put(revision, b"k")
        replayed = Replay(2, BATCH_REVISIONS + 9, self.wanted, -1).run(self.backend)
        self.assertEqual((len(replayed.moments), replayed.compacted), (BATCH_REVISIONS, 5))
