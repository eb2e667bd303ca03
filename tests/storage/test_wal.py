"""The write-ahead log: what was acknowledged comes back, and damage is never taken for data."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedkv.raft.messages import ConfState, Entry, EntryType, HardState, SnapshotMeta
from twistedkv.storage.wal import (
    WAL,
    Disk,
    DiskFullError,
    Recovered,
    UnsafeDisk,
    WALDamagedError,
    WALError,
    WALFailedError,
    reserve_nothing,
)

SMALL = 4096
_NO_FD = 1 << 30


def entries(first: int, count: int, term: int = 1, size: int = 10) -> list[Entry]:
    """``count`` entries from ``first`` on, told apart by their data."""
    return [Entry(term, index, f"{term}/{index}:".encode().ljust(size, b"x")) for index in range(first, first + count)]


class FaultyDisk(Disk):
    """The real disk until ``fault`` is set: then the named call does a part of its work and fails."""

    def __init__(self) -> None:
        self.call = ""
        self.errno = errno.ENOSPC
        self.part_bytes = 0  # of a write that still gets to the disk
        self.write: Callable[[int, Sequence[Any], int], int] = self._write  # type: ignore[misc]
        self.sync: Callable[[int], None] = self._sync  # type: ignore[misc]
        self.sync_data: Callable[[int], None] = self._sync_data  # type: ignore[misc]

    def fail(self, call: str, error: int, part_bytes: int = 0) -> None:
        """Let the next such ``call`` fail, once."""
        self.call, self.errno, self.part_bytes = call, error, part_bytes

    def _check(self, call: str) -> None:
        if self.call == call:
            self.call = ""
            raise OSError(self.errno, os.strerror(self.errno))

    def _write(self, fd: int, parts: Sequence[Any], offset: int) -> int:
        if self.call == "write" and self.part_bytes:
            data = b"".join(parts)[: self.part_bytes]
            self.part_bytes = 0
            return os.pwrite(fd, data, offset)  # a short write; the error comes with the rest
        self._check("write")
        return os.pwritev(fd, parts, offset)

    def _sync(self, fd: int) -> None:
        self._check("sync")
        os.fsync(fd)

    def _sync_data(self, fd: int) -> None:
        self._check("sync_data")
        os.fdatasync(fd)

    def allocate(self, fd: int, size: int) -> None:
        self._check("allocate")
        super().allocate(fd, size)


class UnsafeDiskTests(SynchronousTestCase):
    def test_waits_for_nothing(self) -> None:
        """Neither kind of sync reaches the system, which would refuse a descriptor that is none."""
        self.assertRaises(OSError, Disk().sync, _NO_FD)
        self.assertRaises(OSError, Disk().sync_data, _NO_FD)
        UnsafeDisk().sync(_NO_FD)
        UnsafeDisk().sync_data(_NO_FD)

    def test_what_was_appended_is_written(self) -> None:
        """Only the waiting is left out: whoever opens the log next finds all of it."""
        directory = Path(self.mktemp())
        wal = WAL.create(directory, b"me", segment_bytes=SMALL, disk=UnsafeDisk())
        wal.append(HardState(1, 1, 1), entries(1, 3))
        wal.close()
        wal, recovered = WAL.open(directory)
        self.addCleanup(wal.close)
        self.assertEqual(recovered.entries, entries(1, 3))


class WALCase(SynchronousTestCase):
    """A directory for each test, and ways to look at a log as a restart would."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()) / "wal"
        self.opened: list[WAL] = []

    def tearDown(self) -> None:
        for wal in self.opened:
            wal.close()

    def create(self, **options: Any) -> WAL:
        shutil.rmtree(self.directory, ignore_errors=True)
        wal = WAL.create(self.directory, b"meta", segment_bytes=options.pop("segment_bytes", SMALL), **options)
        self.opened.append(wal)
        return wal

    def open(self, **options: Any) -> tuple[WAL, Recovered]:
        wal, recovered = WAL.open(self.directory, segment_bytes=SMALL, **options)
        self.opened.append(wal)
        return wal, recovered

    def crash(self) -> Recovered:
        """What a restart finds if the process dies now: a copy of the files is opened, the log goes on."""
        copy = Path(self.mktemp())
        shutil.copytree(self.directory, copy)
        wal, recovered = WAL.open(copy, segment_bytes=SMALL)
        wal.close()
        return recovered

    def files(self) -> list[Path]:
        return sorted(self.directory.iterdir())


