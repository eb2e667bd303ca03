"""The part of the contract that is about :meth:`~twistedkv.storage.backend.Backend.replace`: all of it, or nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from weakref import ref

from twistedkv.storage.backend import BackendError, Batch, Bucket, RevisionRow, newest, pack
from twistedkv.storage.contractcase import EVERYTHING, FROM_KEY, BackendCase, put, survivors, tombstone

_MARK = (Bucket.META, b"mark")


class _BrokenSourceError(Exception):
    """What makes the batches has failed."""


class _Rows(list[RevisionRow]):
    """A list that can be watched going away."""


class ReplaceContract(BackendCase):
    """Examines that a replacement is whole, and that everything goes on from it."""

    def old_state(self) -> list[RevisionRow]:
        """Write some history with records in every bucket, of which a part is not indexed; its rows."""
        rows = [put(main, b"key%d" % (main % 7), b"%d" % main) for main in range(100, 400)]
        rows += [tombstone(400, b"key1"), put(401, b"only old")]
        records: dict[tuple[Bucket, bytes], bytes | None] = {(bucket, b"old"): b"old" for bucket in Bucket}
        self.backend.write(Batch(rows[:200], {**records, _MARK: b"old"}))
        self.backend.range_at(b"", FROM_KEY, EVERYTHING)
        self.write(*rows[200:])
        return rows

    def assert_old_state(self, rows: list[RevisionRow]) -> None:
        """All of :meth:`old_state` is there and nothing else, and it goes on from there."""
        self.assert_rows(self.backend.scan(0, EVERYTHING, 10_000), rows)
        self.assert_ranges(rows)
        for bucket in Bucket:
            mark = {b"mark": b"old"} if bucket is Bucket.META else {}
            self.assertEqual(self.backend.records(bucket), {b"old": b"old", **mark})
        more = [put(402, b"key1", b"more"), put(403, b"key1", b"and more")]
        self.write(*more)
        self.assert_ranges(rows + more)
        self.assertEqual(self.compact_all(403, 50), len(rows) + 2 - len(survivors(rows + more, 403)))
        self.assert_rows(self.backend.scan(0, EVERYTHING, 10_000), survivors(rows + more, 403))

    def assert_ranges(self, rows: Sequence[RevisionRow]) -> None:
        """Questions by key are answered as ``rows`` say, today's and some of the past."""
        last = rows[-1].revision if rows else 0
        for bound in (EVERYTHING, last // 2, last // 3):
            by_key = newest(row for row in rows if row.revision <= bound)
            live = sorted((row for row in by_key.values() if not row.tombstone), key=lambda row: row.key)
            self.assert_rows(self.backend.range_at(b"", FROM_KEY, bound), live)
            for row in live[:3]:
                self.assert_rows(self.backend.range_at(row.key, None, bound), [row])

    def test_replacing_leaves_nothing_of_before(self) -> None:
        """Afterwards there is what was brought, with revisions that may be older than those before, and only that."""
        self.old_state()
        rows = [put(3, b"key1"), put(4, b"new"), tombstone(6, b"new"), put(7, b"newer", sub=2)]
        records: dict[tuple[Bucket, bytes], bytes | None] = {(bucket, b"new"): b"" for bucket in Bucket}
        later: dict[tuple[Bucket, bytes], bytes | None] = {_MARK: b"new", (Bucket.AUTH, b"new"): None}
        self.backend.replace([Batch(rows[:1], records), Batch(rows[1:2]), Batch(), Batch(rows[2:], later)])
        self.assert_rows(self.backend.scan(0, EVERYTHING, 100), rows)
        self.assert_ranges(rows)
        for bucket in Bucket:
            found = {b"new": b""} if bucket is not Bucket.AUTH else {}
            mark = {b"mark": b"new"} if bucket is Bucket.META else {}
            self.assertEqual(self.backend.records(bucket), {**found, **mark})
        self.assert_rows(self.backend.range_at(b"only old", None, EVERYTHING), [])

    def test_replacing_by_nothing(self) -> None:
        """Nothing at all can take the place of a state, and be the beginning of another one."""
        self.old_state()
        self.backend.replace([])
        self.assertEqual(self.backend.scan(0, EVERYTHING, 10), [])
        self.assertEqual(self.backend.range_at(b"", FROM_KEY, EVERYTHING), [])
        for bucket in Bucket:
            self.assertEqual(self.backend.records(bucket), {})
        self.write(put(1, b"key"))
        self.assert_ranges([put(1, b"key")])

    def test_failure_of_the_source_leaves_the_old_state(self) -> None:
        """What the source of the batches raises comes out as it is, wherever it was, and the old state is whole."""
        for after in (0, 1, 3):
            rows = self.old_state()

            def batches(after: int = after) -> Iterator[Batch]:
                for number in range(after):
                    new = [put(main, b"new%d" % main) for main in range(1 + 500 * number, 501 + 500 * number)]
                    yield Batch(new, {_MARK: b"new", (Bucket.LEASES, b"old"): None})
                raise _BrokenSourceError

            self.assertRaises(_BrokenSourceError, self.backend.replace, batches())
            self.assert_old_state(rows)
            self.backend.replace([])

    def test_refused_replacement_leaves_the_old_state(self) -> None:
        """Batches that the database refuses, here for a revision that comes twice, change nothing."""
        rows = self.old_state()
        batches = [Batch([put(1, b"a"), put(2, b"b")], {_MARK: b"new"}), Batch([put(2, b"c")]), Batch([put(3, b"d")])]
        self.assertRaises(BackendError, self.backend.replace, batches)
        self.assert_old_state(rows)

    def test_batches_are_let_go_of(self) -> None:
        """When a batch is asked for, the one before the last is not held any more, so that memory bounds nothing."""
        self.old_state()
        watched: list[ref[_Rows]] = []
        held: list[int] = []

        def batches() -> Iterator[Batch]:
            for main in range(1, 20):
                rows = _Rows([put(main, b"key", bytes(1_000))])
                watched.append(ref(rows))
                batch = Batch(rows)
                del rows
                held.append(sum(each() is not None for each in watched))
                yield batch

        self.backend.replace(batches())
        self.assertLessEqual(max(held), 3)  # the one before, and the two that this generator has in its hands

    def test_work_goes_on_after_a_large_replacement(self) -> None:
        """Thousands of rows take the place of others; writing, asking and compacting go on from them."""
        self.old_state()
        dice = Random(1)
        rows = []
        for main in range(1, 9_000):
            key = b"%d" % dice.randrange(1_000)
            rows.append(tombstone(main, key) if dice.random() < 0.2 else put(main, key, b"%d" % main))
        self.backend.replace(Batch(rows[start : start + 700]) for start in range(0, len(rows), 700))
        self.assert_rows(self.backend.scan(0, EVERYTHING, 100_000), rows)
        self.assert_ranges(rows)
        more = [put(main, b"%d" % dice.randrange(1_000), b"more") for main in range(9_000, 9_100)]
        self.write(*more)
        rows += more
        self.assert_ranges(rows)
        wanted = survivors(rows, 8_990)
        self.assertEqual(self.compact_all(8_990, 1_000), len(rows) - len(wanted))
        self.assert_rows(self.backend.scan(0, EVERYTHING, 100_000), wanted)
        self.assert_rows(self.backend.surviving(pack(8_991), EVERYTHING, 8_990, 1_000), wanted[-109:])

    def test_replacement_survives_reopening(self) -> None:
        """Once synced it is there when the database is opened again, with nothing of before, and is added to."""
        self.needs_durability()
        self.old_state()
        rows = [put(main, b"key%d" % (main % 5)) for main in range(1, 400)]
        self.backend.replace([Batch(rows[:300], {_MARK: b"new"}), Batch(rows[300:])])
        self.backend.sync()
        self.reopen()
        self.assert_rows(self.backend.scan(0, EVERYTHING, 1_000), rows)
        self.assertEqual(self.backend.records(Bucket.META), {b"mark": b"new"})
        self.write(put(400, b"key0"))
        self.reopen()
        self.assert_ranges([*rows, put(400, b"key0")])
