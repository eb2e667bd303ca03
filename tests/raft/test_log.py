"""The log in memory: what matches is kept, what conflicts goes, what is committed stays (Raft §5.3, §5.4)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedkv.errors import InvariantError
from twistedkv.raft.log import RaftLog
from twistedkv.raft.messages import Entry, Snapshot, SnapshotMeta


def entries(first: int, *terms: int) -> list[Entry]:
    """Entries from index ``first`` on, one for each term."""
    return [Entry(term, index, b"%d/%d" % (term, index)) for index, term in enumerate(terms, first)]


def contents(log: RaftLog) -> list[Entry]:
    return log.slice(log.compacted + 1, log.last_index)


class ReadingTests(SynchronousTestCase):
    def test_empty_log(self) -> None:
        """A new log ends at index 0 of term 0."""
        log = RaftLog()
        self.assertEqual((log.last_index, log.last_term, log.term(0), log.term(1)), (0, 0, 0, 0))

    def test_terms_are_known_where_there_are_entries(self) -> None:
        """Terms are known from the last compacted entry on, and are 0 elsewhere."""
        log = RaftLog(entries(6, 2, 2, 3), compacted=5, compacted_term=1)
        self.assertEqual([log.term(index) for index in range(4, 10)], [0, 1, 2, 2, 3, 0])
        self.assertEqual((log.last_index, log.last_term), (8, 3))

    def test_log_with_a_gap_is_refused(self) -> None:
        """What was read from disk must begin after the snapshot and have no holes."""
        self.assertRaises(InvariantError, RaftLog, entries(7, 1), 5, 1)
        self.assertRaises(InvariantError, RaftLog, [*entries(1, 1), *entries(3, 1)])

    def test_slice_is_limited_by_size_but_never_empty(self) -> None:
        """A batch keeps below its size limit, except that one entry always goes."""
        log = RaftLog([Entry(1, index, bytes(100)) for index in (1, 2, 3)])
        self.assertEqual([len(log.slice(1, 3, limit)) for limit in (0, 112, 223, 224, 400)], [1, 1, 1, 2, 3])

    def test_slice_outside_is_the_callers_mistake(self) -> None:
        """Compacted entries and those to come can not be read."""
        log = RaftLog(entries(6, 1), compacted=5, compacted_term=1)
        self.assertRaises(ValueError, log.slice, 5, 6)
        self.assertRaises(ValueError, log.slice, 6, 7)

    def test_candidate_must_be_up_to_date(self) -> None:
        """Raft §5.4.1: the later last term wins, then the longer log."""
        log = RaftLog(entries(1, 1, 2))
        for last_index, last_term, expected in ((2, 2, True), (3, 2, True), (1, 2, False), (1, 3, True), (9, 1, False)):
            self.assertEqual(log.is_up_to_date(last_index, last_term), expected)


class AppendTests(SynchronousTestCase):
    def test_append_needs_the_entry_before(self) -> None:
        """Raft §5.3: entries are taken only after one that both logs have."""
        log = RaftLog(entries(1, 1, 1))
        self.assertFalse(log.maybe_append(3, 1, entries(4, 1)))
        self.assertFalse(log.maybe_append(2, 2, entries(3, 2)))
        self.assertEqual(contents(log), entries(1, 1, 1))
        self.assertTrue(log.maybe_append(2, 1, entries(3, 2)))
        self.assertEqual(contents(log), entries(1, 1, 1, 2))

    def test_repeated_append_takes_nothing_away(self) -> None:
        """Raft §5.3: a late copy of an append does not truncate what came after it."""
        log = RaftLog(entries(1, 1, 1, 1))
        self.assertTrue(log.maybe_append(0, 0, entries(1, 1)))
        self.assertEqual(contents(log), entries(1, 1, 1, 1))

    def test_conflict_replaces_the_rest(self) -> None:
        """Raft §5.3: from the first entry of another term on, the leader's log counts; it is to be persisted again."""
        log = RaftLog(entries(1, 1, 1, 1))
        self.assertTrue(log.maybe_append(1, 1, entries(2, 2)))
        self.assertEqual(contents(log), entries(1, 1, 2))
        self.assertEqual((log.stable, log.to_persist()), (1, entries(2, 2)))

    def test_committed_entries_are_never_replaced(self) -> None:
        """Raft §5.4: a leader that would replace a committed entry is none; the member stops."""
        log = RaftLog(entries(1, 1, 1))
        log.commit_to(2)
        self.assertRaises(InvariantError, log.maybe_append, 1, 1, entries(2, 2))
        self.assertEqual(contents(log), entries(1, 1, 1))

    def test_commit_beyond_the_end_is_a_lost_log(self) -> None:
        """A commit index that the log does not reach means that acknowledged entries were lost."""
        self.assertRaises(InvariantError, RaftLog(entries(1, 1)).commit_to, 2)

    def test_replaced_entries_are_not_durable(self) -> None:
        """A sync that ends after its entries were replaced says nothing about the new ones."""
        log = RaftLog()
        log.append(entries(1, 1, 1, 1))
        log.maybe_append(1, 1, entries(2, 2, 2))
        log.stable_to(entries(1, 1, 1, 1))
        self.assertEqual((log.stable, log.to_persist()), (1, entries(2, 2, 2)))
        log.stable_to(entries(2, 1, 1))
        self.assertEqual(log.stable, 1)
        log.stable_to(entries(2, 2, 2))
        self.assertEqual((log.stable, log.to_persist()), (3, ()))
        log.stable_to(entries(1, 1, 2))
        self.assertEqual(log.stable, 3)

    @given(st.lists(st.integers(0, 3), max_size=6), st.lists(st.integers(0, 3), max_size=6), st.data())
    def test_append_makes_logs_equal(self, mine: list[int], leaders: list[int], data: st.DataObject) -> None:
        """Raft §5.3, Log Matching: after an append both logs agree up to its last entry; refused, nothing changes."""

        def rising(steps: list[int]) -> list[Entry]:
            terms = [1 + sum(steps[: i + 1]) for i in range(len(steps))]
            return entries(1, *terms)

        ours, theirs = rising(mine), rising(leaders)
        log = RaftLog(ours)
        previous = data.draw(st.integers(0, len(theirs)))
        sent = theirs[previous : data.draw(st.integers(previous, len(theirs)))]
        common = 0
        while common < min(len(ours), len(theirs)) and ours[common].term == theirs[common].term:
            common += 1
        # Two logs of one cluster that differ at an index differ in all that follow it.
        theirs_are_possible = all(o.term != t.term for o, t in zip(ours[common:], theirs[common:], strict=False))
        if not theirs_are_possible:
            return
        accepted = log.maybe_append(previous, theirs[previous - 1].term if previous else 0, sent)
        self.assertEqual(accepted, previous <= common)
        if accepted:
            end = previous + len(sent)
            self.assertEqual(contents(log)[:end], theirs[:end])
            if end <= common:
                self.assertEqual(contents(log), ours)
        else:
            self.assertEqual(contents(log), ours)

    @given(st.lists(st.integers(0, 2), max_size=8), st.integers(0, 10), st.integers(0, 12), st.integers(0, 4))
    def test_hint_is_the_last_possible_match(self, steps: list[int], index: int, term: int, compacted: int) -> None:
        """Raft §5.3, last paragraph: the hint is the last entry up to an index whose term is not above another."""
        terms = [1 + sum(steps[: i + 1]) for i in range(len(steps))]
        compacted = min(compacted, len(terms))
        known = {0: 0} | dict(enumerate(terms, 1))
        log = RaftLog(entries(1, *terms)[compacted:], compacted, known[compacted])
        expected = min(index, len(terms))
        while expected > compacted and known[expected] > term:
            expected -= 1
        hint, hint_term = log.conflict_hint(index, term)
        if expected < compacted:
            self.assertEqual((hint, hint_term), (index, 0))
        elif known[expected] > term:
            self.assertEqual((hint, hint_term), (compacted - 1, 0))
        else:
            self.assertEqual((hint, hint_term), (expected, known[expected]))