class RoundTripTests(WALCase):
    def test_new_log_is_empty(self) -> None:
        """A new log holds its metadata and nothing else."""
        self.assertFalse(WAL.exists(self.directory))
        self.create()
        self.assertTrue(WAL.exists(self.directory))
        self.assertEqual(self.crash(), Recovered(metadata=b"meta"))

    def test_log_is_not_created_twice(self) -> None:
        """An existing log is never overwritten by a new one."""
        wal = self.create()
        wal.append(None, entries(1, 1))
        wal.close()
        self.assertRaises(FileExistsError, WAL.create, self.directory, b"other")
        self.assertEqual(self.open()[1].entries, entries(1, 1))

    def test_missing_log_is_not_opened(self) -> None:
        """Opening needs a log, and does not make a directory."""
        self.assertRaises(FileNotFoundError, WAL.open, self.directory)
        self.assertFalse(self.directory.exists())

    def test_directory_is_private(self) -> None:
        """Nobody else reads the log."""
        self.create()
        self.assertEqual(self.directory.stat().st_mode & 0o777, 0o700)
        self.assertEqual(self.files()[0].stat().st_mode & 0o777, 0o600)

    def test_appended_entries_come_back(self) -> None:
        """Entries and hard state survive without a close."""
        wal = self.create()
        wal.append(HardState(1, 2, 0), entries(1, 3))
        wal.append(None, [Entry(2, 4, b"", EntryType.CONF_CHANGE), Entry(2, 5, bytes(1000), EntryType.CONF_CHANGE_V2)])
        wal.append(HardState(2, 2, 5), ())
        recovered = self.crash()
        self.assertEqual(recovered.hard_state, HardState(2, 2, 5))
        self.assertEqual(recovered.entries[:3], entries(1, 3))
        self.assertEqual(recovered.entries[3:], [
            Entry(2, 4, b"", EntryType.CONF_CHANGE),
            Entry(2, 5, bytes(1000), EntryType.CONF_CHANGE_V2),
        ])  # fmt: skip
        self.assertEqual(recovered.truncated_bytes, 0)

    def test_conflicting_suffix_is_replaced(self) -> None:
        """Raft §5.3: an append below the end replaces what stood there."""
        wal = self.create()
        wal.append(None, entries(1, 5))
        wal.append(None, entries(3, 1, term=2))
        self.assertEqual(wal.last_index, 3)
        self.assertEqual(self.crash().entries, entries(1, 2) + entries(3, 1, term=2))

    def test_append_without_sync_waits_for_the_next(self) -> None:
        """What needs no sync of its own goes to disk with the next record, in order."""
        wal = self.create()
        wal.append(HardState(1, 1, 0), entries(1, 4), sync=False)
        wal.append(HardState(2, 1, 1), entries(2, 1, term=2), sync=False)
        self.assertEqual(self.crash().entries, [])
        wal.append(None, entries(3, 1, term=2))
        recovered = self.crash()
        self.assertEqual(recovered.entries, entries(1, 1) + entries(2, 2, term=2))
        self.assertEqual(recovered.hard_state, HardState(2, 1, 1))

    def test_close_writes_what_waits(self) -> None:
        """A clean stop loses nothing, not even what was not synced."""
        wal = self.create()
        wal.append(HardState(3, 0, 0), entries(1, 1), sync=False)
        wal.close()
        recovered = self.open()[1]
        self.assertEqual((recovered.hard_state, recovered.entries), (HardState(3, 0, 0), entries(1, 1)))

    def test_indexes_must_fit(self) -> None:
        """A gap, or entries that a snapshot stands for, are the caller's mistake and change nothing."""
        wal = self.create()
        wal.append(None, entries(1, 3))
        wal.save_snapshot(SnapshotMeta(2, 1))
        for wrong in (entries(5, 1), entries(2, 1), [*entries(4, 1), *entries(6, 1)]):
            self.assertRaises(ValueError, wal.append, None, wrong)
        self.assertEqual(self.crash().entries, entries(3, 1))

    def test_closed_log_refuses(self) -> None:
        """After close nothing is accepted, and closing again does no harm."""
        wal = self.create()
        wal.close()
        wal.close()
        self.assertRaises(WALFailedError, wal.append, None, entries(1, 1))

    def test_log_has_one_owner(self) -> None:
        """A second opener is refused while the first has the log."""
        wal = self.create()
        self.assertRaises(WALError, WAL.open, self.directory)
        wal.close()
        self.open()

    def test_syncs_are_reported(self) -> None:
        """Each fdatasync tells its duration, and written bytes are counted."""
        wal, seconds = self.create(), list[float]()
        wal.on_sync = seconds.append
        before = wal.bytes_written
        wal.append(None, entries(1, 1))
        wal.append(None, entries(2, 1), sync=False)
        self.assertEqual(len(seconds), 1)
        self.assertGreater(seconds[0], 0)
        self.assertGreater(wal.bytes_written, before)

    @settings(max_examples=25, deadline=None)
    @given(st.data())
    def test_any_history_comes_back(self, data: st.DataObject) -> None:
        """Appends, replaced suffixes, snapshots, releases, crashes and restarts, against a list in memory."""
        wal = self.create(segment_bytes=512)
        log: dict[int, Entry] = {}
        snapshot, state, term, released = SnapshotMeta(), HardState(), 1, 0
        for _ in range(data.draw(st.integers(1, 12))):
            last = max(log, default=snapshot.index)
            match data.draw(st.sampled_from(["append", "append", "append", "state", "snapshot", "release", "reopen"])):
                case "append":
                    first = data.draw(st.integers(max(snapshot.index + 1, last - 3), last + 1))
                    term += first <= last
                    new = entries(first, data.draw(st.integers(1, 4)), term, data.draw(st.integers(0, 200)))
                    wal.append(None, new, sync=data.draw(st.booleans()))
                    log = {index: entry for index, entry in log.items() if index < first}
                    log.update((entry.index, entry) for entry in new)
                case "state":
                    state = HardState(term, data.draw(st.integers(0, 3)), snapshot.index)
                    wal.append(state, (), sync=data.draw(st.booleans()))
                case "snapshot":
                    index = data.draw(st.integers(snapshot.index, last + 3))
                    known = log[index].term if index in log else term
                    snapshot = SnapshotMeta(index, known, ConfState((1, 2), (3,), auto_leave=True))
                    wal.save_snapshot(snapshot)
                    log = {i: entry for i, entry in log.items() if i > index}
                case "release":
                    released += wal.release(data.draw(st.integers(0, last)))
                case _:
                    wal.close()
                    wal, recovered = WAL.open(self.directory, segment_bytes=512)
            self.assertEqual(wal.last_index, max(log, default=snapshot.index))
        wal.close()
        wal, recovered = WAL.open(self.directory)
        wal.close()
        self.assertEqual(recovered, Recovered(b"meta", snapshot, state, [log[index] for index in sorted(log)], 0))


