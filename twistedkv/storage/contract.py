"""What every backend promises, as a test suite that anyone can run on theirs.

A mixin for trial; a third party's package tests its own backend with it::

    class OurBackendTests(BackendContract, SynchronousTestCase):
        def make_backend(self) -> Backend:
            return OurBackend(self.url)  # not opened; a new object on the same data each time it is called
"""

from __future__ import annotations

from collections.abc import Sequence

from twisted.trial.unittest import SkipTest

from twistedkv.storage.backend import MAX_MAIN, SUB_MASK, BackendError, Batch, Bucket, RevisionRow, pack
from twistedkv.storage.contractcase import EVERYTHING, FROM_KEY, MIB, put, survivors, tombstone
from twistedkv.storage.replacecontract import ReplaceContract

__all__ = ["EVERYTHING", "FROM_KEY", "BackendContract", "put", "tombstone"]


class BackendContract(ReplaceContract):
    """Examines each promise of :mod:`twistedkv.storage.backend`. All tests begin with an empty database."""

    # --- writing and scanning -----------------------------------------------------------------------

    def test_new_database_is_empty(self) -> None:
        """A new database has no rows and no records."""
        self.assertEqual(self.backend.scan(0, EVERYTHING, 10), [])
        self.assertEqual(self.backend.range_at(b"", FROM_KEY, EVERYTHING), [])
        for bucket in Bucket:
            self.assertEqual(self.backend.records(bucket), {})

    def test_rows_come_back_as_they_were(self) -> None:
        """Every field of a row comes back with its value and its type."""
        rows = [
            put(1, b"key", b"value", version=7, lease=0x1234),
            put(2, b"\x00\xff", b"\x00" * 3, sub=5),
            put(3, b"lowest lease", lease=-(2**63)),
            put(4, b"highest lease", b"", lease=2**63 - 1),
            put(5, b"large", b"\xff" * 2 * MIB),
            tombstone(6, b"key"),
            RevisionRow(pack(MAX_MAIN, SUB_MASK), b"last", MAX_MAIN, 2**63 - 1, 0, b"", False),
        ]
        self.write(*rows)
        found = self.backend.scan(0, EVERYTHING, 100)
        self.assert_rows(found, rows)
        for row, wanted in zip(found, rows, strict=True):
            self.assertIsInstance(row, RevisionRow)
            self.assertEqual([type(field) for field in row[:-1]], [type(field) for field in wanted[:-1]])

    def test_scan_ascends_between_both_bounds(self) -> None:
        """A scan includes both of its bounds, ascends, and goes by main and then sub revision."""
        rows = [put(main, b"key", sub=sub) for main in (1, 2, 3) for sub in (0, 1, 2)]
        self.write(*rows[:5])
        self.write(*rows[5:])
        self.assertEqual(self.backend.scan(pack(1, 1), pack(3, 1), 100), rows[1:8])
        self.assertEqual(self.backend.scan(pack(2), pack(3) - 1, 100), rows[3:6])
        self.assertEqual(self.backend.scan(pack(3), pack(2), 100), [])
        self.assertEqual(self.backend.scan(pack(4), EVERYTHING, 100), [])

    def test_scan_stops_at_its_limit(self) -> None:
        """A scan gives the first rows up to its limit, so that the next one continues after the last of them."""
        rows = [put(main, b"key") for main in range(1, 301)]
        self.write(*rows)
        self.assertEqual(self.backend.scan(0, EVERYTHING, 1), rows[:1])
        self.assertEqual(self.backend.scan(rows[9].revision + 1, EVERYTHING, 150), rows[10:160])
        self.assertEqual(self.backend.scan(0, EVERYTHING, 301), rows)

    def test_batches_of_every_size_are_whole(self) -> None:
        """No row is lost or doubled, whatever the size of the batch."""
        rows = [put(main, b"%d" % (main % 7), b"%d" % main) for main in range(1, 1_500)]
        written = 0
        for size in (1, 2, 7, 8, 9, 31, 33, 127, 128, 129, 300, 0, 700):
            self.write(*rows[written : written + size])
            written += size
        self.assertEqual(self.backend.scan(0, EVERYTHING, 10_000), rows[:written])

    def test_rows_by_revision(self) -> None:
        """Rows are found by exact revision, ascending and once each; unknown revisions are left out."""
        rows = [put(main, b"key", b"%d" % main) for main in range(1, 1_201)]
        self.write(*rows)
        self.assertEqual(self.backend.rows([]), [])
        self.assertEqual(self.backend.rows([rows[6].revision]), rows[6:7])
        wanted = [rows[8].revision, pack(2, 1), rows[3].revision, rows[8].revision, pack(9_999)]
        self.assertEqual(self.backend.rows(wanted), [rows[3], rows[8]])
        self.assertEqual(self.backend.rows([row.revision for row in reversed(rows)]), rows)

    # --- records ------------------------------------------------------------------------------------

    def test_records_are_replaced_and_deleted(self) -> None:
        """A record holds what was written last; None deletes it, also when it never was; buckets are apart."""
        meta, lease, odd = (Bucket.META, b"applied"), (Bucket.LEASES, b"applied"), (Bucket.META, b"\x00\xff")
        self.backend.write(Batch(records={meta: b"1", lease: b"", odd: b"\xff\x00"}))
        self.assertEqual(self.backend.records(Bucket.META), {b"applied": b"1", b"\x00\xff": b"\xff\x00"})
        self.assertEqual(self.backend.records(Bucket.LEASES), {b"applied": b""})
        self.backend.write(Batch(records={meta: b"2", lease: None, (Bucket.ALARMS, b"none"): None}))
        self.assertEqual(self.backend.records(Bucket.META), {b"applied": b"2", b"\x00\xff": b"\xff\x00"})
        self.assertEqual(self.backend.records(Bucket.LEASES), {})
        self.assertEqual(self.backend.records(Bucket.ALARMS), {})

    def test_every_bucket_holds_records(self) -> None:
        """Each bucket has its own records."""
        self.backend.write(Batch(records={(bucket, b"name"): bucket.value.encode() for bucket in Bucket}))
        for bucket in Bucket:
            self.assertEqual(self.backend.records(bucket), {b"name": bucket.value.encode()})

    def test_many_records_at_once(self) -> None:
        """However many records a batch writes and deletes, of however many buckets, each is there or gone."""
        wanted: dict[Bucket, dict[bytes, bytes]] = {Bucket.DIRECTORY: {}, Bucket.DIRECTORY_EVENTS: {}}
        for step, count in enumerate((1, 15, 16, 17, 127, 129, 300, 700)):
            records: dict[tuple[Bucket, bytes], bytes | None] = {}
            for number in range(count):
                for bucket, kept in wanted.items():
                    key, value = b"%d" % (number * (step + 1) % 900), b"%d of %s" % (step, bucket.value.encode())
                    deletes = (number + step) % 3 == 0
                    records[bucket, key] = None if deletes else value
                    if deletes:
                        kept.pop(key, None)
                    else:
                        kept[key] = value
            self.backend.write(Batch(records=records))
            for bucket, kept in wanted.items():
                self.assertEqual(self.backend.records(bucket), kept, step)
        self.assertEqual(self.backend.records(Bucket.META), {})

    def test_large_records(self) -> None:
        """A key may have a thousand bytes, of any kind, and differ from another in the last one; a value has no bound
        that would matter."""
        keys = [bytes(range(256)) * 3 + b"x" * 231 + last for last in (b"", b"\x00", b"\xff")]
        records = {(Bucket.DIRECTORY, key): bytes([number]) * 2 * MIB for number, key in enumerate(keys)}
        self.backend.write(Batch(records=dict(records)))
        found = self.backend.records(Bucket.DIRECTORY)
        self.assertTrue(found == {key: value for (_, key), value in records.items()})
        self.backend.write(Batch(records={(Bucket.DIRECTORY, keys[0]): None}))
        self.assertEqual(self.backend.records(Bucket.DIRECTORY).keys(), set(keys[1:]))

    # --- atomicity and durability -------------------------------------------------------------------

    def test_refused_batch_leaves_nothing(self) -> None:
        """A batch that fails in the middle changes neither rows nor records, and a good one after it is taken."""
        first = put(5, b"first")
        self.backend.write(Batch([first], {(Bucket.META, b"applied"): b"1"}))
        bad = Batch([put(6, b"new"), put(5, b"again"), put(7, b"new")], {(Bucket.META, b"applied"): b"2"})
        self.assertRaises(BackendError, self.backend.write, bad)
        self.assertEqual(self.backend.scan(0, EVERYTHING, 10), [first])
        self.assertEqual(self.backend.range_at(b"", FROM_KEY, EVERYTHING), [first])
        self.assertEqual(self.backend.records(Bucket.META), {b"applied": b"1"})
        self.backend.write(Batch([put(6, b"new")], {(Bucket.META, b"applied"): b"2"}))
        self.assertEqual(self.backend.scan(0, EVERYTHING, 10), [first, put(6, b"new")])
        self.assertEqual(self.backend.records(Bucket.META), {b"applied": b"2"})

    def test_data_survives_reopening(self) -> None:
        """What was written is there after the database was closed and opened again, and can be added to."""
        self.needs_durability()
        self.backend.write(Batch([put(1, b"a"), put(2, b"b")], {(Bucket.AUTH, b"enabled"): b"1"}))
        self.backend.range_at(b"a", None, EVERYTHING)
        self.write(put(3, b"a", b"newer"))
        self.reopen()
        self.write(put(4, b"c"))
        self.backend.sync()
        self.reopen()
        self.assertEqual(
            self.backend.range_at(b"", FROM_KEY, EVERYTHING), [put(3, b"a", b"newer"), put(2, b"b"), put(4, b"c")]
        )
        self.assertEqual(self.backend.records(Bucket.AUTH), {b"enabled": b"1"})

    def test_second_open_is_refused(self) -> None:
        """A database in use is refused to a second owner, in one line; the first one goes on, and then lets go."""
        self.needs_durability()
        second = self.make_backend()
        error = self.assertRaises(BackendError, second.open)
        self.assertEqual(len(str(error).splitlines()), 1)
        self.write(put(1, b"key"))
        self.reopen()
        self.assertEqual(self.backend.scan(0, EVERYTHING, 10), [put(1, b"key")])

    # --- ranges -------------------------------------------------------------------------------------

    def test_range_forms(self) -> None:
        """A range is one key, the keys before an exclusive end, or every key from the first one on."""
        rows = {key: put(main, key) for main, key in enumerate((b"a", b"b", b"c", b"d"), 1)}
        self.write(*rows.values())
        for key, range_end, wanted in (
            (b"b", None, [b"b"]),
            (b"bb", None, []),
            (b"b", b"d", [b"b", b"c"]),
            (b"b", b"b\x00", [b"b"]),
            (b"b", b"b", []),
            (b"d", b"a", []),
            (b"a", b"", []),
            (b"b", FROM_KEY, [b"b", b"c", b"d"]),
            (b"", FROM_KEY, [b"a", b"b", b"c", b"d"]),
            (FROM_KEY, FROM_KEY, [b"a", b"b", b"c", b"d"]),
            (b"e", FROM_KEY, []),
        ):
            found = self.backend.range_at(key, range_end, EVERYTHING)
            self.assertEqual(found, [rows[key] for key in wanted], f"range {key!r} to {range_end!r}")

    def test_range_is_in_bytewise_key_order(self) -> None:
        """Keys are ordered as bytes: zeros, high bytes, prefixes and invalid UTF-8 included."""
        keys = [
            *(b"\x00", b"\x00\x00", b"\x00\xff", b"A", b"B", b"a", b"a\x00", b"a\x00\x00", b"a\x00b", b"a ", b"aa"),
            *(b"a\xff", b"a\xff\xff", b"b", b"\x7f", b"\x80", b"\xc3\xa4", b"\xff", b"\xff\x00", b"\xff\xff"),
        ]
        rows = {key: put(main, key) for main, key in enumerate(keys, 1)}
        self.write(*rows.values())
        ordered = sorted(keys)
        self.assertEqual([row.key for row in self.backend.range_at(b"\x00", FROM_KEY, EVERYTHING)], ordered)
        for key in ordered:
            self.assertEqual(self.backend.range_at(key, None, EVERYTHING), [rows[key]])
            self.assertEqual(self.backend.range_at(key, key + b"\x00", EVERYTHING), [rows[key]])
        self.assertEqual(
            [row.key for row in self.backend.range_at(b"a", b"b", EVERYTHING)],
            [key for key in ordered if b"a" <= key < b"b"],
        )

    def test_large_keys(self) -> None:
        """Keys up to 1 MiB are kept apart and in order, also when they differ in the last byte only."""
        large = bytes(range(256)) * (MIB // 256 - 1) + bytes(255)
        keys = [large[:5_000], large[:5_000] + b"\x00", large + b"\x00", large + b"\x01", large + b"\xff"]
        rows = [put(main, key) for main, key in enumerate(keys, 1)]
        self.write(*rows)
        self.assert_rows(self.backend.range_at(b"", FROM_KEY, EVERYTHING), rows)
        self.assert_rows(self.backend.range_at(keys[3], None, EVERYTHING), rows[3:4])
        self.assert_rows(self.backend.range_at(keys[1], keys[4], EVERYTHING), rows[1:4])
        self.write(put(10, keys[3]), tombstone(11, keys[2]))
        self.compact_all(11)
        self.assert_rows(self.backend.scan(0, EVERYTHING, 10), [rows[0], rows[1], rows[4], put(10, keys[3])])

    def test_range_in_the_past(self) -> None:
        """A range at a revision shows each key's newest row up to it, and no key that was deleted by then."""
        rows = [
            put(1, b"a", b"1"),
            put(2, b"b", b"2"),
            put(3, b"a", b"3"),
            tombstone(3, b"b", sub=1),
            put(3, b"c", b"4", sub=2),
            put(4, b"b", b"5"),
            tombstone(5, b"a"),
        ]
        self.write(*rows)
        a1, b2, a3, _, c3, b4, _ = rows
        for last, wanted in (
            (pack(1) - 1, []),
            (pack(1), [a1]),
            (pack(3) - 1, [a1, b2]),
            (pack(3), [a3, b2]),
            (pack(3, 1), [a3]),
            (pack(4) - 1, [a3, c3]),
            (pack(5) - 1, [a3, b4, c3]),
            (pack(5), [b4, c3]),
        ):
            self.assertEqual(self.backend.range_at(b"", FROM_KEY, last), wanted, f"at {last}")
        self.assertEqual(self.backend.range_at(b"a", None, pack(4)), [a3])
        self.assertEqual(self.backend.range_at(b"a", None, pack(5)), [])

    # --- compaction ---------------------------------------------------------------------------------

    def history(self) -> list[RevisionRow]:
        """Written rows of five keys: replaced, deleted, deleted and put again, untouched, several times in one."""
        rows = [
            put(1, b"replaced"),
            put(2, b"deleted"),
            put(3, b"again"),
            put(4, b"untouched"),
            put(5, b"often", b"1"),
            put(5, b"often", b"2", sub=1),
            tombstone(6, b"deleted"),
            tombstone(6, b"again", sub=1),
            put(7, b"again"),
            put(8, b"replaced"),
            put(9, b"replaced"),
            tombstone(10, b"again"),
            put(11, b"often"),
        ]
        self.write(*rows)
        return rows

    def test_surviving_leaves_out_what_compaction_would_drop(self) -> None:
        """Of the rows up to the compacted revision, tombstones and rows with a newer one in the range are left out."""
        rows = self.history()
        for compacted in range(13):
            for last in range(13):
                self.assertEqual(
                    self.backend.surviving(0, pack(last), compacted, 100),
                    kept_in([row for row in rows if row.revision <= pack(last)], compacted),
                    f"up to {last}, compacted at {compacted}",
                )
        kept = kept_in(rows, 8)
        self.assertEqual(self.backend.surviving(kept[1].revision, EVERYTHING, 8, 2), kept[1:3])
        self.assertEqual(self.backend.scan(0, EVERYTHING, 100), rows)

    def test_compaction_leaves_the_survivors(self) -> None:
        """After compaction exactly the surviving rows are left, at every limit, one compaction after another."""
        rows = self.history()
        deleted = 0
        for compacted, limit in ((0, 1), (3, 1), (6, 2), (6, 2), (8, 100), (11, 3), (50, 3)):
            wanted = survivors(rows, compacted)
            deleted += self.compact_all(compacted, limit)
            self.assertEqual(self.backend.scan(0, EVERYTHING, 100), wanted, f"at {compacted}")
            self.assertEqual(deleted, len(rows) - len(wanted))
            as_of = pack(compacted + 1) - 1
            self.assertEqual(
                self.backend.surviving(0, as_of, compacted, 100), [row for row in wanted if row.revision <= as_of]
            )

    def test_compaction_hides_nothing_that_is_left(self) -> None:
        """Ranges at and after the compacted revision are the same before and after compaction."""
        self.history()
        before = {main: self.backend.range_at(b"", FROM_KEY, pack(main)) for main in range(8, 13)}
        self.compact_all(8)
        for main, wanted in before.items():
            self.assertEqual(self.backend.range_at(b"", FROM_KEY, pack(main)), wanted, f"at {main}")

    def test_compaction_looks_at_a_bounded_number_of_rows(self) -> None:
        """One step of compaction looks at ``limit`` rows, says where it stopped, and is continued from there."""
        rows = self.history()
        deleted, after = self.backend.compact(11, 0, 4)
        self.assertEqual((deleted, after), (3, rows[3].revision))
        self.assertEqual(self.backend.scan(0, EVERYTHING, 100), rows[3:])
        self.assertEqual(self.backend.surviving(0, pack(11), 11, 100), survivors(rows, 11))

    def test_interrupted_compaction_is_done_again(self) -> None:
        """A compaction that was cut off is begun again from the start, also after reopening, and ends the same."""
        rows = self.history()
        self.backend.compact(8, 0, 3)
        if self.durable:
            self.reopen()
        self.compact_all(8)
        self.assertEqual(self.backend.scan(0, EVERYTHING, 100), survivors(rows, 8))

    def test_writing_goes_on_between_steps(self) -> None:
        """Rows that are written during a compaction are kept, and do not change what it drops."""
        rows = self.history()
        _, after = self.backend.compact(8, 0, 3)
        later = [put(12, b"replaced"), tombstone(13, b"untouched")]
        self.write(*later)
        while after:
            _, after = self.backend.compact(8, after, 3)
        self.assertEqual(self.backend.scan(0, EVERYTHING, 100), survivors(rows, 8) + later)

    # --- space --------------------------------------------------------------------------------------

    def test_size_follows_the_data(self) -> None:
        """The size grows with the data; compaction frees some of it, and defragmentation gives that back."""
        value = bytes(1_000)
        for start in range(1, 4_001, 500):
            self.write(*(put(main, b"key%d" % (main % 10), value) for main in range(start, start + 500)))
        self.backend.sync()
        full = self.backend.size()
        self.assertGreater(full.total, 3_900_000)
        self.assertGreaterEqual(full.total, full.in_use)
        self.compact_all(4_000, 1_000)
        self.backend.sync()
        if not self.shrinks:
            raise SkipTest("this backend does not give space back")
        newest = [pack(main) for main in range(3_991, 4_001)]
        while not self.backend.defragment():
            self.assertGreaterEqual(self.backend.size().total, 1)  # it answers in between
        small = self.backend.size()
        self.assertLess(small.total, full.total // 4)
        self.assertGreaterEqual(small.total, small.in_use)
        self.assertGreater(small.in_use, 10_000)
        self.assertEqual([row.revision for row in self.backend.scan(0, EVERYTHING, 100)], newest)

    def test_closing_twice(self) -> None:
        """Closing a closed backend does nothing."""
        self.backend.close()
        self.backend.close()


def kept_in(rows: Sequence[RevisionRow], compacted: int) -> list[RevisionRow]:
    """The model of ``surviving``: ``rows`` reach to its ``last``."""
    bound = pack(compacted + 1)
    newest = {row.key: row for row in rows}
    return [row for row in rows if row.revision >= bound or (newest[row.key] is row and not row.tombstone)]