class CompactionTests(SynchronousTestCase):
    def test_compaction_keeps_the_last_term(self) -> None:
        """After compaction the log goes on, and still matches at its beginning."""
        log = RaftLog(entries(1, 1, 1, 2, 2))
        log.commit_to(3)
        log.applied_to(3)
        log.compact(3)
        log.compact(1)
        self.assertEqual((log.compacted, log.term(3), log.term(2), log.last_index), (3, 2, 0, 4))
        self.assertEqual(contents(log), entries(4, 2))
        self.assertTrue(log.maybe_append(3, 2, entries(4, 2, 2)))

    def test_what_is_not_applied_is_not_compacted(self) -> None:
        """Entries that the state lacks stay."""
        log = RaftLog(entries(1, 1, 1))
        log.commit_to(2)
        log.applied_to(1)
        self.assertRaises(ValueError, log.compact, 2)

    def test_snapshot_replaces_the_log(self) -> None:
        """Raft §7: after a snapshot the log is empty, and nothing is applied before it."""
        log = RaftLog(entries(1, 1, 1))
        log.commit_to(2)
        snapshot = Snapshot(SnapshotMeta(9, 3), b"state")
        log.restore(snapshot)
        self.assertEqual((log.last_index, log.last_term, log.committed), (9, 3, 9))
        self.assertEqual((log.to_apply(), log.to_persist()), ((), ()))
        self.assertTrue(log.maybe_append(9, 3, entries(10, 3)))

    def test_applied_never_goes_back_or_ahead(self) -> None:
        """Only what is committed is applied, once."""
        log = RaftLog(entries(1, 1, 1, 1))
        log.commit_to(2)
        log.applied_to(1)
        self.assertRaises(InvariantError, log.applied_to, 3)
        self.assertRaises(InvariantError, log.applied_to, 0)
        self.assertEqual(log.to_apply(), entries(2, 1))