class SegmentTests(WALCase):
    def fill(self, wal: WAL, first: int, last: int) -> None:
        for index in range(first, last + 1):
            wal.append(HardState(1, 1, index - 1), entries(index, 1, size=500))

    def test_full_segment_is_followed_by_another(self) -> None:
        """A long log is many files, and reads as one."""
        self.fill(self.create(), 1, 40)
        self.assertGreater(len(self.files()), 4)
        self.assertEqual(self.files()[0].name, "0000000000000000-0000000000000001.wal")
        self.assertEqual({path.stat().st_size for path in self.files()}, {SMALL})
        recovered = self.crash()
        self.assertEqual(recovered.entries, entries(1, 40, size=500))
        self.assertEqual(recovered.hard_state, HardState(1, 1, 39))

    def test_large_record_gets_a_larger_segment(self) -> None:
        """A batch larger than a segment is one record all the same."""
        wal = self.create()
        wal.append(None, entries(1, 3, size=SMALL))
        self.assertEqual(self.crash().entries, entries(1, 3, size=SMALL))

    def test_snapshot_drops_the_entries_before(self) -> None:
        """After a snapshot recovery yields only what follows it."""
        wal = self.create()
        self.fill(wal, 1, 20)
        meta = SnapshotMeta(15, 1, ConfState((1, 2, 3), (4,), (5,), (6,), True))
        wal.save_snapshot(meta)
        recovered = self.crash()
        self.assertEqual(recovered.snapshot, meta)
        self.assertEqual(recovered.entries, entries(16, 5, size=500))

    def test_snapshot_ahead_of_the_log_replaces_it(self) -> None:
        """Raft §7: a follower that got a snapshot goes on after it."""
        wal = self.create()
        self.fill(wal, 1, 3)
        wal.save_snapshot(SnapshotMeta(10, 2))
        wal.append(None, entries(11, 1, term=2))
        self.assertEqual(self.crash().entries, entries(11, 1, term=2))

    def test_snapshot_of_another_term_replaces_the_log(self) -> None:
        """Raft §7: entries after one that conflicts with the snapshot are of no use, also after a restart."""
        wal = self.create()
        self.fill(wal, 1, 8)
        wal.save_snapshot(SnapshotMeta(5, 2))
        self.assertEqual(wal.last_index, 5)
        self.assertEqual(self.crash().entries, [])
        wal.append(None, entries(6, 1, term=2))
        self.assertEqual(self.crash().entries, entries(6, 1, term=2))

    def test_older_snapshot_is_refused(self) -> None:
        """Snapshots only go forward."""
        wal = self.create()
        wal.save_snapshot(SnapshotMeta(5, 1))
        self.assertRaises(ValueError, wal.save_snapshot, SnapshotMeta(4, 1))

    def test_release_deletes_what_recovery_does_not_need(self) -> None:
        """Whole segments up to the snapshot go; the log reads as before."""
        wal = self.create()
        self.fill(wal, 1, 40)
        before = len(self.files())
        self.assertEqual(wal.release(40), 0)  # no snapshot stands for any of it
        wal.save_snapshot(SnapshotMeta(30, 1))
        self.assertEqual(wal.release(20), before - len(self.files()))
        self.assertGreater(wal.release(1000), 0)
        recovered = self.crash()
        self.assertEqual((recovered.metadata, recovered.snapshot), (b"meta", SnapshotMeta(30, 1)))
        self.assertEqual(recovered.hard_state, HardState(1, 1, 39))
        self.assertEqual(recovered.entries, entries(31, 10, size=500))

    def test_released_log_goes_on_after_a_restart(self) -> None:
        """Release works on segments that an earlier process wrote."""
        wal = self.create()
        self.fill(wal, 1, 40)
        wal.close()
        wal, _ = self.open()
        wal.save_snapshot(SnapshotMeta(40, 1))
        self.assertGreater(wal.release(40), 4)
        self.assertEqual(len(self.files()), 1)
        self.fill(wal, 41, 60)
        self.assertEqual(self.crash().entries, entries(41, 20, size=500))

    def test_suffix_that_begins_in_a_released_segment(self) -> None:
        """A replaced suffix may span segments; those before it can still go."""
        wal = self.create()
        self.fill(wal, 1, 7)
        wal.append(HardState(1, 1, 0), entries(8, 1, size=3500))  # in a segment of its own, whose first index is 8
        while len(self.files()) < 3:
            wal.append(None, entries(4, 1, term=2, size=2000))
        wal.append(None, entries(5, 10, term=2))
        wal.save_snapshot(SnapshotMeta(12, 2))
        self.assertGreater(wal.release(12), 0)
        self.assertEqual(self.crash().entries, entries(13, 2, term=2))

    def test_half_made_segment_is_discarded(self) -> None:
        """A crash while a segment is made costs nothing: a temporary, empty or blank last file."""
        wal = self.create()
        wal.append(None, entries(1, 2))
        wal.close()
        name = "0000000000000001-0000000000000003.wal"
        for half, content in ((name + ".tmp", b"tkv"), (name, b""), (name, bytes(SMALL))):
            (self.directory / half).write_bytes(content)
            wal, recovered = self.open()
            wal.close()
            self.assertEqual(recovered.entries, entries(1, 2))
            self.assertEqual(len(self.files()), 1)

    def test_crash_during_creation(self) -> None:
        """A log that was never completely created does not exist, and can be created."""
        self.directory.mkdir(parents=True)
        (self.directory / "0000000000000000-0000000000000001.wal.tmp").write_bytes(b"tk")
        self.assertFalse(WAL.exists(self.directory))
        WAL.create(self.directory, b"meta").close()
        self.assertEqual(len(self.files()), 1)


class DamageTests(WALCase):
    def used(self) -> int:
        """Where the last record of the only segment ends; its payload must not end in zeros."""
        length = len(self.files()[0].read_bytes().rstrip(b"\0"))
        return length + -length % 8

    def write_log(self) -> tuple[bytes, list[int]]:
        """A log of three records; its bytes, and where they begin and each of them ends."""
        wal = self.create(segment_bytes=1024)
        ends = [48 + 24 + 28 + 4 + 36 + 4]  # segment header, record header, prologue of b"meta" and no snapshot
        for index in (1, 2, 3):
            wal.append(HardState(1, 1, index - 1), entries(index, 1, size=index * 7))
            ends.append(self.used())
        wal.close()
        return self.files()[0].read_bytes(), ends

    def recover(self, content: bytes) -> Recovered:
        self.files()[0].write_bytes(content)
        wal, recovered = WAL.open(self.directory, segment_bytes=1024)
        wal.append(HardState(1, 1, 0), entries(wal.last_index + 1, 1))  # the log can go on from there
        wal.close()
        again = WAL.open(self.directory, segment_bytes=1024)
        again[0].close()
        self.assertEqual(again[1].entries[:-1], recovered.entries)
        self.assertEqual(again[1].truncated_bytes, 0)
        for path in self.files()[1:]:
            path.unlink()
        return recovered

    def test_log_cut_at_every_byte(self) -> None:
        """A file cut short gives the records that are whole; without its first record it is damaged."""
        content, (begin, *ends) = self.write_log()
        everything = [entry for index in (1, 2, 3) for entry in entries(index, 1, size=index * 7)]
        for cut in range(ends[2] + 1):
            whole = sum(end - 8 < cut for end in ends)  # padding may be missing
            try:
                recovered = self.recover(content[:cut])
            except WALDamagedError:
                self.assertLess(cut, begin)
            else:
                self.assertIn(len(recovered.entries), {whole, sum(end <= cut for end in ends)})
                self.assertEqual(recovered.entries, everything[: len(recovered.entries)])

    def test_every_single_byte_flipped(self) -> None:
        """One wrong byte is found, or is in the last record and treated as torn, or is in padding."""
        content, (_, *ends) = self.write_log()
        everything = [entry for index in (1, 2, 3) for entry in entries(index, 1, size=index * 7)]
        damaged = torn = harmless = 0
        for position in range(len(content)):
            flipped = bytearray(content)
            flipped[position] ^= 1 << position % 8
            try:
                recovered = self.recover(bytes(flipped))
            except WALDamagedError as error:
                damaged += 1
                self.assertLess(position, ends[1])
                self.assertLessEqual(error.offset, position)
                self.assertIn(self.files()[0].name, str(error))
            else:
                if recovered.truncated_bytes:
                    torn += 1
                    self.assertGreaterEqual(position, ends[1])
                    self.assertEqual(recovered.entries, everything[: 2 if position < ends[2] else 3])
                else:
                    harmless += 1
                    self.assertEqual(recovered.entries, everything)
        self.assertLess(harmless, 4 * 8)  # only the padding of four records
        self.assertGreater(torn, ends[2] - ends[1] - 8)
        self.assertGreater(damaged, ends[1] - 3 * 8)

    def test_torn_write_of_any_shape(self) -> None:
        """Of the last write any sectors may be missing; the records before it stay."""
        wal = self.create(segment_bytes=16384)
        wal.append(None, entries(1, 2))
        begin = self.used()
        wal.append(None, entries(3, 8, size=600))
        end = self.used()
        wal.close()
        content = self.files()[0].read_bytes()
        sectors = range(begin // 512, end // 512 + 1)
        for lost in (set(sectors), {sectors[0]}, {sectors[1]}, {sectors[-1]}, set(sectors[1:]), set(sectors[:-1])):
            torn = bytearray(content)
            for sector in lost:
                start, stop = max(sector * 512, begin), min(sector * 512 + 512, len(torn))
                torn[start:stop] = bytes(stop - start)
            self.assertEqual(self.recover(bytes(torn)).entries, entries(1, 2))

    def test_values_do_not_pass_for_records(self) -> None:
        """A torn write whose value is a copy of a record from another log is torn, not damaged."""
        other, (begin, *ends) = self.write_log()
        shutil.rmtree(self.directory)
        wal = self.create()
        wal.append(None, [Entry(1, 1, other[begin : ends[-1]] + bytes(8))])
        begin = self.used()
        wal.append(None, [Entry(1, 2, bytes(8 - 88 % 8) + other[begin : ends[-1]] + b"end")])
        wal.close()
        content = bytearray(self.files()[0].read_bytes())
        content[begin : begin + 24] = bytes(24)
        recovered = self.recover(bytes(content))
        self.assertEqual(len(recovered.entries), 1)
        self.assertGreater(recovered.truncated_bytes, 0)

    def test_missing_segment_is_found(self) -> None:
        """A hole in the sequence stops the member, and the error names it."""
        SegmentTests.fill(self, self.create(), 1, 30)  # type: ignore[arg-type]
        self.opened[-1].close()
        self.files()[2].unlink()
        error = self.assertRaises(WALDamagedError, WAL.open, self.directory)
        self.assertIn("segment 0000000000000002 is missing", str(error))

    def test_missing_first_segments_are_found(self) -> None:
        """Without the segments that recovery needs the log does not open."""
        SegmentTests.fill(self, self.create(), 1, 30)  # type: ignore[arg-type]
        self.opened[-1].close()
        self.files()[0].unlink()
        error = self.assertRaises(WALDamagedError, WAL.open, self.directory)
        self.assertIn("entries from 1 on are missing", str(error))

    def test_damage_in_an_earlier_segment_is_no_torn_tail(self) -> None:
        """Only the last segment may end in a torn write."""
        SegmentTests.fill(self, self.create(), 1, 30)  # type: ignore[arg-type]
        self.opened[-1].close()
        first = self.files()[0]
        content = first.read_bytes()
        used = len(content.rstrip(b"\0"))
        for bad in (content[: used - 20], content[: used - 20] + bytes(SMALL - used + 20)):
            first.write_bytes(bad)
            error = self.assertRaises(WALDamagedError, WAL.open, self.directory)
            self.assertIn(first.name, str(error))

    def test_exchanged_segments_are_found(self) -> None:
        """A segment under another one's name is not read."""
        SegmentTests.fill(self, self.create(), 1, 30)  # type: ignore[arg-type]
        self.opened[-1].close()
        one, two = self.files()[1:3]
        content = one.read_bytes()
        two.write_bytes(content)
        error = self.assertRaises(WALDamagedError, WAL.open, self.directory)
        self.assertIn("under another name", str(error))

    @settings(max_examples=150, deadline=None)
    @given(st.binary(max_size=300), st.integers(0, 400))
    def test_garbage_never_crashes(self, garbage: bytes, where: int) -> None:
        """Arbitrary bytes anywhere give a clear error or the records before them."""
        content, _ = self.write_log()
        self.files()[0].write_bytes(content[:where] + garbage + content[where + len(garbage) :])
        try:
            wal, recovered = WAL.open(self.directory)
        except WALDamagedError:
            return
        wal.close()
        everything = [entry for index in (1, 2, 3) for entry in entries(index, 1, size=index * 7)]
        self.assertEqual(recovered.entries, everything[: len(recovered.entries)])


class FaultTests(WALCase):
    def test_full_disk_changes_nothing(self) -> None:
        """A write that finds the disk full leaves no trace, and the same append works when there is room."""
        disk = FaultyDisk()
        wal = self.create(disk=disk)
        wal.append(HardState(1, 1, 0), entries(1, 2))
        for part_bytes in (0, 1, 24, 40):
            before = self.files()[0].read_bytes()
            disk.fail("write", errno.ENOSPC, part_bytes)
            self.assertRaises(DiskFullError, wal.append, HardState(1, 1, 1), entries(3, 2))
            self.assertEqual(self.files()[0].read_bytes(), before)
            self.assertEqual(self.crash().hard_state, HardState(1, 1, 0))
        wal.append(HardState(1, 1, 1), entries(3, 2))
        self.assertEqual(self.crash().entries, entries(1, 4))

    def test_full_disk_keeps_what_waits(self) -> None:
        """Entries that wait for a sync are not lost by a full disk."""
        disk = FaultyDisk()
        wal = self.create(disk=disk)
        wal.append(None, entries(1, 1), sync=False)
        disk.fail("write", errno.EDQUOT)
        self.assertRaises(DiskFullError, wal.append, None, entries(2, 1))
        wal.append(None, entries(2, 1))
        self.assertEqual(self.crash().entries, entries(1, 2))

    def test_no_room_for_a_segment(self) -> None:
        """A full disk at the end of a segment is an error to the caller; the log goes on when there is room."""
        disk = FaultyDisk()
        wal = self.create(disk=disk)
        for call in ("allocate", "write", "sync"):
            last, size = wal.last_index, len(self.files())
            disk.fail(call, errno.ENOSPC)
            self.assertRaises(DiskFullError, wal.append, None, entries(last + 1, 1, size=SMALL))
            self.assertEqual(len(self.files()), size)
            wal.append(None, entries(last + 1, 1, size=SMALL))
        self.assertEqual(self.crash().entries, entries(1, 3, size=SMALL))

    def test_no_room_for_the_first_segment(self) -> None:
        """A log that could not be created leaves nothing, and can be created later."""
        disk = FaultyDisk()
        disk.fail("allocate", errno.ENOSPC)
        self.assertRaises(DiskFullError, WAL.create, self.directory, b"", disk=disk)
        self.assertFalse(WAL.exists(self.directory))
        WAL.create(self.directory, b"", disk=disk).close()

    def test_failed_sync_is_final(self) -> None:
        """After a failed fdatasync the log refuses everything: trying again would prove nothing."""
        disk = FaultyDisk()
        wal = self.create(disk=disk)
        wal.append(None, entries(1, 1))
        disk.fail("sync_data", errno.EIO)
        self.assertRaises(WALFailedError, wal.append, None, entries(2, 1))
        self.assertRaises(WALFailedError, wal.append, None, entries(2, 1))
        self.assertRaises(WALFailedError, wal.save_snapshot, SnapshotMeta(1, 1))
        self.assertRaises(WALFailedError, wal.release, 1)
        wal.close()

    def test_full_disk_in_a_sync_is_final(self) -> None:
        """Also ENOSPC from fdatasync leaves open what is on disk."""
        disk = FaultyDisk()
        wal = self.create(disk=disk)
        disk.fail("sync_data", errno.ENOSPC)
        self.assertRaises(WALFailedError, wal.append, None, entries(1, 1))
        self.assertRaises(WALFailedError, wal.append, None, entries(1, 1))

    def test_broken_disk_is_final(self) -> None:
        """An error of the medium is not a full disk."""
        for call in ("write", "sync_data"):
            disk = FaultyDisk()
            wal = self.create(disk=disk)
            disk.fail(call, errno.EIO)
            self.assertRaises(WALFailedError, wal.append, None, entries(1, 1))
            wal.close()

    def test_nothing_is_acknowledged_before_its_sync(self) -> None:
        """The order of system calls: write, then fdatasync; a new segment and its name before its first record."""
        disk, calls = FaultyDisk(), list[str]()
        write, sync, sync_data = disk.write, disk.sync, disk.sync_data
        disk.write = lambda fd, parts, offset: (calls.append("write"), write(fd, parts, offset))[1]
        disk.sync = lambda fd: (calls.append("sync"), sync(fd))[1]
        disk.sync_data = lambda fd: (calls.append("sync_data"), sync_data(fd))[1]
        wal = self.create(disk=disk)
        self.assertEqual(calls, ["write", "sync", "sync"])
        wal.append(None, entries(1, 3))
        self.assertEqual(calls[3:], ["write", "sync_data"])
        wal.append(None, entries(4, 1, size=SMALL))
        self.assertEqual(calls[5:], ["write", "sync", "sync", "write", "sync_data"])
        wal.close()
        calls.clear()
        self.open(disk=disk)
        self.assertEqual(calls, ["sync", "sync"])  # what is read counts as durable from now on

    def test_short_writes_are_continued(self) -> None:
        """A system that writes in pieces gets all of them asked of it."""
        disk = FaultyDisk()
        disk.write = lambda fd, parts, offset: os.pwrite(fd, b"".join(parts)[:7], offset)
        wal = self.create(disk=disk)
        wal.append(None, entries(1, 2))
        self.assertEqual(self.crash().entries, entries(1, 2))

    def test_file_system_without_allocation(self) -> None:
        """Where blocks can not be reserved they are written."""
        disk = FaultyDisk()
        disk.reserve = reserve_nothing
        wal = self.create(disk=disk)
        wal.append(None, entries(1, 2))
        self.assertEqual(self.files()[0].stat().st_size, SMALL)
        self.assertEqual(self.crash().entries, entries(1, 2))
